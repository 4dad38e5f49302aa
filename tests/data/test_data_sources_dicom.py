"""DICOM files that pydicom ships, against pydicom's own windowing and colour conversion.

Also: brightness is the same whichever photometric interpretation stores it, patients stay in one
split, and nothing of a patient reaches the run folder, the messages or the warnings.
"""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

import knowledge_recycling as kr
from knowledge_recycling.config import validate
from knowledge_recycling.data.sources.dicom import Config, linear_window, load
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.errors import DataError, RecipeError

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

SHIPPED = Path(pydicom.__file__).parent / "data/test_files"
MR = "MR_small.dcm"
PATIENT, NAME = "s3cr3t-patient", "Doe^Jane^S3cr3t"


def read(name: str = MR) -> Any:
    return pydicom.dcmread(SHIPPED / name)


def put(root: Path, name: str, file: Any) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    file.save_as(root / name)


def image_of(root: Path, file: Any, **values: Any) -> np.ndarray:
    put(root, "a/x.dcm", file)
    return load(Config(path=root, group_by="none", **values))["train"].images[0]


def grey(stored: np.ndarray, **elements: Any) -> Any:
    """Returns a file with these stored values and elements."""
    file = read()
    for name in ("WindowCenter", "WindowWidth"):
        delattr(file, name)
    signed = stored.dtype.kind == "i"
    bits = 8 * stored.itemsize
    file.Rows, file.Columns = stored.shape
    file.BitsAllocated = file.BitsStored = bits
    file.HighBit, file.PixelRepresentation = bits - 1, int(signed)
    file.PixelData = stored.tobytes()
    for name, value in elements.items():
        setattr(file, name, value)
    return file


RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 10


def scaled_to_bytes(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return np.asarray((values - low) / (high - low) * 255)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.5, -100), (2, -600)])
def test_windows_are_those_of_pydicom(tmp_path, function, slope, intercept):
    file = grey(RAMP, RescaleSlope=slope, RescaleIntercept=intercept, VOILUTFunction=function)
    file.WindowCenter, file.WindowWidth = 40, 150
    shown = pydicom.pixels.apply_windowing(pydicom.pixels.apply_rescale(RAMP, file), file)
    low, high = intercept, 65535 * slope + intercept  # pydicom shows on the range of the bits
    expected = (shown - low) / (high - low) * 255
    np.testing.assert_allclose(image_of(tmp_path, file)[0], expected, atol=0.51)


def test_the_window_of_the_recipe_wins(tmp_path):
    file = grey(RAMP, WindowCenter=[40, 300], WindowWidth=[150, 10])
    first = image_of(tmp_path, file)
    given = image_of(tmp_path, file, window=(300, 10))
    np.testing.assert_array_equal(first[0], np.rint(255 * linear_window(RAMP, 40, 150)))
    np.testing.assert_array_equal(given[0], np.rint(255 * linear_window(RAMP, 300, 10)))


def test_a_window_of_width_one_is_a_step():
    assert linear_window(np.array([2.0, 3.0]), 3.0, 1.0).tolist() == [0.0, 1.0]


def test_a_table_of_values_of_interest_is_applied(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor = [640, 0, 16]
    table.LUTData = [100 * value for value in range(640)]
    table["LUTDescriptor"].VR = "US"
    table["LUTData"].VR = "US"
    file = grey(RAMP, VOILUTSequence=[table])
    expected = np.rint(100 * RAMP.astype(float) / 65535 * 255)
    np.testing.assert_array_equal(image_of(tmp_path, file)[0], expected)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 300, "WindowWidth": 500}])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint8])
def test_brightness_does_not_depend_on_the_photometric_interpretation(tmp_path, window, dtype):
    stored = (RAMP // 4).astype(dtype)
    bright = image_of(tmp_path / "2", grey(stored, **window))
    largest = int(np.iinfo(dtype).max)
    inverted = {"RescaleSlope": -1, "RescaleIntercept": largest} if window else {}
    file = grey(largest - stored, PhotometricInterpretation="MONOCHROME1", **window, **inverted)
    dark = image_of(tmp_path / "1", file)
    expected = 255 - bright if window else bright  # a window is set on the rescaled values
    np.testing.assert_allclose(dark.astype(int), expected, atol=1)


def test_without_a_window_values_are_16_bit_grey(tmp_path):
    put(tmp_path, "a/bright.dcm", grey(RAMP))
    put(tmp_path, "b/dark.dcm", grey(RAMP // 2))
    images = load(Config(path=tmp_path, group_by="none"))["train"].images
    np.testing.assert_array_equal(images[0, 0], np.rint(RAMP / 1023 * 255))
    np.testing.assert_array_equal(images[1, 0], np.rint(RAMP // 2 / 1023 * 255))


def test_negative_values_ask_for_a_window(tmp_path):
    with pytest.raises(DataError, match="set `window`"):
        image_of(tmp_path, read("CT_small.dcm"))
    assert image_of(tmp_path, read("CT_small.dcm"), window=(40, 400)).max() == 255
    with pytest.raises(RecipeError, match="window"):
        validate(Config, {"path": "x", "window": [40, 0]})


@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm"]
)
def test_one_image_is_the_same_in_any_encoding(tmp_path, name):
    expected = image_of(tmp_path / "plain", read())
    np.testing.assert_array_equal(image_of(tmp_path / "other", read(name)), expected)


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_rle.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_ybr_full_422_uncompressed.dcm",
        "examples_palette.dcm", "SC_rgb_rle_16bit.dcm",
    ],
)  # fmt: skip
def test_colour_is_that_of_pydicom(tmp_path, name):
    file = read(name)
    pixels = pydicom.pixels.pixel_array(file)
    if "palette" in name:
        pixels = pydicom.pixels.apply_color_lut(pixels, file)
    pixels = (pixels / np.iinfo(pixels.dtype).max * 255).astype(np.uint8)
    square = ImageOps.fit(Image.fromarray(pixels), (16, 16), Image.Resampling.BICUBIC)
    got = np.moveaxis(image_of(tmp_path, file, image_size=16), 0, 2).astype(int)
    np.testing.assert_allclose(got, np.asarray(square), atol=2)


def test_all_shipped_files_are_read_or_refused_by_name(tmp_path):
    for number, path in enumerate(sorted(p for p in SHIPPED.rglob("*") if p.is_file())):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "ab"[number % 2] / f"{number}.dcm")
    config = Config(path=tmp_path, window=(40, 400), group_by="none")
    with pytest.raises(DataError, match="cannot be read") as caught:
        load(config)
    assert "Traceback" not in str(caught.value)
    with pytest.warns(UserWarning, match="unreadable images skipped"):
        found = load(config.model_copy(update={"skip_unreadable": True}))
    assert len(found["train"]) > 60


def patients(root: Path, images: int = 4) -> None:
    """Writes files of noise and stripes of six patients, half of the images of each class."""
    random = np.random.default_rng(0)
    for patient in range(6):
        for number in range(images):
            stored = random.integers(0, 200, (8, 8)).astype(np.uint16)
            stored[:, number % 2 :: 2] += 100
            file = grey(stored, PatientID=f"{PATIENT}-{patient}", PatientName=NAME)
            put(root, f"{'ab'[number % 2]}/{patient}{number}", file)  # no suffix


def test_patients_stay_in_one_split(tmp_path):
    patients(tmp_path)
    found = load(Config(path=tmp_path))["train"]
    assert found.groups.tolist() == [row // 2 for row in range(12)] * 2
    splits = load_splits(Config(path=tmp_path))
    parts = [set(part.groups.tolist()) for part in (splits.train, splits.val, splits.test)]
    assert set.union(*parts) == set(range(6))
    assert sum(map(len, parts)) == 6


def test_a_table_lists_files_of_any_name(tmp_path):
    patients(tmp_path / "files")
    names = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "files").rglob("*/*"))
    rows = [f"{name},{name.split('/')[1]}" for name in names if (tmp_path / name).is_file()]
    (tmp_path / "set.csv").write_text("\n".join(["path,label", *rows]))
    table = load(Config(path=tmp_path / "set.csv"))["train"]
    folder = load(Config(path=tmp_path / "files"))["train"]
    assert table.digest() == folder.digest()
    assert table.groups.tolist() == folder.groups.tolist()


def test_images_without_a_patient_are_refused_where_others_have_one(tmp_path):
    patients(tmp_path)
    put(tmp_path, "a/none", grey(RAMP, PatientID=""))
    with pytest.raises(DataError, match="1 of 25 images have no group") as caught:
        load(Config(path=tmp_path))
    assert PATIENT not in str(caught.value)
    assert load(Config(path=tmp_path, group_by="none"))["train"].groups is None


def test_messages_quote_nothing_of_a_patient(tmp_path):
    for number, name in enumerate(["Rows", "PixelData", "PhotometricInterpretation"]):
        file = grey(RAMP, PatientID=PATIENT, PatientName=NAME)
        delattr(file, name)
        put(tmp_path, f"a/{number}.dcm", file)
    content = bytearray((tmp_path / "a/1.dcm").read_bytes())
    for start in (m.start() for m in re.finditer(PATIENT.encode(), bytes(content))):
        content[start - 4 : start - 2] = b"US"  # a wrong kind of value, which pydicom may quote
    (tmp_path / "a/3.dcm").write_bytes(content)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(DataError) as caught:
            load(Config(path=tmp_path))
    words = "\n".join([str(caught.value), *(str(each.message) for each in said)])
    assert "cannot be read: 4" in words
    assert "s3cr3t" not in words.lower()


def test_a_run_folder_holds_nothing_of_a_patient(tmp_path):
    patients(tmp_path / "set", images=8)
    recipe = kr.Recipe.from_dict(
        {
            "data": {"kind": "dicom", "path": str(tmp_path / "set")},
            "teacher": {
                "classifier": {"width": 8, "blocks": 1},
                "training": {"images_seen": 32, "batch_size": 8, "snapshots": 1},
            },
            "generator": {"width": 16},
            "generator_training": {"images_seen": 32, "batch_size": 8, "candidates": 1},
            "tuning": {"trials": 0},
            "student": {"training": {"images_seen": 32, "batch_size": 8, "snapshots": 1}},
            "evaluation": {"resamples": 100, "quality_images": 50, "grid_images": 1},
            "compute": {"accelerator": "cpu", "precision": "32-true", "threads": 1},
        }
    )
    kr.run(recipe, tmp_path / "run")
    kr.write_report(tmp_path / "run", public=True)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        content = path.read_bytes().lower()
        assert b"s3cr3t" not in content, path
        assert NAME.lower().encode("utf-16-le") not in content, path
