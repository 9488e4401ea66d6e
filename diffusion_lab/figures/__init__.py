"""Figures for papers and notebooks.

Each function takes several objects by the names they have in the legend and gives a matplotlib figure, which a notebook
shows and `figure.savefig("schedules.pdf")` writes.
"""

from diffusion_lab.figures.guidance import plot_guidance
from diffusion_lab.figures.objectives import (
    Objective,
    effective_weight,
    plot_densities,
    plot_schedules,
    plot_weightings,
)
from diffusion_lab.figures.runs import Run, plot_runs, read_run
from diffusion_lab.figures.samplers import plot_errors, plot_trajectories

__all__ = [
    "Objective",
    "Run",
    "effective_weight",
    "plot_densities",
    "plot_errors",
    "plot_guidance",
    "plot_runs",
    "plot_schedules",
    "plot_trajectories",
    "plot_weightings",
    "read_run",
]
