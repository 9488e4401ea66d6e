"""Runs benchmarks one after the other, and keeps what they print with the machine, the versions and the commands.

Command:   python experiments/benchmarks/report.py [NAME ...] [--device cpu|cuda] [--quick] [--results FOLDER]
Needs:     pip install -e ".[bench]", and a machine that does nothing else
Time:      that of the benchmarks, which each say in their first lines; all of them half an hour on two CPU cores.
Writes:    results/MACHINE/NAME.md (NAME_quick.md) as each ends, and results/README.md, a table of all that is there.
           One that fails is told of at the end, with status 1, and leaves what was there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from diffusion_lab.errors import InputError, unknown
from diffusion_lab.files import atomic_file

HERE = Path(__file__).parent
NAMES = ("training", "training_overhead", "samplers", "networks", "metrics", "data")
PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "diffusers",
    "accelerate",
    "denoising-diffusion-pytorch",
    "torch-fidelity",
    "scipy",
)
WIDTH = 110  # of what is printed
FEW = 4  # numbers of a benchmark, which the table of all has room for
RECORD = re.compile(r"^<!-- (\{.*\}) -->$", re.MULTILINE)


def device_name(device: str) -> str:
    """What the machine calls its GPU, if that is measured, and its processor, and how many cores of it there are."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = f"{names[0] if names else platform.machine()}, {cores} cores"
    return f"{torch.cuda.get_device_name()} with {processor}" if device == "cuda" else processor


def versions() -> str:
    """Python's, and those of what is compared."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def run(name: str, options: list[str]) -> tuple[str, dict[str, Any], float]:
    """What a benchmark prints, its last line's record and the seconds it took.

    Raises CalledProcessError where it fails, ValueError where its last line is no record.
    """
    started = time.perf_counter()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "TTY_COMPATIBLE": "0", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(HERE / f"{name}.py"), *options]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    printed, _, record = ended.stdout.rstrip().rpartition("\n")
    lines = printed.strip("\n").splitlines()
    return "\n".join(line.rstrip() for line in lines), json.loads(record), time.perf_counter() - started


def number(value: float) -> str:
    """With four digits, or all that stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def bound(ratio: dict[str, Any]) -> str:
    """A number's target."""
    return f"{'≤' if ratio['better'] == 'lower' else '≥'} {number(ratio['target'])}"


def met(ratio: dict[str, Any]) -> bool:
    """Whether a number is as good as its target."""
    value, target = ratio["value"], ratio["target"]
    return value <= target if ratio["better"] == "lower" else value >= target


def page(name: str, machine: str, options: list[str], printed: str, record: dict[str, Any], seconds: float) -> str:
    """The Markdown of one result."""
    command = " ".join(["python", f"experiments/benchmarks/{name}.py", *options])
    rows = [
        f"| {key} | {number(ratio['value'])} | {bound(ratio)} | {'yes' if met(ratio) else 'no'} |"
        for key, ratio in record["ratios"].items()
    ]
    kept = json.dumps({**record, "machine": machine, "date": f"{date.today()}", "quick": "--quick" in options})
    return "\n".join(
        [
            f"# {name} on {machine}",
            "",
            f"`{command}`, {date.today()}, {seconds:.0f} s. {versions()}.",
            "",
            "| | measured | target | met |",
            "|---|---|---|---|",
            *rows,
            "",
            "```text",
            printed,
            "```",
            "",
            f"<!-- {kept} -->",
            "",
        ]
    )


def index(results: Path) -> str:
    """The Markdown of all results that there are."""
    lines = [
        "# Benchmarks",
        "",
        "What `python experiments/benchmarks/report.py` has measured. How each is measured is said in the first lines",
        "of its script; a target is what the project is to reach.",
        "",
        "| benchmark | machine | date | targets met | measured, and target |",
        "|---|---|---|---|---|",
    ]
    for path in sorted(results.glob("*/*.md")):
        if (found := RECORD.search(path.read_text())) is None:
            continue
        record = json.loads(found[1])
        link = f"[{record['benchmark']}]({path.relative_to(results).as_posix()})"
        machine = f"{record['machine']}{', quick' if record['quick'] else ''}"
        ratios = record["ratios"]
        good = sum(map(met, ratios.values()))
        # All of a few numbers; of many, those that fall short.
        told = {key: ratio for key, ratio in ratios.items() if len(ratios) <= FEW or not met(ratio)}
        numbers = "; ".join(f"{key} {number(ratio['value'])} ({bound(ratio)})" for key, ratio in told.items())
        lines.append(f"| {link} | {machine} | {record['date']} | {good} of {len(ratios)} | {numbers} |")
    return "\n".join([*lines, ""])


def write(path: Path, text: str) -> None:
    """Write a page whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; all of them unless given")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="each benchmark's quick run")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    options = parser.parse_args()
    for name in options.names:
        if name not in NAMES:
            raise unknown("benchmark", name, NAMES)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no CUDA device here: give --device cpu")
    machine = device_name(options.device)
    folder = options.results / re.sub(r"\W+", "_", machine.lower())
    given = ["--device", options.device, *(["--quick"] if options.quick else [])]
    failed = []
    for name in options.names or NAMES:
        print(f"{name} on {machine}", flush=True)
        try:
            printed, record, seconds = run(name, given)
        except subprocess.CalledProcessError as error:
            failed.append(f"{name} (status {error.returncode})")
            continue
        except ValueError:
            failed.append(f"{name} (its last line is no JSON)")
            continue
        print(printed, flush=True)
        write(
            folder / f"{name}{'_quick' if options.quick else ''}.md",
            page(name, machine, given, printed, record, seconds),
        )
        write(options.results / "README.md", index(options.results))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"report.py: error: {error}", file=sys.stderr)
        sys.exit(2)
