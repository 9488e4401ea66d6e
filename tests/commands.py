"""`diffusion-lab` as its tests run it."""

from __future__ import annotations

import sys

import pytest

from diffusion_lab.cli import main


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["diffusion-lab", *map(str, arguments)])
    try:
        main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0
