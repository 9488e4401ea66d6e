"""Extractors of features, and distances between sets of them."""

from diffusion_lab.metrics.extractors import DigitClassifier, EfficientNetLite0, Inception
from diffusion_lab.metrics.frechet import FeatureGaussian, Gaussian, frechet_distance
from diffusion_lab.metrics.precision_recall import precision_recall

__all__ = [
    "DigitClassifier",
    "EfficientNetLite0",
    "FeatureGaussian",
    "Gaussian",
    "Inception",
    "frechet_distance",
    "precision_recall",
]
