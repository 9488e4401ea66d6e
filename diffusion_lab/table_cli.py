"""The table command: runs the rows of a paper's table, and prints and writes what came of them beside the paper."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import get_console
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table as Grid

from diffusion_lab.errors import InputError
from diffusion_lab.files import check_writable
from diffusion_lab.tables.check import check
from diffusion_lab.tables.jobs import Job, Training, jobs_of, measurements_of
from diffusion_lab.tables.report import grids, write
from diffusion_lab.tables.results import results_of, verdict
from diffusion_lab.tables.run import progress, spread, work_through
from diffusion_lab.tables.spec import read_table, read_yaml

FOLDER = Path("experiments/tables")


def run_table(options: argparse.Namespace) -> None:
    """Run or list what the options of `table` ask for; raises InputError for bad input."""
    if options.table is None:
        list_tables(options.folder)
        return
    table = read_table(options.table, options.edition)
    work = options.work or Path("logs", "tables", f"{table.name}_{table.edition}")
    jobs = jobs_of(table, work)
    results = options.results or options.table.parent / "results"
    for folder in (work, results):
        check_writable(folder / "any")
    if options.plan:
        print(progress(table, jobs))
        for job in jobs:
            print(f"{'done' if job.result.exists() else 'to do'}: {job.title}")
        return
    if not options.worker:
        check(table, jobs)
        print(progress(table, jobs))
    devices = 1 if options.worker else find_devices(options.devices)
    try:
        if devices > 1 and any(not job.result.exists() for job in jobs):
            spread(again(options), devices)
        else:
            quietly(jobs)
    except KeyboardInterrupt:
        if not options.worker:
            print(f"{progress(table, jobs)}; these are kept in {work}: repeat the command to go on", file=sys.stderr)
        raise
    if options.worker:
        return
    found = results_of(table, [*measurements_of(jobs)])
    console = Console()
    for heading, rows in grids(table, found):
        grid = Grid(*rows[0], title=heading or table.title)
        for row in rows[1:]:
            grid.add_row(*row)
        console.print(grid)
    for claim in table.claims:
        console.print(f"{claim.text}: {verdict(claim, found)}", highlight=False)
    command = f"diffusion-lab table {options.table} --edition {table.edition}"
    trainings = [job for job in jobs if isinstance(job, Training)]
    for path in write(table, found, results, command, trainings):
        print(f"wrote {path}")


def quietly(jobs: list[Job]) -> None:
    """Work through the jobs without what Lightning has to say of each."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    with told(jobs) as tell:
        work_through(jobs, tell)


@contextmanager
def told(jobs: list[Job]) -> Iterator[Callable[[Job], None]]:
    """What is told of each job before it runs: a bar that names it or, where there is no terminal, a line."""
    console = get_console()  # the one that Lightning's bars use, so that both can be shown at once
    if not console.is_terminal:
        yield lambda job: print(job.title, flush=True)
        return
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(jobs))
        yield lambda job: bar.update(task, description=job.title, completed=sum(each.result.exists() for each in jobs))


def find_devices(asked: int | None) -> int:
    """How many processes share the work: one for each GPU, or one, unless asked otherwise."""
    import torch

    there = torch.cuda.device_count()
    if asked is not None and (asked < 1 or (there and asked > there)):
        raise InputError(f"--devices must be from 1 to {there or 'the number of cores'}: got {asked}")
    return asked or max(1, there)


def again(options: argparse.Namespace) -> list[str]:
    """The arguments with which each process of several is started."""
    arguments = [str(options.table)]
    for name in ("edition", "work", "results"):
        if (value := getattr(options, name)) is not None:
            arguments += [f"--{name}", str(value)]
    return arguments


def list_tables(folder: Path) -> None:
    """Print every table's editions, how long they take and whether there is a result."""
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise InputError(f"no tables in {folder}: give the YAML of one, or --folder")
    grid = Grid("table", "paper", "edition", "time", "result")
    for path in paths:
        spec = read_yaml(path)
        for i, (name, edition) in enumerate(spec["editions"].items()):
            result = path.parent / "results" / f"{path.stem}_{name}.md"
            of = (path.stem, f"{spec['paper']['arxiv']}, {spec['paper']['table']}") if i == 0 else ("", "")
            grid.add_row(*of, name, str(edition["time"]), str(result) if result.is_file() else "not yet run")
    Console().print(grid)
