"""Sample grids: decoded with Pillow and compared pixel by pixel with the images they came from."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knowledge_recycling.errors import RunError
from knowledge_recycling.reporting.samples import BUDGET_BYTES, read_samples


def save(run: Path, **arrays: np.ndarray) -> None:
    (run / "evaluation").mkdir()
    np.savez(run / "evaluation" / "samples.npz", **arrays)


def decode(address: str | None) -> np.ndarray:
    assert address is not None
    content = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)))


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_grids_show_every_image_in_order(tmp_path: Path, channels: int) -> None:
    images = random_images(2, 7, channels, 6, 8)
    save(tmp_path, real=images, synthetic=255 - images)
    samples = read_samples(tmp_path, ["a", "b"], with_real=True, limit=9)
    assert [each.class_name for each in samples] == ["a", "b"]
    for index, each in enumerate(samples):
        for address, expected in ((each.real, images), (each.synthetic, 255 - images)):
            picture = decode(address)
            assert picture.shape == (2 * 6 + 1, 5 * 8 + 4, channels + 1)
            visible = np.zeros(picture.shape[:2], dtype=bool)
            for number in range(7):
                top, left = 7 * (number // 5), 9 * (number % 5)
                tile = picture[top : top + 6, left : left + 8]
                np.testing.assert_array_equal(
                    tile[..., :-1].transpose(2, 0, 1), expected[index, number]
                )
                visible[top : top + 6, left : left + 8] = True
            np.testing.assert_array_equal(picture[..., -1], 255 * visible)


def test_large_images_are_reduced_to_the_budget_and_keep_their_mean(tmp_path: Path) -> None:
    images = random_images(6, 10, 3, 224, 160)
    save(tmp_path, real=images, synthetic=images)
    samples = read_samples(tmp_path, list("abcdef"), with_real=True, limit=9)
    characters = sum(len(each.real or "") + len(each.synthetic or "") for each in samples)
    assert characters < 7 * 2**20
    picture = decode(samples[0].real).astype(float)
    opaque = picture[..., -1] == 255
    assert opaque.sum() * 3 * 12 <= BUDGET_BYTES
    assert picture[opaque][:, :3].mean() == pytest.approx(images[0].mean(), abs=1)


def test_only_so_many_classes_are_shown(tmp_path: Path) -> None:
    images = random_images(5, 2, 1, 4, 4)
    save(tmp_path, real=images, synthetic=images)
    samples = read_samples(tmp_path, list("abcde"), with_real=True, limit=3)
    assert [each.class_name for each in samples] == ["a", "b", "c"]


def test_real_images_are_not_even_read_when_not_wanted(tmp_path: Path) -> None:
    unreadable = np.array([{"pickled": "object"}], dtype=object)
    save(tmp_path, real=unreadable, synthetic=random_images(1, 2, 1, 4, 4))
    (public,) = read_samples(tmp_path, ["a"], with_real=False, limit=9)
    assert public.real is None
    assert public.synthetic is not None
    with pytest.raises(RunError, match="sample images"):
        read_samples(tmp_path, ["a"], with_real=True, limit=9)


def test_a_run_without_samples_has_none(tmp_path: Path) -> None:
    assert read_samples(tmp_path, ["a"], with_real=True, limit=9) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        random_images(3, 2, 1, 4, 4),
        random_images(2, 1, 4, 4),
        random_images(2, 2, 1, 4, 4).astype(np.float32),
    ],
    ids=["classes", "dimensions", "type"],
)
def test_samples_that_do_not_fit_are_named(tmp_path: Path, wrong: np.ndarray) -> None:
    save(tmp_path, real=wrong, synthetic=wrong)
    with pytest.raises(RunError) as caught:
        read_samples(tmp_path, ["a", "b"], with_real=True, limit=9)
    assert "samples.npz" in str(caught.value.where)
    assert str(list(wrong.shape)) in str(caught.value.got)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    save(tmp_path, synthetic=random_images(1, 2, 1, 4, 4))
    path = tmp_path / "evaluation" / "samples.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RunError, match="sample images"):
        read_samples(tmp_path, ["a"], with_real=False, limit=9)
