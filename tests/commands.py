"""`diffusion-lab` as its tests run it."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

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


def interruptible(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own, which Ctrl-C reaches.

    A shell starts what runs in its background with interrupts ignored, and children inherit that, but no handler.
    """
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen([sys.executable, "-m", "diffusion_lab", *map(str, arguments)], text=True, **options)
    finally:
        signal.signal(signal.SIGINT, ours)
