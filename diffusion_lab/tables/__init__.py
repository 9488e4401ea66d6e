"""Tables of papers: what one is (spec), what has to be run for it (jobs), running it (run), and its result (report)."""

from diffusion_lab.tables.jobs import Measurement, Training
from diffusion_lab.tables.spec import Cell, Claim, Table, read_table

__all__ = ["Cell", "Claim", "Measurement", "Table", "Training", "read_table"]
