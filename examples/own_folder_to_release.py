"""An own folder of images to a release, through the command line, in a few minutes on two cores.

    python examples/own_folder_to_release.py WORK

WORK is a new folder. Its images are scikit-learn's digits; put yours there instead and leave out
`TINY`: these trainings are too short for anything but a look at how it goes.
"""

import subprocess
import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

TINY = [
    "teacher.classifier.width=8",
    "teacher.training.images_seen=2500",
    "generator.width=16",
    "generator_training.images_seen=2000",
    "student.training.images_seen=2500",
    "tuning.trials=1",
    "audit.shadows=8",  # an audit to believe has 64 or more
    "audit.queries=1",
]


def kr(*arguments: object) -> int:
    """Runs the command `kr`, shows what it says, and returns its exit code."""
    print("\n$ kr", *arguments, flush=True)
    command = [sys.executable, "-m", "knowledge_recycling.cli", *map(str, arguments)]
    return subprocess.run(command, check=False).returncode


def write_images(folder: Path, per_class: int = 60) -> None:
    """Writes digits as PNG files, one sub-folder per class."""
    digits = load_digits()
    for number in range(10):
        (folder / f"digit {number}").mkdir(parents=True)
        for index, image in enumerate(digits.images[digits.target == number][:per_class]):
            pixels = (image * 255 / 16).astype("uint8")
            Image.fromarray(pixels).save(folder / f"digit {number}" / f"{index:03d}.png")


work = Path(sys.argv[1])
images, recipe, run, bundle = (work / name for name in ("images", "my.toml", "run", "bundle"))
write_images(images)

# A recipe to start from. Its one required key is where the images are.
assert kr("new", recipe, "--kind", "folder") == 0
text = recipe.read_text(encoding="utf-8")
recipe.write_text(text.replace('path = "..."', f"path = '{images}'"), encoding="utf-8")

# Look at the set before anything is trained: counts, shapes, duplicates, classes that are rare.
assert kr("check", recipe) == 0

# Teacher, generator, selection, student, evaluation and, as `audit.shadows` is set, the audit.
# The same command goes on after a stop. Without the audit here, `kr audit RUN` makes it later.
settings = [part for setting in TINY for part in ("--set", setting)]
assert kr("run", recipe, "--out", run, "--quiet", *settings) == 0
assert kr("report", run, "--public") == 0

# The policy under [release] decides; where it refuses, look first at what it says.
if kr("release", run, bundle, "--name", "handwritten digits") != 0:
    reason = "an example with public images; nobody is exposed"
    assert kr("release", run, bundle, "--name", "handwritten digits", "--override", reason) == 0

# Whoever gets the bundle checks it, and classifies images with it.
assert kr("verify", bundle) == 0
assert kr("predict", bundle, images / "digit 3", "--csv", work / "answers.csv") == 0
print("\nreport with real images, for inside:", run / "report.html")
print("report to hand on:", run / "report-public.html")
print("bundle to hand on:", bundle)
