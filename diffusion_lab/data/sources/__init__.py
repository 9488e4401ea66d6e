"""Where images come from."""

from diffusion_lab.data.sources.base import Images, Pixels, Source
from diffusion_lab.data.sources.scikit_learn import Digits, Photographs
from diffusion_lab.data.sources.shapes import Shapes

__all__ = ["Digits", "Images", "Photographs", "Pixels", "Shapes", "Source"]
