"""Reference statistics as `.npz`: those of pytorch-fid and EDM (`mu`, `sigma`), and what is kept here beside them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.files import atomic_file
from diffusion_lab.metrics.features import Features
from diffusion_lab.metrics.frechet import Gaussian

SYMMETRY = 1e-6  # by which a covariance may differ from its transpose, of its greatest value


def write_statistics(path: Path, features: Features, protocol: dict[str, Any]) -> None:
    """Write features and what identifies them; pytorch-fid and EDM read `mu` and `sigma` of it.

    The root of the covariance is kept, so that each later distance needs one eigenvalue problem.

    Raises:
        InputError: The path cannot be written.
    """
    arrays: dict[str, Any] = {
        "mu": features.gaussian.mean,
        "sigma": features.gaussian.covariance,
        "root": features.gaussian.root,
        "count": features.count,
        "sample": features.sample,
        "indices": features.indices,
        "protocol": json.dumps(protocol),
    }
    if features.logits is not None:
        arrays["logits"] = features.logits
    if features.classes:
        arrays["class_labels"] = list(features.classes)
        arrays["class_counts"] = [each.count for each in features.classes.values()]
        arrays["class_mu"] = torch.stack([each.mean for each in features.classes.values()])
        arrays["class_sigma"] = torch.stack([each.covariance for each in features.classes.values()])
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: _array(value) for name, value in arrays.items()})  # type: ignore[arg-type]


def read_statistics(path: Path) -> tuple[Features, dict[str, Any]]:
    """Features and what identifies them, which is nothing for a file of pytorch-fid, EDM or guided-diffusion.

    Raises:
        InputError: There is no such file, or it holds no mean and covariance.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or "truncated or not an .npz of numbers"
        raise InputError(
            f"cannot read {path}: {reason}; give statistics that diffusion-lab stats, pytorch-fid, EDM or "
            "guided-diffusion wrote"
        ) from error
    if not {"mu", "sigma"} <= arrays.keys():
        archive = "; its images are read by the source ImageArchive" if "arr_0" in arrays else ""
        raise InputError(f"{path} has no mu and sigma but {', '.join(arrays) or 'nothing'}{archive}")
    gaussian = _gaussian(path, arrays["mu"], arrays["sigma"], int(arrays.get("count", 0)))
    if "protocol" not in arrays:
        return Features(gaussian, torch.zeros(0, len(gaussian.mean)), torch.zeros(0).long()), {}
    gaussian.__dict__["root"] = torch.from_numpy(arrays["root"])  # where the cached property would keep it
    classes = {
        int(label): _gaussian(path, mu, sigma, int(count))
        for label, mu, sigma, count in zip(
            *(arrays.get(f"class_{part}", ()) for part in ("labels", "mu", "sigma", "counts")), strict=True
        )
    }
    logits = torch.from_numpy(arrays["logits"]) if "logits" in arrays else None
    sample, indices = torch.from_numpy(arrays["sample"]), torch.from_numpy(arrays["indices"])
    return Features(gaussian, sample, indices, logits, classes or None), json.loads(str(arrays["protocol"]))


def _gaussian(path: Path, mu: np.ndarray, sigma: np.ndarray, count: int) -> Gaussian:
    mean, covariance = torch.from_numpy(mu).double(), torch.from_numpy(sigma).double()
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise InputError(f"{path} has mu of {list(mu.shape)} and sigma of {list(sigma.shape)}: they are [D] and [D, D]")
    if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
        raise InputError(f"{path} has numbers that are not finite: make the statistics again")
    if float((covariance - covariance.T).abs().max()) > SYMMETRY * float(covariance.abs().max()):
        raise InputError(f"sigma of {path} is no covariance, for it is not symmetric: make the statistics again")
    return Gaussian(mean, covariance, count)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
