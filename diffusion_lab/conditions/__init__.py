"""How what is asked for (a label, a text, an image) enters a network, and how it is left out."""

from diffusion_lab.conditions.base import Cond, Conditioner, Conditions
from diffusion_lab.conditions.image import Image, MaskedImage
from diffusion_lab.conditions.labels import ClassLabel
from diffusion_lab.conditions.text import Text
from diffusion_lab.conditions.vector import Vector

__all__ = ["ClassLabel", "Cond", "Conditioner", "Conditions", "Image", "MaskedImage", "Text", "Vector"]
