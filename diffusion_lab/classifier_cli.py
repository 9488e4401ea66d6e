"""The classifier command: trains a classifier on the images of a config of fit, to measure what is made of them."""

from __future__ import annotations

import argparse

from diffusion_lab.checkpoint import check_target
from diffusion_lab.data_config import build_data, read_config
from diffusion_lab.device import find_device
from diffusion_lab.metrics.extractors import save_classifier, train_classifier


def run_classifier(options: argparse.Namespace) -> None:
    """Train, test and write what the options of `classifier` ask for; raises InputError for bad input."""
    check_target(options.output, options.overwrite)
    data = build_data(read_config(options.config), options.config).origin
    model, accuracy = train_classifier(data, options.epochs, options.seed, find_device(options.device))
    facts = {"data": data.config, "epochs": options.epochs, "seed": options.seed, "accuracy": accuracy}
    save_classifier(model, options.output, facts, options.overwrite)
    held_out = len(data.part("validation"))
    print(f"held-out accuracy {accuracy:.4f} ({round(accuracy * held_out)} of {held_out})")
    print(f"wrote {options.output}: give it as diffusion_lab.Classifier's folder")
