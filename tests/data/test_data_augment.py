"""Augmentations, image by image, against NumPy's flips, turns and padding, torchvision's rotation
and fitted lines; measured flips against sets made with known symmetries, and against real ones.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from sklearn.datasets import load_digits
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.functional import rotate as torchvision_rotate

from knowledge_recycling.config import Config, validate
from knowledge_recycling.data.augment import (
    AUGMENTATIONS,
    MAX_DEGREES,
    NOISE_STD,
    AugmentationName,
    augment,
    augment_half,
    measured_symmetries,
)
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.errors import RecipeError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(*shape, dtype=torch.float32) -> torch.Tensor:
    images = torch.rand(shape, generator=generator(99), dtype=dtype) * 2 - 1
    return images.contiguous(memory_format=torch.channels_last)


SQUARE, OBLONG = [(64, 1, 8, 8), (16, 3, 28, 28)], [(16, 3, 12, 20)]


@pytest.mark.parametrize(
    ("name", "shape"),
    [*product(AUGMENTATIONS, SQUARE), *product(sorted({*AUGMENTATIONS} - {"rot90"}), OBLONG)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_is_like_the_input_and_the_input_untouched(name, shape, dtype):
    images = random_images(*shape, dtype=dtype)
    before = images.clone()
    changed = augment(images, [name], generator())
    assert torch.equal(images, before)
    assert (changed.shape, changed.dtype, changed.device) == (shape, dtype, images.device)
    assert changed.is_contiguous(memory_format=torch.channels_last)
    assert changed.abs().max() <= 1 + 1e-6
    assert not torch.equal(changed, images)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_same_generator_same_images_whatever_the_memory_format(name):
    images = random_images(32, 3, 16, 16)
    once = augment(images, [name], generator(1))
    again = augment(images.contiguous(), [name], generator(1))
    other = augment(images, [name], generator(2))
    torch.testing.assert_close(once, again)
    assert not torch.equal(once, other)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_image_has_its_own_draw(name):
    images = random_images(1, 3, 16, 16).expand(64, -1, -1, -1)
    changed = augment(images, [name], generator())
    assert len(torch.unique(changed.flatten(1), dim=0)) > 1


def test_augmentations_are_applied_in_order():
    images = random_images(32, 3, 16, 16)
    stream = generator()
    by_hand = images
    for name in ("shift", "cutout", "hflip"):
        by_hand = augment(by_hand, [name], stream)
    assert torch.equal(augment(images, ("shift", "cutout", "hflip"), generator()), by_hand)
    assert torch.equal(augment(images, (), generator()), images)


def test_half_of_the_images_get_all_of_the_extra_augmentations_and_the_others_none():
    images, names = random_images(1000, 1, 8, 8), ["intensity", "noise"]
    changed = augment(images, names, generator())
    half = augment_half(images, names, generator())
    is_changed = (half == changed).flatten(1).all(1)
    is_plain = (half == images).flatten(1).all(1)
    assert (is_changed ^ is_plain).all()
    assert abs(int(is_changed.sum()) - 500) < 5 * np.sqrt(1000 / 4)
    assert augment_half(images, [], generator()) is images


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("hflip", [lambda image: image, lambda image: image[:, :, ::-1]]),
        ("vflip", [lambda image: image, lambda image: image[:, ::-1]]),
        ("rot90", [lambda image, k=k: np.rot90(image, k, axes=(1, 2)) for k in range(4)]),
    ],
)
def test_flips_and_turns_are_those_of_numpy_and_equally_likely(name, variants):
    images = random_images(400, 3, 9, 9)
    counts = np.zeros(len(variants))
    for before, after in zip(
        images.numpy(), augment(images, [name], generator()).numpy(), strict=True
    ):
        counts += [np.array_equal(variant(before), after) for variant in variants]
    assert counts.sum() == 400
    np.testing.assert_allclose(counts / 400, 1 / len(variants), atol=0.08)


def test_shift_is_a_crop_of_the_mirrored_image_by_up_to_an_eighth():
    images = random_images(300, 2, 16, 24)
    offsets = set()
    for before, after in zip(
        images.numpy(), augment(images, ["shift"], generator()).numpy(), strict=True
    ):
        padded = np.pad(before, ((0, 0), (2, 2), (3, 3)), mode="reflect")
        crops = {
            (row, column): padded[:, row : row + 16, column : column + 24]
            for row, column in product(range(5), range(7))
        }
        found = [offset for offset, crop in crops.items() if np.array_equal(crop, after)]
        assert len(found) == 1
        offsets.update(found)
    assert offsets == set(product(range(5), range(7)))


def test_cutout_hides_one_rectangle_behind_the_mean():
    images = random_images(300, 3, 12, 16)
    changed = augment(images, ["cutout"], generator()).numpy()
    hidden_at = []
    for before, after in zip(images.numpy(), changed, strict=True):
        hidden = (before != after).all(axis=0)
        rows, columns = hidden.any(axis=1), hidden.any(axis=0)
        np.testing.assert_array_equal(hidden, rows[:, None] & columns)
        assert np.diff(np.flatnonzero(rows)).max(initial=1) == 1
        assert np.diff(np.flatnonzero(columns)).max(initial=1) == 1
        np.testing.assert_array_equal(before[:, ~hidden], after[:, ~hidden])
        mean = np.broadcast_to(before.mean(axis=(1, 2))[:, None], after[:, hidden].shape)
        np.testing.assert_allclose(after[:, hidden], mean, rtol=1e-4, atol=1e-6)
        hidden_at.append(hidden)
    areas = np.sum(hidden_at, axis=(1, 2))
    assert 3 * 4 <= areas.min() < 3 * 8
    assert areas.max() == 6 * 8
    assert np.mean(hidden_at, axis=0).min() > 0


@pytest.mark.parametrize("shape", [(16, 1, 28, 28), (16, 3, 20, 32)])
def test_rotate_is_torchvisions_away_from_the_edge(shape):
    images = random_images(*shape)
    angles = (2 * torch.rand(len(images), generator=generator()) - 1) * MAX_DEGREES
    changed = augment(images, ["rotate"], generator())
    inside = (..., slice(6, -6), slice(6, -6))
    for image, after, angle in zip(images, changed, angles.tolist(), strict=True):
        expected = torchvision_rotate(image, angle, InterpolationMode.BILINEAR)
        torch.testing.assert_close(after[inside], expected[inside], atol=1e-4, rtol=0)
    assert angles.abs().max() > 10


def test_rotate_leaves_a_plain_image_alone():
    plain = torch.full((8, 3, 16, 16), 0.3)
    torch.testing.assert_close(augment(plain, ["rotate"], generator()), plain)


def test_intensity_is_linear_in_each_image_and_within_its_bounds():
    images = random_images(300, 3, 10, 10) / 2
    fits = []
    for before, after in zip(images, augment(images, ["intensity"], generator()), strict=True):
        contrast, offset = np.polyfit(before.flatten(), after.flatten(), 1)
        np.testing.assert_allclose(after, contrast * before + offset, atol=1e-5)
        fits.append((contrast, float(after.mean() - before.mean())))
    lowest, highest = np.min(fits, axis=0), np.max(fits, axis=0)
    np.testing.assert_allclose([lowest, highest], [[0.8, -0.1], [1.2, 0.1]], atol=0.01)


def test_noise_is_gaussian_of_the_stated_size():
    difference = augment(torch.zeros(64, 3, 16, 16), ["noise"], generator()).numpy()
    np.testing.assert_allclose([difference.mean(), difference.std()], [0, NOISE_STD], atol=1e-3)


def test_corruption_is_contrast_blur_and_brightness_within_their_bounds(monkeypatch):
    monkeypatch.setattr("knowledge_recycling.data.augment.CORRUPTION_NOISE", 0.0)
    images = random_images(32, 1, 12, 12, dtype=torch.float64) * 0.4
    for before, after in zip(images, augment(images, ["corrupt"], generator()), strict=True):
        pixels = before[0].numpy()
        blurred = uniform_filter(pixels, 3, mode="nearest")
        columns = np.stack([pixels.ravel(), blurred.ravel(), np.ones(pixels.size)], axis=1)
        weights, residual, *_ = np.linalg.lstsq(columns, after[0].numpy().ravel())
        assert residual < 1e-20
        sharp, soft, level = weights
        brightness = level - pixels.mean() * (1 - sharp - soft)
        assert 0.6 <= sharp + soft <= 1.4
        assert 0 <= soft <= sharp + soft
        assert abs(brightness) <= 0.25


def test_corruption_adds_noise_of_at_most_the_stated_size():
    corrupted = augment(torch.zeros(64, 3, 16, 16), ["corrupt"], generator())
    stds = corrupted.std(dim=(1, 2, 3)).numpy()
    assert stds.max() < 0.11
    assert stds.min() < 0.02 < 0.08 < stds.max()


def test_unknown_name_is_an_error_with_the_nearest_name():
    with pytest.raises(RecipeError, match="did you mean 'hflip'") as caught:
        augment(random_images(2, 1, 8, 8), ["hlfip"], generator())
    assert "cutout" in str(caught.value)


def test_a_recipe_field_of_names_is_checked_when_it_is_read():
    class Example(Config):
        augment: tuple[AugmentationName, ...]

    assert validate(Example, {"augment": ["shift"]}).augment == ("shift",)
    with pytest.raises(RecipeError, match="unknown augmentation 'shfit'"):
        validate(Example, {"augment": ["shfit"]})


def test_rot90_of_oblong_images_is_an_error():
    with pytest.raises(RecipeError, match="square"):
        augment(random_images(2, 1, 8, 12), ["rot90"], generator())


def made_set(seed, draw, count=300) -> ImageSet:
    """Returns noise images of two classes, a bright spot of each placed by `draw(rng, label)`."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 2
    images = rng.integers(0, 60, (count, 1, 16, 16), dtype=np.uint8)
    for image, label in zip(images[:, 0], labels, strict=True):
        row, column, height, width = draw(rng, label)
        image[row : row + height, column : column + width] += 150
    return ImageSet(images, labels, ("a", "b"))


def anywhere(rng, label):
    """The class is the spot's size."""
    side = 3 + 5 * label
    return (*rng.integers(0, 16 - side, 2), side, side)


def left_or_right(rng, label):
    return rng.integers(0, 10), rng.integers(0, 3) + 9 * label, 4, 4


def top_or_bottom(rng, label):
    return rng.integers(0, 3) + 9 * label, rng.integers(0, 10), 4, 4


def no_matter_what(rng, label):
    return (*rng.integers(0, 10, 2), 4, 4)


@pytest.mark.parametrize(
    ("draw", "symmetries"),
    [
        (anywhere, ("hflip", "vflip")),
        (left_or_right, ("vflip",)),
        (top_or_bottom, ("hflip",)),
        (no_matter_what, ()),
    ],
)
def test_measured_symmetries_are_those_the_set_was_made_with(draw, symmetries):
    assert measured_symmetries(made_set(0, draw), made_set(1, draw, 100)) == symmetries


def test_few_images_are_no_evidence():
    assert measured_symmetries(made_set(0, anywhere, 30), made_set(1, anywhere, 10)) == ()


def test_digits_allow_no_flip():
    digits = load_digits()
    images = np.rint(digits.images[:, None] * (255 / 16)).astype(np.uint8)
    names = tuple(map(str, range(10)))
    whole = ImageSet(images, digits.target.astype(np.int64), names)
    for size in (200, 1200):
        train, val = whole.subset(np.arange(size)), whole.subset(np.arange(1200, 1500))
        assert measured_symmetries(train, val) == ()


@pytest.mark.parametrize(
    ("name", "symmetries"),
    [
        ("breastmnist", ("hflip",)),
        ("pneumoniamnist", ()),
        ("retinamnist", ("hflip", "vflip")),
        ("bloodmnist_rebuilt", ("hflip", "vflip")),
    ],
)
def test_real_sets_allow_the_flips_that_their_subject_does(name, symmetries):
    path = SHARED / f"{name}.npz"
    if not path.exists():
        pytest.skip("the real sets are not there")
    with np.load(path, allow_pickle=False) as arrays:
        splits = [from_arrays(arrays, split) for split in ("train", "val")]
    assert measured_symmetries(*splits) == symmetries


def from_arrays(arrays, split) -> ImageSet:
    images = arrays[f"{split}_images"]
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    labels = arrays[f"{split}_labels"].ravel().astype(np.int64)
    return ImageSet(images, labels, tuple(map(str, range(labels.max() + 1))))
