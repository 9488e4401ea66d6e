"""What turns uint8 images [B, C, H, W] into features [B, D], each with its name and its resize.

Any `nn.Module` that maps uint8 images to features serves as an extractor; give it a `name` for the metric's key, and a
`resize` that says what it does to an image's size. One that also has class scores gives `logits(images)`, [B, K], and
`features_and_logits(images)`.
"""

from diffusion_lab.metrics.extractors.base import (
    Extractor,
    WithLogits,
    as_rgb,
    extractor_name,
    extractor_protocol,
    has_logits,
)
from diffusion_lab.metrics.extractors.classifier import Classifier, ImageClassifier, save_classifier
from diffusion_lab.metrics.extractors.classifier_training import train_classifier
from diffusion_lab.metrics.extractors.digits import DigitClassifier
from diffusion_lab.metrics.extractors.efficientnet import EfficientNetLite0
from diffusion_lab.metrics.extractors.inception import Inception
from diffusion_lab.metrics.extractors.vision_transformers import CLIPImages, DINOv2

__all__ = [
    "CLIPImages",
    "Classifier",
    "DINOv2",
    "DigitClassifier",
    "EfficientNetLite0",
    "Extractor",
    "ImageClassifier",
    "Inception",
    "WithLogits",
    "as_rgb",
    "extractor_name",
    "extractor_protocol",
    "has_logits",
    "save_classifier",
    "train_classifier",
]
