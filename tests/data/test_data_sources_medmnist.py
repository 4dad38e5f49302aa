"""MedMNIST sets through their package, on small files of the same form and on the real one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from knowledge_recycling.data.sources.medmnist import Config, load
from knowledge_recycling.errors import DataError, KRError, RecipeError

REAL = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def package(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # it makes a folder there
    return pytest.importorskip("medmnist", reason="the extra `medmnist` is not installed")


def arrays(side: int = 28, num_classes: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {}
    for split, size in (("train", 20), ("val", 8), ("test", 10)):
        made[f"{split}_images"] = rng.integers(0, 256, (size, side, side), dtype=np.uint8)
        made[f"{split}_labels"] = (np.arange(size, dtype=np.uint8) % num_classes)[:, None]
    return made


def refused(config: Config, kind: type[KRError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        load(config)
    error = caught.value
    assert None not in (error.where, error.expected, error.got, error.next_step)
    return str(error)


@pytest.mark.parametrize(("size", "suffix"), [(28, ""), (64, "_64")])
def test_official_splits_and_class_names(package, tmp_path, size, suffix):
    written = arrays(size)
    np.savez(tmp_path / f"breastmnist{suffix}.npz", **written)
    found = load(Config(name="breastmnist", root=tmp_path, size=size))
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(found[split].images[:, 0], written[f"{split}_images"])
        np.testing.assert_array_equal(found[split].labels, written[f"{split}_labels"][:, 0])
        assert found[split].class_names == ("malignant", "normal, benign")


def test_real_set_has_the_sizes_of_the_package_table(package):
    if not (REAL / "retinamnist.npz").exists():
        pytest.skip("shared/data is not there")
    found = load(Config(name="retinamnist", root=REAL))
    sizes = {split: len(part) for split, part in found.items()}
    assert sizes == package.INFO["retinamnist"]["n_samples"]
    assert found["train"].shape == (3, 28, 28)


def test_absent_file_names_the_flag_and_nothing_is_fetched(package, tmp_path, monkeypatch):
    monkeypatch.setattr(package.BreastMNIST, "download", lambda self: pytest.fail("fetched"))
    assert "download = true" in refused(Config(name="breastmnist", root=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_download_is_the_one_of_the_package(package, tmp_path, monkeypatch):
    def fetch(self) -> None:
        np.savez(Path(self.root, "breastmnist.npz"), **arrays())

    monkeypatch.setattr(package.BreastMNIST, "download", fetch)
    config = Config(name="breastmnist", root=tmp_path / "new", download=True)
    assert len(load(config)["test"]) == 10


def test_failed_download_is_a_clear_error(package, tmp_path, monkeypatch):
    def fail(self) -> None:
        raise RuntimeError("Automatic download failed!")

    monkeypatch.setattr(package.BreastMNIST, "download", fail)
    config = Config(name="breastmnist", root=tmp_path, download=True)
    assert "Automatic download failed" in refused(config)


@pytest.mark.parametrize("error", [KeyError("val_labels"), ValueError("pickled"), OSError("cut")])
def test_what_the_loader_raises_on_a_damaged_file_is_a_clear_error(
    package, tmp_path, monkeypatch, error
):
    def fail(self, **arguments) -> None:
        raise error

    np.savez(tmp_path / "breastmnist.npz", **arrays())
    monkeypatch.setattr(package.BreastMNIST, "__init__", fail)
    message = refused(Config(name="breastmnist", root=tmp_path))
    assert "breastmnist.npz" in message
    assert str(error) in message


def test_wrong_arrays_are_refused_like_those_of_any_archive(package, tmp_path):
    np.savez(tmp_path / "breastmnist.npz", **arrays() | {"val_labels": np.zeros((8, 3), int)})
    assert "several labels per image" in refused(Config(name="breastmnist", root=tmp_path))


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({"name": "brestmnist"}, RecipeError, "did you mean 'breastmnist'?"),
        ({"name": "breastmnist", "size": 29}, RecipeError, "28, 64, 128, 224"),
        ({"name": "chestmnist"}, DataError, "several labels per image"),
        ({"name": "organmnist3d"}, DataError, "volumes"),
    ],
)
def test_sets_that_cannot_be_used_are_refused(package, tmp_path, values, kind, words):
    assert words in refused(Config(root=tmp_path, **values), kind)


def test_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(KRError, match=r"pip install 'knowledge-recycling\[medmnist\]'"):
        load(Config(name="breastmnist", root=tmp_path))
