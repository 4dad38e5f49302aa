"""Peak memory of writing the synthetic set of a bundle, measured in a process of its own.

A set of 60,000 images and 30,000 members (in float64 over 500 MB) follow small ones: the peak of
what the process itself holds may not grow by more than some blocks. Pages of mapped files, which
the system takes back when it needs them, do not count.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import re, sys, threading, time
from pathlib import Path
import numpy as np
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.releasing import dataset

def mapped(path, size):
    path.parent.mkdir(exist_ok=True)
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (size, 3, 16, 16))
    rows = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)
    for start in range(0, size, 500):
        images[start : start + 500] = np.repeat(rows, 125, axis=0)[: size - start]
        images[start : start + 500, 0, 0, 0] = np.arange(start, start + 500) % 251
    del images
    images = np.load(path, mmap_mode="r")
    return ImageSet(images, np.zeros(size, np.int64), ("a", "b"))

def held_mib():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]) / 1024

peak = 0.0
def watch():
    global peak
    while True:
        peak = max(peak, held_mib())
        time.sleep(0.002)

def peak_mib(folder, size, members):
    synthetic, real = mapped(folder / "set.npy", size), mapped(folder / "real.npy", members)
    dataset._to_nearest(synthetic.images[:2000], real.images)
    dataset._to_nearest_other(real.images, np.arange(200))
    kept = np.arange(size)
    labels = lambda images: np.full((len(images), 2), 0.5)
    dataset.write_parquet(synthetic, kept, labels, folder / "set.parquet")
    dataset.write_npz(synthetic, kept, folder / "set.npz")
    return peak

threading.Thread(target=watch, daemon=True).start()
folder = Path(sys.argv[1])
small = peak_mib(folder / "small", 3_000, 6_000)
print(peak_mib(folder / "large", 60_000, 30_000) - small)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_sets(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=400
    )
    assert process.returncode == 0, process.stderr
    assert float(process.stdout) < 60
