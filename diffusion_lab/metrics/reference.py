"""Reference statistics: the features of a split's real images, made once and cached by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from diffusion_lab.data.sources.cache import cache_folder, cached, hashed, tell
from diffusion_lab.errors import InputError
from diffusion_lab.files import read_json, write_json
from diffusion_lab.metrics.extractors import extractor_protocol
from diffusion_lab.metrics.features import FeatureGatherer, Features
from diffusion_lab.metrics.frechet import FeatureGaussian, Gaussian, frechet_distance
from diffusion_lab.metrics.statistics_file import read_statistics, write_statistics
from diffusion_lab.watch import progress_bar

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from diffusion_lab.data.unconditional import Split, Unconditional

FORMAT = 1  # of the cache; raise it when what is kept changes
FILE, FLOOR = "statistics.npz", "floor.json"

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes that share the work, and where this one computes.

    Attributes:
        device: Where images go through the extractor.
        rank: Which of them this is.
        world: How many there are.
        broadcast: Gives all of them what the first has.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    broadcast: Callable[[Any], Any] = lambda value: value

    @classmethod
    def of(cls, trainer: Trainer) -> Ranks:
        """Those of a trainer."""
        strategy = trainer.strategy
        return cls(strategy.root_device, trainer.global_rank, trainer.world_size, strategy.broadcast)

    @property
    def sums(self) -> torch.device:
        """Where float64 sums are kept: the device, but for Apple's, which has no float64."""
        return torch.device("cpu") if self.device.type == "mps" else self.device


@dataclass(frozen=True)
class Needs:
    """What metrics need of features beside their Gaussian.

    Attributes:
        keep: The number of images whose features are kept.
        logits: The number of class scores kept with them.
        classes: The number of classes that get a Gaussian each.
    """

    keep: int = 0
    logits: int = 0
    classes: int = 0


@dataclass(frozen=True)
class Reference:
    """What generated images are compared with.

    Attributes:
        features: Of the real images.
        protocol: What identifies them: data, split, images, sha256; `{}` for a file that says nothing of itself.
    """

    features: Features
    protocol: dict[str, Any]


def extract(extractor: nn.Module, images: Tensor, logits: bool) -> tuple[Tensor, Tensor | None]:
    """Features [B, D], and class scores [B, K] if asked for, of uint8 images [B, C, H, W]."""
    if logits:
        return extractor.features_and_logits(images)  # type: ignore[operator]  # a module's attributes are unknown
    return extractor(images), None


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are; the CPU for one that has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


@torch.no_grad()
def logits_of(extractor: nn.Module, data: Unconditional) -> int:
    """The number of class scores that an extractor gives for images of this data."""
    image = next(iter(data.reference("validation", 1))).to(device_of(extractor))
    return int(extractor.logits(image).shape[1])  # type: ignore[operator]  # a module's attributes are unknown


class References:
    """Makes references of one DataModule by one extractor, and the real-against-real floor.

    What was made is kept in the cache (`$DIFFUSION_LAB_CACHE`, else `~/.cache/diffusion_lab`) under the hash of the
    images and of the extractor, so that it is made once for all runs.
    """

    def __init__(self, data: Unconditional, extractor: nn.Module, ranks: Ranks, batch_size: int = 256) -> None:
        """
        Args:
            data: Whose images are the real ones.
            extractor: What makes features of them, on the ranks' device.
            ranks: Who shares the work.
            batch_size: Images on the device at once.
        """
        self.data, self.extractor, self.ranks, self.batch_size = data, extractor, ranks, batch_size
        self._identities: dict[Split, dict[str, Any]] = {}

    def identity(self, split: Split) -> dict[str, Any]:
        """What identifies a split: its DataModule, name, number, shape and the SHA-256 of its pixels."""
        if split not in self._identities:
            digest = hashlib.sha256()
            shape: tuple[int, ...] = ()
            with self._bar("hashing real images", split) as advance:
                for images in self.data.reference(split, self.batch_size):
                    digest.update(images.contiguous().numpy().tobytes())
                    shape = tuple(images.shape[1:])
                    advance()
            self._identities[split] = {
                "data": self.data.origin.config,
                "split": split,
                "images": len(self.data.part(split)),
                "shape": list(shape),
                "sha256": digest.hexdigest(),
            }
        return self._identities[split]

    def read(self, split: Split, needs: Needs) -> Reference:
        """The reference of a split, from the cache or made now and left there; every rank takes part."""
        identity = self.identity(split)
        if needs.classes:
            self._labels(split)
        name = self._name("statistics", identity, [needs.keep, needs.logits, needs.classes])
        features = self.ranks.broadcast(self._cached(name, self._read) if self.ranks.rank == 0 else None)
        if features is None:
            features = self._measure(split, needs)
            self._keep(name, lambda folder: write_statistics(folder / FILE, features, identity), self._read)
        return Reference(on_device(features, self.ranks.sums), identity)

    def floor(self, samples: int, splits: int) -> float | None:
        """The mean distance between `samples` random real images and the rest, over random splits of all of them.

        It is what a perfect model would score at that count; None where there are too few images. Every rank takes
        part.
        """
        every = len(self.data.part("all"))
        if splits < 1 or samples > every - 2:
            return None
        name = self._name("floor", self.identity("all"), [samples, splits])
        value = self.ranks.broadcast(self._cached(name, self._read_floor) if self.ranks.rank == 0 else None)
        if value is None:
            value = self._measure_floor(samples, splits, every)
            self._keep(name, lambda folder: write_json(folder / FLOOR, {"floor": value}), self._read_floor)
        return float(value)

    def _name(self, kind: str, identity: dict[str, Any], rest: Any) -> str:
        of = [FORMAT, identity["sha256"], identity["shape"], extractor_protocol(self.extractor), rest]
        return f"{kind}-{hashed(of)}"

    @staticmethod
    def _read(folder: Path) -> Features:
        return read_statistics(folder / FILE)[0]

    @staticmethod
    def _read_floor(folder: Path) -> float:
        return float(read_json(folder / FLOOR)["floor"])

    @staticmethod
    def _cached(name: str, read: Callable[[Path], T]) -> T | None:
        """What is in the cache; None where there is nothing, or it is damaged, so that it is made again."""
        try:
            return read(cache_folder() / name)
        except (InputError, KeyError, TypeError):
            return None

    def _keep(self, name: str, write: Callable[[Path], None], read: Callable[[Path], Any]) -> None:
        """Leave what was made in the cache, or say why that cannot be; nothing depends on it."""
        if self.ranks.rank == 0:
            try:
                cached(name, write, read)
            except InputError as error:
                tell(f"{error}; it is made again the next time")

    def _labels(self, split: Split) -> Tensor:
        labels = self.data.part(split).labels
        if labels is None:
            raise InputError(f"{type(self.data).__name__} has no class labels: leave out metrics of each class")
        return labels

    def _batches(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """Places and pixels of this rank's share of each batch of a split."""
        start = 0
        for batch in self.data.reference(split, self.batch_size):
            mine = torch.arange(self.ranks.rank, len(batch), self.ranks.world)
            yield start + mine, batch[mine]
            start += len(batch)

    def _origin(self, split: Split) -> Tensor:
        """A point near the features' mean, the same on every rank: the features of the first image."""
        first = next(iter(self.data.reference(split, 1)))
        features = self.extractor(first.to(self.ranks.device)).mean(0)
        return self.ranks.broadcast(features.cpu()).to(self.ranks.sums)

    @torch.no_grad()
    def _measure(self, split: Split, needs: Needs) -> Features:
        gathered = FeatureGatherer(self._origin(split), needs.keep, needs.logits, needs.classes)
        with self._bar("reading real images", split) as advance:
            for indices, images in self._batches(split):
                if len(indices):  # a last batch may have fewer images than there are ranks
                    features, logits = extract(self.extractor, images.to(self.ranks.device), needs.logits > 0)
                    labels = self._labels(split)[indices] if needs.classes else None
                    gathered.update(features, indices, logits, labels)
                advance()
        return gathered.compute()

    @torch.no_grad()
    def _measure_floor(self, samples: int, splits: int, every: int) -> float:
        origin = self._origin("all")
        whole = FeatureGaussian(origin).to(origin.device)
        drawn = [FeatureGaussian(origin).to(origin.device) for _ in range(splits)]
        membership = torch.zeros(splits, every, dtype=torch.bool)
        for split, row in enumerate(membership):
            row[torch.randperm(every, generator=torch.Generator().manual_seed(split))[:samples]] = True
        with self._bar("real against real", "all") as advance:
            for indices, images in self._batches("all"):
                if len(indices):
                    features = self.extractor(images.to(self.ranks.device)).to(origin.device)
                    whole.update(features)
                    for metric, row in zip(drawn, membership, strict=True):
                        metric.update(features[row[indices].to(features.device)])
                advance()
        total = whole.compute()
        parts = [metric.compute() for metric in drawn]
        return sum(frechet_distance(total.without(part), part) for part in parts) / len(parts)

    def _bar(self, label: str, split: Split) -> Any:
        batches = -(-len(self.data.part(split)) // self.batch_size)
        return progress_bar(label if self.ranks.rank == 0 else None, batches)


def read_reference(path: Path, extractor: nn.Module, shape: tuple[int, ...], needs: Needs) -> Reference:
    """The reference in a file, for images of a shape [C, H, W].

    Raises:
        InputError: It cannot be read, is of other features or images, or lacks what the metrics need.
    """
    features, identity = read_statistics(path)
    theirs, ours = identity.get("extractor"), extractor_protocol(extractor)
    if theirs is not None and any(theirs[key] != ours[key] for key in ("class", "resize", "weights_sha256")):
        raise InputError(
            f"{path} has statistics of the extractor {theirs['name']} ({theirs['resize']}, weights "
            f"{theirs['weights_sha256'][:12]}), not of {ours['name']} ({ours['resize']}, weights "
            f"{ours['weights_sha256'][:12]}): make them again with diffusion-lab stats"
        )
    if identity and identity["shape"] != list(shape):
        raise InputError(f"{path} has statistics of images of {identity['shape']} but the data's are {list(shape)}")
    lacking = [
        name
        for name, wanted, there in (
            ("kept features", needs.keep, len(features.sample)),
            ("class scores", needs.logits, features.logits is not None),
            ("Gaussians of each class", needs.classes, features.classes is not None),
        )
        if wanted and not there
    ]
    if lacking:
        raise InputError(
            f"{path} has no {lacking[0]}, which a metric needs: make it with diffusion-lab stats, or leave it out"
        )
    if not identity:  # identified by its numbers, as nothing else is known
        digest = hashlib.sha256(features.gaussian.mean.numpy().tobytes())
        digest.update(features.gaussian.covariance.numpy().tobytes())
        identity = {"data": str(path), "split": "unstated", "images": None, "sha256": digest.hexdigest()}
    return Reference(features, identity)


def on_device(features: Features, device: torch.device) -> Features:
    """The features on a device, with the roots that are known."""

    def moved(gaussian: Gaussian) -> Gaussian:
        there = Gaussian(gaussian.mean.to(device), gaussian.covariance.to(device), gaussian.count)
        if "root" in vars(gaussian):
            vars(there)["root"] = gaussian.root.to(device)
        return there

    return replace(
        features,
        gaussian=moved(features.gaussian),
        sample=features.sample.to(device),
        indices=features.indices.to(device),
        logits=None if features.logits is None else features.logits.to(device),
        classes=features.classes and {label: moved(each) for label, each in features.classes.items()},
    )
