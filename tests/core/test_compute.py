"""What a process frees stays with it: counted by the system's page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PAGES = """
import resource, sys
import torch
from knowledge_recycling.compute import ComputeConfig, make_fabric

if sys.argv[1] == "kept":
    make_fabric(ComputeConfig(accelerator="cpu"))

def step():  # two blocks of 80 MiB, which glibc by itself always gives back
    images = torch.ones(20, 2**20)
    return float((images + 1)[0, 0])

for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    """Returns the pages that five steps take from the system after five."""
    command = [sys.executable, "-W", "ignore", "-c", PAGES, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tells glibc what to do")
def test_freed_memory_is_not_taken_from_the_system_again() -> None:
    assert page_faults("kept") * 4 < page_faults("as it comes")
