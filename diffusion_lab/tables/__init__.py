"""Tables of papers: what one is, what has to be run for it, running it once, and what is made of the numbers."""

from diffusion_lab.tables.jobs import Measurement, Training
from diffusion_lab.tables.spec import Cell, Claim, Table, read_table

__all__ = ["Cell", "Claim", "Measurement", "Table", "Training", "read_table"]
