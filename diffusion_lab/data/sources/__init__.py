"""Where images come from."""

from diffusion_lab.data.sources.base import Images, Pixels, Source
from diffusion_lab.data.sources.emoji import Emoji
from diffusion_lab.data.sources.fashion_mnist import FashionMNIST
from diffusion_lab.data.sources.hugging_face import HuggingFace
from diffusion_lab.data.sources.image_archive import ImageArchive
from diffusion_lab.data.sources.image_folder import ImageFolder
from diffusion_lab.data.sources.scikit_learn import Digits, Photographs
from diffusion_lab.data.sources.shapes import Shapes
from diffusion_lab.data.sources.tar_shards import TarShards
from diffusion_lab.data.sources.torchvision_files import CelebA, Flowers102, ImageNet
from diffusion_lab.data.sources.torchvision_sets import CIFAR10, CIFAR100, MNIST, STL10, SVHN

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "STL10",
    "SVHN",
    "CelebA",
    "Digits",
    "Emoji",
    "FashionMNIST",
    "Flowers102",
    "HuggingFace",
    "ImageArchive",
    "ImageFolder",
    "ImageNet",
    "Images",
    "Photographs",
    "Pixels",
    "Shapes",
    "Source",
    "TarShards",
]
