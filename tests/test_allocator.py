"""What is freed is used again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Page faults of five steps, after two.
FAULTS = """
import resource, sys, torch
from diffusion_lab.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
convolution, norm = torch.nn.Conv2d(24, 24, 3, padding=1), torch.nn.GroupNorm(4, 24)
for i in range(7):
    if i == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = torch.randn(16, 24, 64, 64)
    for _ in range(4):
        x = torch.nn.functional.silu(norm(convolution(x)))
    x.sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives large blocks back at once")
def test_memory_that_is_freed_is_not_given_back() -> None:
    faults = {
        way: int(subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True).stdout)
        for way in ("keep", "give")
    }
    assert faults["keep"] < 0.1 * faults["give"]
