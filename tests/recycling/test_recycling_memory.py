"""Peak memory of the regenerating stream, measured in a process of its own.

A set of 300 MB is drawn, and batches all over it are read, after one of 3 MB: the peak may not grow
by more than a few batches.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
from knowledge_recycling.compute import ComputeConfig, make_fabric
from knowledge_recycling.context import Context
from knowledge_recycling.progress import SilentReporter
from knowledge_recycling.recycling.synthesis import RegeneratingStream, Source

class Grey(nn.Module):
    def sample(self, labels, seeds, knobs):
        return (seeds % 3 - 1).float()[:, None, None, None].expand(-1, 3, 32, 32)

def peak_mib(size, folder):
    context = Context(make_fabric(ComputeConfig(accelerator="cpu")), 0, SilentReporter())
    source = Source(Grey(), {}, ("a", "b"), np.array([0.5, 0.5]), None, nn.Identity())
    stream = RegeneratingStream(
        source, size=size, batch_size=64, period=1, name="s", folder=folder, context=context
    )
    for step in range(0, size // 64, max(1, size // 64 // 200)):
        assert stream(step)[0].shape == (64, 3, 32, 32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

folder = Path(sys.argv[1])
small = peak_mib(1_000, folder / "small")
print(peak_mib(100_000, folder / "large") - small)
"""


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert process.returncode == 0, process.stderr
    stored = sum(path.stat().st_size for path in (tmp_path / "large").iterdir()) / 2**20
    assert stored > 290
    assert float(process.stdout) < 30
