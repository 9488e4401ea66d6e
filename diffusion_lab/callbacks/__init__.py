"""What a Trainer does beside training: distances, likelihoods, grids of images, files."""

from diffusion_lab.callbacks.bits_per_dim import BitsPerDim
from diffusion_lab.callbacks.compile import Compile
from diffusion_lab.callbacks.fid import FIDCallback
from diffusion_lab.callbacks.image_writer import ImageWriter
from diffusion_lab.callbacks.loss_by_noise_level import LossByNoiseLevel
from diffusion_lab.callbacks.progress import Progress
from diffusion_lab.callbacks.reconstruction_grid import ReconstructionGrid
from diffusion_lab.callbacks.sample_grid import SampleGrid

__all__ = [
    "BitsPerDim",
    "Compile",
    "FIDCallback",
    "ImageWriter",
    "LossByNoiseLevel",
    "Progress",
    "ReconstructionGrid",
    "SampleGrid",
]
