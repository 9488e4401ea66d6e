"""Extractors of features, and distances between sets of them."""

from diffusion_lab.metrics.accuracy import ClassAccuracy
from diffusion_lab.metrics.base import ImageMetric, Score, SetMetric
from diffusion_lab.metrics.extractors import (
    Classifier,
    CLIPImages,
    DigitClassifier,
    DINOv2,
    EfficientNetLite0,
    ImageClassifier,
    Inception,
    train_classifier,
)
from diffusion_lab.metrics.frechet import FeatureGaussian, Gaussian, frechet_distance
from diffusion_lab.metrics.frechet_infinity import FrechetInfinity
from diffusion_lab.metrics.frechet_metric import FrechetDistance
from diffusion_lab.metrics.inception_score import InceptionScore
from diffusion_lab.metrics.intra_class import IntraClassDistance
from diffusion_lab.metrics.kernel import KernelDistance
from diffusion_lab.metrics.memorisation import Memorisation
from diffusion_lab.metrics.paired import PSNR, SSIM, Consistency, KnownPixels, PerceptualDistance
from diffusion_lab.metrics.precision_recall import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
)
from diffusion_lab.metrics.text_alignment import CLIPScore, RPrecision, ShapesReading
from diffusion_lab.names import named

# By the names they have on the command line.
SET_METRICS: dict[str, type[SetMetric]] = {
    "frechet": FrechetDistance,
    "kernel": KernelDistance,
    "inception_score": InceptionScore,
    "precision_recall": PrecisionRecall,
    "density_coverage": DensityCoverage,
    "frechet_infinity": FrechetInfinity,
    "intra_class": IntraClassDistance,
}

IMAGE_METRICS: dict[str, type[ImageMetric]] = {
    "psnr": PSNR,
    "ssim": SSIM,
    "lpips": PerceptualDistance,
    "consistency": Consistency,
    "known": KnownPixels,
    "clip_score": CLIPScore,
    "r_precision": RPrecision,
    "shapes": ShapesReading,
    "accuracy": ClassAccuracy,
    "memorisation": Memorisation,
}


def find_metric(metric: SetMetric | ImageMetric | str) -> SetMetric | ImageMetric:
    """A metric from itself or from its name, such as "kernel(subset_size=100)".

    Raises:
        InputError: The name or an argument is unknown, or an argument's value is not allowed.
    """
    if isinstance(metric, SetMetric | ImageMetric):
        return metric
    known: dict[str, type[SetMetric | ImageMetric]] = {**SET_METRICS, **IMAGE_METRICS}
    return named("metric", str(metric), known)


__all__ = [
    "IMAGE_METRICS",
    "PSNR",
    "SET_METRICS",
    "SSIM",
    "CLIPImages",
    "CLIPScore",
    "ClassAccuracy",
    "Classifier",
    "Consistency",
    "DINOv2",
    "DensityCoverage",
    "DigitClassifier",
    "EfficientNetLite0",
    "FeatureGaussian",
    "FrechetDistance",
    "FrechetInfinity",
    "Gaussian",
    "ImageClassifier",
    "ImageMetric",
    "Inception",
    "InceptionScore",
    "IntraClassDistance",
    "KernelDistance",
    "KnownPixels",
    "Memorisation",
    "PerceptualDistance",
    "PrecisionRecall",
    "RPrecision",
    "Score",
    "SetMetric",
    "ShapesReading",
    "density_coverage",
    "find_metric",
    "frechet_distance",
    "precision_recall",
    "train_classifier",
]
