"""What came of a table's cells, and what may be said of it: what compares with the paper, which claims appear."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from diffusion_lab.errors import InputError
from diffusion_lab.tables.jobs import Measurement
from diffusion_lab.tables.spec import Cell, Claim, Table


class Shown(NamedTuple):
    """How a metric is printed: its title, its decimals, and whether higher is better."""

    title: str
    places: int
    higher: bool


METRICS = {
    "fd": Shown("FD", 2, False),
    "fd_infinity": Shown("FD infinity", 2, False),
    "fd_intra_class": Shown("intra-class FD", 2, False),
    "kd": Shown("KD", 4, False),
    "is": Shown("IS", 2, True),
    "accuracy": Shown("accuracy, %", 1, True),
    "read_as_asked": Shown("read as asked, %", 1, True),
    "precision": Shown("precision", 3, True),
    "recall": Shown("recall", 3, True),
    "density": Shown("density", 3, True),
    "coverage": Shown("coverage", 3, True),
    "clip_score": Shown("CLIP score", 2, True),
    "r_precision": Shown("R-precision, %", 1, True),
    "psnr": Shown("PSNR, dB", 2, True),
    "ssim": Shown("SSIM", 3, True),
    "lpips": Shown("LPIPS", 3, False),
    "consistency": Shown("consistency", 2, False),
    "known": Shown("known pixels kept, %", 2, True),
    "memorised": Shown("memorised, %", 1, False),
    "neighbour_ratio": Shown("neighbour ratio", 3, True),
}
NOT_FINITE = "not finite"
VERDICTS = {1: "appears", 0: "is within the spread", -1: "is reversed"}
ONE_SEED = "cannot be said of one seed"
Results = Mapping[tuple[str, str], "Result"]


@dataclass(frozen=True)
class Result:
    """What came of a cell.

    Attributes:
        cell: The cell.
        records: The score files of its measurements.
    """

    cell: Cell
    records: Sequence[Mapping[str, Any]]

    @property
    def measured(self) -> list[Mapping[str, Any]]:
        """The measurements of models that did not diverge."""
        return [record["measured"] for record in self.records if "measured" in record]

    @property
    def complete(self) -> bool:
        """Whether every measurement gave a number."""
        return len(self.measured) == len(self.records) > 0

    def values(self, metric: str) -> list[float]:
        """A metric's values, one for each training and sampling seed; raises InputError where it was not measured."""
        for measured in self.measured:
            if metric not in measured["metrics"]:
                known = ", ".join(measured["metrics"])
                raise InputError(f"{self.cell.row!r} was measured without {metric}: its metrics are {known}")
        return [float(measured["metrics"][metric]["value"]) for measured in self.measured]

    def mean(self, metric: str) -> float:
        """The mean over seeds; not a number where a model diverged."""
        return statistics.mean(self.values(metric)) if self.complete else math.nan

    def deviation(self, metric: str) -> float:
        """The deviation over all seeds, of training and of sampling together; not a number of a single one."""
        values = self.values(metric)
        return statistics.stdev(values) if self.complete and len(values) > 1 else math.nan

    def runs(self, metric: str) -> dict[str, float]:
        """What counts as one observation of a metric each: a training, by the mean of its samples, or a sampling.

        Samples of one model share what its training made of it, so that more of them say nothing of another training.
        Only where the table trains nothing is each sampling seed an observation.
        """
        found: dict[str, list[float]] = {}
        for record, value in zip(self.records, self.values(metric), strict=True):
            trained = record["training_seed"] is not None
            found.setdefault(record["model"] + ("" if trained else f" {record['sampling_seed']}"), []).append(value)
        return {run: statistics.mean(values) for run, values in found.items()}


def results_of(table: Table, jobs: Sequence[Measurement]) -> dict[tuple[str, str], Result]:
    """The results by row and column, of the measurements that are finished."""
    records: dict[tuple[str, str], list[Mapping[str, Any]]] = {place: [] for place in table.cells}
    for job in jobs:
        if job.result.exists():
            records[job.cell.row, job.cell.column].append({**job.read(), "model": str(job.model)})
    return {place: Result(cell, records[place]) for place, cell in table.cells.items()}


def title_of(metric: str, results: Results) -> str:
    """A metric's title, with the extractor's name where it is one of features that are not Inception's."""
    name = next((m["protocol"]["extractor"]["name"] for result in results.values() for m in result.measured), None)
    title = plain_title(metric, name)
    of_features = metric.split("_", maxsplit=1)[0] in ("fd", "kd", "is")
    return f"{title} ({name})" if of_features and name not in (None, "inception") else title


def plain_title(metric: str, extractor: str | None) -> str:
    """A metric's title alone: distances are FID and KID only in Inception's features."""
    title = METRICS[metric].title if metric in METRICS else metric
    return title.replace("FD", "FID").replace("KD", "KID") if extractor == "inception" else title


def better(metric: str) -> str:
    """Which way is better, to be put after a title."""
    return "" if metric not in METRICS else ", higher is better" if METRICS[metric].higher else ", lower is better"


def places(metric: str) -> int:
    """A metric's decimals."""
    return METRICS[metric].places if metric in METRICS else 2


def number(value: float, metric: str) -> str:
    """A value with the decimals that its metric has."""
    return NOT_FINITE if math.isnan(value) else f"{value:.{places(metric)}f}"


def why_not_compared(table: Table, results: Results) -> str:
    """In what a table's protocol differs from the paper's; nothing where the numbers may be compared.

    The paper's protocol of a cell is the table's `paper.protocol`, with what the cell's row and column say themselves.
    A paper's data set is that of the edition that is named after it: its lower-case letters and digits begin it.
    """
    if not any(result.measured for result in results.values()):
        return "nothing is measured yet"
    if not table.protocol:
        return "the paper's protocol is not known"
    differ = dict[str, None]()
    plain = "".join(filter(str.isalnum, str(table.paper["dataset"]).lower()))
    if not plain.startswith("".join(filter(str.isalnum, table.edition.lower()))):
        differ[f"the data are {table.edition} here and {table.paper['dataset']} there"] = None
    for result in results.values():
        said = {name: value for name, value in result.cell.said.items() if name in ("samples", "reference")}
        for measured in result.measured:
            protocol = measured["protocol"]
            ours = {
                "extractor": protocol["extractor"]["name"],
                "samples": protocol["samples"],
                "reference": protocol["reference"]["split"],
            }
            for name, theirs in {**table.protocol, **said}.items():
                if ours[name] != theirs:
                    differ[f"{name} is {ours[name]} here and {theirs} there"] = None
    return "; ".join(differ)


def difference(metric: str, one: Result, other: Result) -> tuple[float, float]:
    """The 95% confidence interval of another cell's mean minus this one's, by Student's t over runs.

    Of cells that measure the same models, or one model with the same seeds, the runs are compared one by one (the
    paired t-test); of others by Welch's test, which takes no two deviations for equal. Not numbers of a single run.
    """
    from scipy import stats

    ours, theirs = one.runs(metric), other.runs(metric)
    if len(ours) < 2 or len(theirs) < 2:
        return math.nan, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of equal values, whose interval is right all the same
        if ours.keys() == theirs.keys():
            found = stats.ttest_rel([theirs[run] for run in ours], [*ours.values()])
        else:
            found = stats.ttest_ind([*theirs.values()], [*ours.values()], equal_var=False)
        low, high = found.confidence_interval()
    return float(low), float(high)


def verdict(claim: Claim, results: Results) -> str:
    """Whether a claim appears, with its numbers: both means, their difference, and its 95% interval.

    A pair of cells shows it where the interval lies above 0, reverses it where it lies below, and is within the spread
    where 0 is in it. A model that diverged is worse than any that did not. One run alone has no spread, and shows
    nothing.
    """
    shown, words = list[str](), list[str]()
    for one, other in claim.less:
        if one not in results or other not in results:
            continue
        pair = results[one], results[other]
        if not all(each.records for each in pair):
            return "not yet run"
        ours, theirs = (each.mean(claim.metric) for each in pair)
        words.append(f"{number(ours, claim.metric)} against {number(theirs, claim.metric)}")
        if math.isnan(ours) or math.isnan(theirs):
            shown.append(VERDICTS[pair[0].complete - pair[1].complete])
            continue
        low, high = difference(claim.metric, *pair)
        if math.isnan(low):
            shown.append(ONE_SEED)
            continue
        signed = f"+.{places(claim.metric)}f"
        words[-1] += f": {theirs - ours:{signed}}, from {low:{signed}} to {high:{signed}}"
        shown.append(VERDICTS[(low > 0) - (high < 0)])
    if not shown:
        return "not in this edition"
    counts = {what: shown.count(what) for what in (*VERDICTS.values(), ONE_SEED)}
    parts = [
        what if count == len(shown) else f"{what} in {count} of {len(shown)}" for what, count in counts.items() if count
    ]
    return f"{', '.join(parts)} ({'; '.join(words)})"
