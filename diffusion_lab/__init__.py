"""Diffusion models with classifier-free guidance, as a few small objects.

Names are imported when they are first used, so that sampling never waits for Lightning, nor `--help` for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_lab.animation import Animation
    from diffusion_lab.autoencoder import load_autoencoder, save_autoencoder
    from diffusion_lab.autoencoder_module import AutoencoderModule
    from diffusion_lab.callbacks import (
        BitsPerDim,
        Compile,
        FIDCallback,
        LossByNoiseLevel,
        Progress,
        ReconstructionGrid,
        SampleGrid,
    )
    from diffusion_lab.checkpoint import load, load_module, save
    from diffusion_lab.conditions import (
        ClassLabel,
        Cond,
        Conditioner,
        Conditions,
        Image,
        MaskedImage,
        Text,
        Vector,
    )
    from diffusion_lab.configurable import Configurable
    from diffusion_lab.continuous_schedules import CosineSchedule, FlowSchedule, KarrasSchedule
    from diffusion_lab.data import (
        ClassConditional,
        Inpainting,
        Latents,
        SuperResolution,
        TextToImage,
        Unconditional,
    )
    from diffusion_lab.data.degradations import (
        Degradation,
        Downsample,
        RealESRGAN,
    )
    from diffusion_lab.data.masks import (
        AnyMask,
        Box,
        Centre,
        FreeForm,
        Half,
        Mask,
        Outpainting,
        Strokes,
    )
    from diffusion_lab.data.sources import (
        CIFAR10,
        CIFAR100,
        MNIST,
        STL10,
        SVHN,
        CelebA,
        Digits,
        Emoji,
        FashionMNIST,
        Flowers102,
        HuggingFace,
        ImageArchive,
        ImageFolder,
        ImageNet,
        Photographs,
        Shapes,
        TarShards,
    )
    from diffusion_lab.denoiser import Denoiser
    from diffusion_lab.densities import (
        Density,
        LogitNormal,
        LogNormal,
        LossSecondMoment,
        PureNoise,
        StratifiedUniform,
        Uniform,
    )
    from diffusion_lab.ema import EMA
    from diffusion_lab.errors import InputError
    from diffusion_lab.generate import generate
    from diffusion_lab.guidance import (
        AdaptiveProjected,
        Autoguidance,
        Clipped,
        ColourGuidance,
        Guidance,
        Guided,
        ImageTextGuidance,
        Interval,
        LossGuidance,
        Rescale,
    )
    from diffusion_lab.latent_space import LatentSpace
    from diffusion_lab.likelihood import Likelihood, ProbabilityFlow, VariationalBound
    from diffusion_lab.metrics import (
        PSNR,
        SSIM,
        ClassAccuracy,
        Classifier,
        CLIPImages,
        CLIPScore,
        Consistency,
        DensityCoverage,
        DigitClassifier,
        DINOv2,
        EfficientNetLite0,
        FrechetDistance,
        FrechetInfinity,
        ImageMetric,
        Inception,
        InceptionScore,
        IntraClassDistance,
        KernelDistance,
        KnownPixels,
        Memorisation,
        PerceptualDistance,
        PrecisionRecall,
        RPrecision,
        SetMetric,
        ShapesReading,
    )
    from diffusion_lab.mixture import GaussianMixture
    from diffusion_lab.module import DiffusionModule
    from diffusion_lab.networks import (
        ADMUNet,
        ByteTransformer,
        DDPMPlusPlusUNet,
        DDPMUNet,
        DiT,
        DiTB,
        DiTL,
        DiTS,
        DiTXL,
        FrozenTextEncoder,
        KLAutoencoder,
        PatchDiscriminator,
        SmallUNet,
        StableDiffusionUNet,
        UNet,
    )
    from diffusion_lab.noise import SeededNoise
    from diffusion_lab.noise_levels import loss_by_noise_level
    from diffusion_lab.pipeline import Pipeline
    from diffusion_lab.predictions import Estimate, Prediction
    from diffusion_lab.samplers import (
        DDIM,
        DDPM,
        DEIS,
        LMS,
        PNDM,
        DPMSolverPP,
        Euler,
        EulerAncestral,
        Heun,
        RePaint,
        Replacement,
        Sampler,
        UniPC,
    )
    from diffusion_lab.schedules import NoiseSchedule
    from diffusion_lab.spaces import PixelSpace
    from diffusion_lab.table_schedule import TableSchedule
    from diffusion_lab.variance import LearnedVariance
    from diffusion_lab.weightings import (
        EDMWeighting,
        HybridWeighting,
        MinSNRWeighting,
        P2Weighting,
        SigmoidWeighting,
        SNRWeighting,
        SoftMinSNRWeighting,
        Terms,
        TruncatedSNRWeighting,
        UncertaintyWeighting,
        UniformWeighting,
        VelocityWeighting,
        VLBWeighting,
        Weighting,
        X0Weighting,
    )

__version__ = "0.1.0"

_HOMES = {
    "animation": ["Animation"],
    "autoencoder": ["load_autoencoder", "save_autoencoder"],
    "autoencoder_module": ["AutoencoderModule"],
    "callbacks": [
        "BitsPerDim",
        "Compile",
        "FIDCallback",
        "LossByNoiseLevel",
        "Progress",
        "ReconstructionGrid",
        "SampleGrid",
    ],
    "checkpoint": ["load", "load_module", "save"],
    "conditions": ["ClassLabel", "Cond", "Conditioner", "Conditions", "Image", "MaskedImage", "Text", "Vector"],
    "configurable": ["Configurable"],
    "continuous_schedules": ["CosineSchedule", "FlowSchedule", "KarrasSchedule"],
    "data": [
        "ClassConditional",
        "Inpainting",
        "Latents",
        "SuperResolution",
        "TextToImage",
        "Unconditional",
    ],
    "data.degradations": [
        "Degradation",
        "Downsample",
        "RealESRGAN",
    ],
    "data.masks": [
        "AnyMask",
        "Box",
        "Centre",
        "FreeForm",
        "Half",
        "Mask",
        "Outpainting",
        "Strokes",
    ],
    "data.sources": [
        "CIFAR10",
        "CIFAR100",
        "CelebA",
        "Digits",
        "Emoji",
        "FashionMNIST",
        "Flowers102",
        "HuggingFace",
        "ImageArchive",
        "ImageFolder",
        "ImageNet",
        "MNIST",
        "Photographs",
        "STL10",
        "SVHN",
        "Shapes",
        "TarShards",
    ],
    "denoiser": ["Denoiser"],
    "densities": [
        "Density",
        "LogNormal",
        "LogitNormal",
        "LossSecondMoment",
        "PureNoise",
        "StratifiedUniform",
        "Uniform",
    ],
    "ema": ["EMA"],
    "errors": ["InputError"],
    "generate": ["generate"],
    "guidance": [
        "AdaptiveProjected",
        "Autoguidance",
        "Clipped",
        "ColourGuidance",
        "Guidance",
        "Guided",
        "ImageTextGuidance",
        "Interval",
        "LossGuidance",
        "Rescale",
    ],
    "latent_space": ["LatentSpace"],
    "likelihood": ["Likelihood", "ProbabilityFlow", "VariationalBound"],
    "metrics": [
        "CLIPImages",
        "CLIPScore",
        "ClassAccuracy",
        "Classifier",
        "Consistency",
        "DINOv2",
        "DensityCoverage",
        "DigitClassifier",
        "EfficientNetLite0",
        "FrechetDistance",
        "FrechetInfinity",
        "ImageMetric",
        "Inception",
        "InceptionScore",
        "IntraClassDistance",
        "KernelDistance",
        "KnownPixels",
        "Memorisation",
        "PSNR",
        "PerceptualDistance",
        "PrecisionRecall",
        "RPrecision",
        "SSIM",
        "SetMetric",
        "ShapesReading",
    ],
    "mixture": ["GaussianMixture"],
    "module": ["DiffusionModule"],
    "networks": [
        "ADMUNet",
        "ByteTransformer",
        "DDPMPlusPlusUNet",
        "DDPMUNet",
        "DiT",
        "DiTB",
        "DiTL",
        "DiTS",
        "DiTXL",
        "FrozenTextEncoder",
        "KLAutoencoder",
        "PatchDiscriminator",
        "SmallUNet",
        "StableDiffusionUNet",
        "UNet",
    ],
    "noise": ["SeededNoise"],
    "noise_levels": ["loss_by_noise_level"],
    "pipeline": ["Pipeline"],
    "predictions": ["Estimate", "Prediction"],
    "samplers": [
        "DDIM",
        "DDPM",
        "DEIS",
        "DPMSolverPP",
        "Euler",
        "EulerAncestral",
        "Heun",
        "LMS",
        "PNDM",
        "RePaint",
        "Replacement",
        "Sampler",
        "UniPC",
    ],
    "schedules": ["NoiseSchedule"],
    "spaces": ["PixelSpace"],
    "table_schedule": ["TableSchedule"],
    "variance": ["LearnedVariance"],
    "weightings": [
        "EDMWeighting",
        "HybridWeighting",
        "MinSNRWeighting",
        "P2Weighting",
        "SNRWeighting",
        "SigmoidWeighting",
        "SoftMinSNRWeighting",
        "Terms",
        "TruncatedSNRWeighting",
        "UncertaintyWeighting",
        "UniformWeighting",
        "VLBWeighting",
        "VelocityWeighting",
        "Weighting",
        "X0Weighting",
    ],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604 - generated, so that the names stand in one table


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'diffusion_lab' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffusion_lab.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
