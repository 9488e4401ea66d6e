"""What a number was measured by, and the refusal to compare numbers that were measured by different protocols."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusion_lab.errors import InputError

# What has to be equal for two numbers to be compared. The rest, weights, sampler and guidance, is what is compared.
MEASURE = ("extractor", "samples", "reference", "quantisation")
# A reference is its images, whatever a config calls them; an extractor its weights and its resize.
IDENTITY = {"reference": ("sha256",), "extractor": ("class", "resize", "weights_sha256")}


@dataclass(frozen=True)
class Protocol:
    """How a number came about.

    Attributes:
        measure: Extractor with its resize and weights, number of samples, reference images, quantisation.
        subject: What was measured: weights, sampling, network evaluations; and remarks on it.
        metrics: The configs of the metrics, by the keys of what they give.
    """

    measure: Mapping[str, Any]
    subject: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Protocol:
        """The protocol in a record that `record` gave; raises InputError where it is none."""
        missing = [name for name in MEASURE if name not in record]
        if missing:
            raise InputError(f"this record of a measurement has no {missing[0]}: measure again")
        rest = {name: value for name, value in record.items() if name not in (*MEASURE, "metrics", "sha256")}
        return cls({name: record[name] for name in MEASURE}, rest, record.get("metrics", {}))

    def record(self) -> dict[str, Any]:
        """As plain data, to be written beside the number."""
        return {**self.measure, **self.subject, "metrics": dict(self.metrics), "sha256": self.sha256}

    @property
    def identity(self) -> dict[str, Any]:
        """What of `measure` must be equal."""
        return {name: _identity(name, value) for name, value in self.measure.items()}

    @property
    def sha256(self) -> str:
        """The hash of `identity`: numbers of one metric compare where it is equal."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def check_comparable(self, other: Protocol, metric: str = "fd") -> None:
        """Raise InputError, naming each difference, unless a metric's numbers by the two protocols may be compared."""
        ours, theirs = self.identity, other.identity
        names = [name for name in MEASURE if ours[name] != theirs[name]]
        differ = [f"{name} {_shown(self.measure[name])} and {_shown(other.measure[name])}" for name in names]
        if self.metrics.get(metric) != other.metrics.get(metric):
            differ.append(f"{metric} by {self.metrics.get(metric)} and {other.metrics.get(metric)}")
        if differ:
            raise InputError(f"numbers of different protocols are not compared: {'; '.join(differ)}")


def difference(one: Mapping[str, Any], other: Mapping[str, Any], metric: str = "fd") -> float:
    """A metric's value in one measurement minus that in another, as the FID callback writes them.

    Raises:
        InputError: The two were measured by different protocols, or one of them has no such metric.
    """
    Protocol.read(one["protocol"]).check_comparable(Protocol.read(other["protocol"]), metric)
    for record in (one, other):
        if metric not in (known := record.get("metrics", {})):
            raise InputError(f"a measurement has no {metric}: it has {', '.join(known) or 'none, so measure again'}")
    return float(one["metrics"][metric]["value"] - other["metrics"][metric]["value"])


def _identity(name: str, value: Any) -> Any:
    return {key: value.get(key) for key in IDENTITY[name]} if name in IDENTITY else value


def _shown(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(
        f"{key} {str(value[key])[:12]}" for key in ("name", "split", "images", *_keys(value)) if key in value
    )


def _keys(value: Mapping[str, Any]) -> tuple[str, ...]:
    return next(keys for keys in IDENTITY.values() if keys[-1] in value)
