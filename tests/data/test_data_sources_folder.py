"""Folders against the arrays their files were written from, and scaling against torch's.

Lossless files must come back exactly, JPEG nearly; every orientation is compared with NumPy's
rotations; damaged, escaping and oversized files must be refused by name.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from knowledge_recycling.data.sources.folder import Config, load
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.errors import DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (16, 16), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
ORIENTATION = 274


def put(root: Path, name: str, image: np.ndarray | Image.Image = GREY, **options) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


def images(root: Path, **values) -> np.ndarray:
    return load(Config(path=root, **values))["train"].images


def refused(root: Path, **values) -> DataError:
    with pytest.raises(DataError) as caught:
        load_splits(Config(path=root, **values))
    error = caught.value
    assert None not in (error.where, error.expected, error.got, error.next_step)
    return error


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "tif", "tiff"])
def test_lossless_files_come_back_exactly(tmp_path, suffix):
    put(tmp_path, f"a/grey.{suffix}", GREY)
    np.testing.assert_array_equal(images(tmp_path), GREY[None, None])
    put(tmp_path, f"b/colour.{suffix}", COLOUR)
    both = images(tmp_path)
    np.testing.assert_array_equal(both[0], np.stack([GREY] * 3))
    np.testing.assert_array_equal(both[1], np.moveaxis(COLOUR, 2, 0))


def test_jpeg_comes_back_nearly(tmp_path):
    smooth = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 8
    put(tmp_path, "a/x.jpeg", smooth, quality=95)
    np.testing.assert_allclose(images(tmp_path)[0, 0], smooth, atol=4)


def test_classes_splits_and_order_come_from_the_names(tmp_path):
    for value, name in enumerate(["b/2.png", "a/10.png", "b/1.png", "a/deep/er/2.png", "a/1.png"]):
        put(tmp_path, name, np.full((8, 8), value, np.uint8))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    put(tmp_path, "a/.hidden.png")
    put(tmp_path, ".cache/x.png")
    put(tmp_path, "stray.png")
    train = load(Config(path=tmp_path))["train"]
    assert train.class_names == ("a", "b")
    assert train.images[:, 0, 0, 0].tolist() == [4, 1, 3, 2, 0]  # "1.png" < "10.png" < "deep"
    assert train.labels.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_split_folders_are_kept_as_they_are(tmp_path, val):
    for split in ("train", val, "test"):
        for name in ("a", "b"):
            put(tmp_path, f"{split}/{name}/0.png")
    put(tmp_path, "test/a/1.png")
    splits = load_splits(Config(path=tmp_path))
    assert [len(splits.train), len(splits.val), len(splits.test)] == [2, 2, 3]
    assert splits.test.labels.tolist() == [0, 0, 1]


def test_classes_may_be_called_like_splits(tmp_path):
    put(tmp_path, "train/0.png")
    put(tmp_path, "test/0.png")
    assert load(Config(path=tmp_path))["train"].class_names == ("test", "train")


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR, GREY.astype(np.uint16) * 256])
def test_orientation_is_honoured(tmp_path, pixels, suffix, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    wide = np.concatenate([pixels[:2], pixels, pixels[-2:]])  # 20 rows: the centre is `pixels`
    put(tmp_path, f"a/x.{suffix}", wide, exif=exif)
    read = np.moveaxis(images(tmp_path, image_size=16)[0], 0, 2)
    expected = TURNED[orientation](pixels if pixels.dtype == np.uint8 else GREY)
    np.testing.assert_allclose(read, np.atleast_3d(expected), atol=1)


@pytest.mark.parametrize(("height", "width", "side"), [(64, 64, 16), (40, 60, 20), (90, 30, 12)])
def test_scaling_is_an_antialiased_bicubic_then_cut_to_the_centre(tmp_path, height, width, side):
    rng = np.random.default_rng(0)
    pixels = rng.integers(80, 176, (height, width), dtype=np.uint8)  # overshoot is never clipped
    put(tmp_path, "a/x.png", pixels)
    rows, columns = (length * side // min(height, width) for length in (height, width))
    whole = torch.from_numpy(pixels)[None, None].float()
    scaled = functional.interpolate(whole, (rows, columns), mode="bicubic", antialias=True)
    top, left = (rows - side) // 2, (columns - side) // 2
    expected = scaled[0, 0, top : top + side, left : left + side]
    got = images(tmp_path, image_size=side)[0, 0].astype(float)
    np.testing.assert_allclose(got, expected.numpy(), atol=1)


def test_large_jpeg_is_scaled_as_if_decoded_in_full(tmp_path):
    y, x = np.mgrid[:400, :400]
    pixels = (127 + 60 * np.sin(x / 40) + 60 * np.cos(y / 55)).astype(np.uint8)
    put(tmp_path, "a/x.png", pixels)
    put(tmp_path, "b/x.jpg", pixels, quality=100)
    exact, reduced = images(tmp_path, image_size=20).astype(int)
    np.testing.assert_allclose(reduced, exact, atol=2)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [([28], 28), ([8], 8), ([3], 8), ([30, 30, 90], 32), ([29, 33], 32), ([500, 700], 64)],
)
def test_side_is_the_rounded_median_shorter_side(tmp_path, sides, expected):
    for number, side in enumerate(sides):
        put(tmp_path, f"a/{number}.png", np.zeros((side, side + 7), np.uint8))
    assert images(tmp_path).shape == (len(sides), 1, expected, expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("peak", "full"), [(200, 255), (1000, 1023), (4095, 4095), (4096, 8191)])
def test_16_bit_images_share_the_next_power_of_two(tmp_path, suffix, peak, full):
    bright = np.linspace(0, peak, 256).round().astype(np.uint16).reshape(16, 16)
    dark = bright // 4
    put(tmp_path, f"a/bright.{suffix}", bright)
    put(tmp_path, f"a/dark.{suffix}", dark)
    put(tmp_path, f"b/eight.{suffix}", GREY)
    read = images(tmp_path)[:, 0]
    np.testing.assert_array_equal(read[0], np.rint(bright / full * 255))
    np.testing.assert_array_equal(read[1], np.rint(dark / full * 255))
    np.testing.assert_array_equal(read[2], GREY)


def test_scaled_16_bit_image_is_the_scaled_8_bit_image(tmp_path):
    pixels = np.random.default_rng(0).integers(80, 176, (48, 48), dtype=np.uint8)
    put(tmp_path, "a/8.png", pixels)
    put(tmp_path, "a/16.png", pixels.astype(np.uint16) * 257)
    narrow, wide = images(tmp_path, image_size=16).astype(int)
    np.testing.assert_allclose(narrow, wide, atol=1)


@pytest.mark.parametrize(
    ("mode", "fill", "expected"),
    [
        ("1", 1, [255]),
        ("LA", (200, 0), [0]),
        ("LA", (200, 255), [200]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), [0]),
        ("CMYK", (0, 255, 255, 0), [255, 0, 0]),
    ],
)
def test_colour_spaces_and_transparency(tmp_path, mode, fill, expected):
    suffix = "tif" if mode == "CMYK" else "png"
    put(tmp_path, f"a/x.{suffix}", Image.new(mode, (8, 8), fill))
    assert images(tmp_path)[0, :, 4, 4].tolist() == expected


def test_palette_and_its_transparent_colour(tmp_path):
    indexed = Image.fromarray(COLOUR).quantize(16)
    put(tmp_path, "a/x.png", indexed)
    np.testing.assert_array_equal(
        images(tmp_path)[0], np.moveaxis(np.array(indexed.convert("RGB")), 2, 0)
    )
    put(tmp_path, "a/x.png", indexed, transparency=0)
    read = images(tmp_path)[0]
    assert read[:, np.array(indexed) == 0].max() == 0


def test_channels(tmp_path):
    put(tmp_path, "a/x.png", np.stack([GREY] * 3, axis=2))
    put(tmp_path, "a/y.png", GREY)
    assert images(tmp_path).shape[1] == 1  # RGB without colour is grey
    assert images(tmp_path, channels="rgb").shape[1] == 3
    put(tmp_path, "a/z.png", COLOUR)
    assert images(tmp_path).shape[1] == 3
    luma = COLOUR @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    np.testing.assert_allclose(images(tmp_path, channels="grey")[2, 0], luma, atol=1)


def two_classes(root: Path) -> None:
    for number in range(4):
        put(root, f"a/{number}.png")
        put(root, f"b/{number}.png")


def damage(root: Path) -> None:
    two_classes(root)
    whole = put(root, "a/cut.png", COLOUR).read_bytes()
    (root / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "b" / "text.jpg").write_text("no image")
    (root / "b" / "empty.tif").write_bytes(b"")


def test_every_unreadable_image_is_named(tmp_path):
    damage(tmp_path)
    message = str(refused(tmp_path))
    assert all(name in message for name in ("a/cut.png", "b/text.jpg", "b/empty.tif"))
    assert "skip_unreadable" in message


def test_unreadable_images_are_skipped_with_a_warning_where_the_recipe_says_so(tmp_path):
    damage(tmp_path)
    with pytest.warns(UserWarning, match="unreadable images skipped: 3: a/cut.png"):
        found = load(Config(path=tmp_path, skip_unreadable=True))
    assert found["train"].class_counts().tolist() == [4, 4]


def test_nothing_but_unreadable_images_is_refused_in_any_case(tmp_path):
    two_classes(tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    assert "cannot be read: 8" in str(refused(tmp_path, skip_unreadable=True))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_damaged_images_are_read_or_named_never_a_traceback(tmp_path, suffix, data):
    content = bytearray(put(tmp_path, f"a/x.{suffix}", COLOUR).read_bytes())
    content[data.draw(st.integers(0, min(60, len(content) - 1)))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    (tmp_path / "a" / f"x.{suffix}").write_bytes(content)
    with contextlib.suppress(DataError):
        assert len(images(tmp_path)) == 1


def test_decompression_bombs_are_refused_at_the_limit_of_pillow(tmp_path, monkeypatch):
    put(tmp_path, "a/x.png", np.zeros((20, 20), np.uint8))
    put(tmp_path, "b/x.png", np.zeros((10, 10), np.uint8))
    for limit in (399, 100):  # Pillow itself only warns up to twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        message = str(refused(tmp_path))
        assert "a/x.png" in message
        assert "b/x.png" not in message


def test_pages_and_other_depths_are_refused(tmp_path):
    pages = [Image.fromarray(GREY)] * 3
    put(tmp_path, "a/pages.tif", pages[0], save_all=True, append_images=pages[1:])
    put(tmp_path, "a/float.tif", GREY.astype(np.float32))
    put(tmp_path, "a/long.tif", GREY.astype(np.int32) * 1000)
    put(tmp_path, "a/negative.tif", GREY.astype(np.int32) - 300)
    message = str(refused(tmp_path))
    assert "cannot be read: 4" in message
    assert "several pages" in message
    assert "floating-point" in message
    assert message.count("expected 8 or 16 bit") == 3


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "no images in class folders"),
        (["x.png"], "no images in class folders"),
        (["a/x.png"], "one class only"),
        (["a/x.png", "b/notes.md"], "one class only"),
        (["train/a/x.png", "train/b/x.png", "extra/a/x.png"], "'extra' does not fit"),
        (["train/a/x.png", "val/a/x.png", "valid/a/x.png"], "'valid' does not fit"),
        (["training/a/x.png", "test/a/x.png"], "'training' does not fit"),
        (["val/a/x.png", "test/a/x.png"], "no train split"),
        (["train/a/x.png", "train/b/x.png", "test/c/x.png"], "'c' is absent from train"),
        (["train/a/x.png", "train/b/x.png", "test/a/notes.md"], "split is empty"),
        (["a/1.png", "a/2.png", "b/1.png"], "too few images"),
    ],
)
def test_unusable_folders_are_refused(tmp_path, files, words):
    for name in files:
        path = put(tmp_path, name) if name.endswith("png") else tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert words in str(refused(tmp_path))


def test_missing_folders_and_files_are_refused(tmp_path):
    assert "does not exist" in str(refused(tmp_path / "none"))
    assert "a file" in str(refused(put(tmp_path, "x.png")))


@pytest.mark.parametrize("link", ["a/link.png", "c", "a/folder"])
def test_links_out_of_the_folder_are_refused(tmp_path, link):
    root = tmp_path / "root"
    two_classes(root)
    outside = put(tmp_path, "outside/x.png")
    target = outside if link.endswith("png") else outside.parent
    (root / link).symlink_to(target)
    message = str(refused(root))
    assert "symbolic link" in message
    assert link in message


def test_links_to_files_inside_and_a_root_that_is_a_link_are_followed(tmp_path):
    root = tmp_path / "root"
    two_classes(root)
    (root / "a" / "link.png").symlink_to(root / "b" / "0.png")
    (tmp_path / "alias").symlink_to(root)
    assert len(images(tmp_path / "alias")) == 9


def test_groups_go_by_the_name_below_the_folder(tmp_path):
    two_classes(tmp_path / "set")
    rows = [f"{name}/{number}.png,p{number}" for name in "ab" for number in range(4)]
    (tmp_path / "groups.csv").write_text("\n".join(["name,group", *rows]))
    config = Config(path=tmp_path / "set", groups=tmp_path / "groups.csv")
    assert load(config)["train"].groups.tolist() == [0, 1, 2, 3] * 2
    splits = load_splits(config)
    assert [len(splits.train), len(splits.val), len(splits.test)] == [4, 2, 2]
    (tmp_path / "groups.csv").write_text("\n".join(["name,group", *rows[1:]]))
    with pytest.raises(DataError, match="1 images have no group") as caught:
        load(config)
    assert "a/0.png" in str(caught.value)
