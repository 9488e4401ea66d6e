from __future__ import annotations

from typing import Any

import pytest

from diffusion_lab import InputError
from diffusion_lab.metrics.protocol import Protocol, difference


def measured(value: float = 1.0, metric: str = "fd", **changes: Any) -> dict[str, Any]:
    measure = {
        "extractor": {"name": "digits", "class": "D", "resize": "none", "weights_sha256": "aaaa"},
        "samples": 500,
        "reference": {"data": {"batch_size": 8}, "split": "train", "images": 9, "sha256": "ffff"},
        "quantisation": "uint8, rounded",
    }
    subject = {"weights": "ema", "sampling": {"steps": 20}, "network_evaluations": 20}
    metrics = {"fd": {"class_path": "F", "init_args": {}}, "kd": {"class_path": "K", "init_args": {"subset_size": 10}}}
    for name, change in changes.items():
        for part in (measure, subject):
            if name in part:
                part[name] = {**part[name], **change} if isinstance(change, dict) else change
        if name in metrics:
            metrics[name] = change
    return {"metrics": {metric: {"value": value}}, "protocol": Protocol(measure, subject, metrics).record()}


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": {"steps": 50}},
        {"weights": "raw"},
        {"network_evaluations": 7},
        {"reference": {"data": "the same images by another name", "split": "all"}},
        {"extractor": {"name": "renamed"}},
        {"kd": {"class_path": "K", "init_args": {"subset_size": 99}}},
    ],
)
def test_what_is_compared_may_differ(changes: dict[str, Any]) -> None:
    one, other = measured(3.5), measured(1.0, **changes)
    assert difference(one, other) == 2.5
    assert one["protocol"]["sha256"] == other["protocol"]["sha256"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 2000}, "samples 500 and 2000"),
        ({"extractor": {"weights_sha256": "bbbb"}}, "weights_sha256 aaaa and name digits.* bbbb"),
        ({"extractor": {"resize": "pil_bicubic"}}, "resize none.* and .*resize pil_bicubic"),
        ({"reference": {"sha256": "eeee"}}, "sha256 ffff and split train.* eeee"),
        ({"quantisation": "float"}, "quantisation uint8, rounded and float"),
        ({"fd": {"class_path": "G", "init_args": {}}}, "fd by"),
    ],
)
def test_numbers_of_different_protocols_are_not_compared(changes: dict[str, Any], message: str) -> None:
    one, other = measured(), measured(**changes)
    with pytest.raises(InputError, match=f"numbers of different protocols are not compared: .*{message}"):
        difference(one, other)
    if "fd" not in changes:
        assert one["protocol"]["sha256"] != other["protocol"]["sha256"]


def test_a_metrics_own_settings_are_its_protocol() -> None:
    changed = {"class_path": "K", "init_args": {"subset_size": 99}}
    with pytest.raises(InputError, match="kd by .*10.* and .*99"):
        difference(measured(metric="kd"), measured(metric="kd", kd=changed), "kd")
    with pytest.raises(InputError, match="has no kd: it has fd"):
        difference(measured(), measured(), "kd")
    old = {name: value for name, value in measured().items() if name != "metrics"}
    with pytest.raises(InputError, match="has no fd: it has none, so measure again"):
        difference(old, old)


def test_a_record_is_read_again() -> None:
    record = measured()["protocol"]
    assert Protocol.read(record).record() == record
    with pytest.raises(InputError, match="has no samples: measure again"):
        Protocol.read({name: value for name, value in record.items() if name != "samples"})
