"""Archives against the arrays they were written from; everything unusable is refused in full.

Also the groups, from arrays and from CSV files, which all sources of rows share.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knowledge_recycling.config import validate
from knowledge_recycling.data.sources.npz import Config, load
from knowledge_recycling.errors import DataError, RecipeError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 6, 5), dtype=np.uint8)
RGB = RNG.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def saved(path: Path, **arrays) -> Config:
    np.savez_compressed(path / "set.npz", **arrays)
    return Config(path=path / "set.npz")


def refused(config: Config) -> DataError:
    with pytest.raises(DataError) as caught:
        load(config)
    error = caught.value
    assert None not in (error.where, error.expected, error.got, error.next_step)
    assert str(config.path) in str(error)
    return error


IMAGES = pytest.mark.parametrize(
    ("images", "expected"),
    [
        (GREY, GREY[:, None]),
        (GREY[..., None], GREY[:, None]),
        (RGB, np.stack([RGB[..., 0], RGB[..., 1], RGB[..., 2]], axis=1)),
        ((GREY / 255).astype(np.float32), GREY[:, None]),
        ((GREY / 255).astype(np.float16), GREY[:, None]),
        (GREY / 255, GREY[:, None]),
        (np.asfortranarray(RGB), np.moveaxis(RGB, 3, 1)),
    ],
)


@IMAGES
def test_images_are_those_written(tmp_path, images, expected):
    found = load(saved(tmp_path, train_images=images, train_labels=LABELS))
    assert set(found) == {"train"}
    np.testing.assert_array_equal(found["train"].images, expected)
    np.testing.assert_array_equal(found["train"].labels, LABELS)
    assert found["train"].class_names == ("0", "1", "2")


@pytest.mark.parametrize("shape", [(12,), (12, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_labels_need_not_start_at_zero(tmp_path, shape, dtype):
    labels = np.array([3, 10, 7] * 4, dtype).reshape(shape)
    train = load(saved(tmp_path, train_images=GREY, train_labels=labels))["train"]
    assert train.class_names == ("3", "7", "10")
    np.testing.assert_array_equal(train.labels, [0, 2, 1] * 4)


def test_classes_are_those_of_all_splits_together(tmp_path):
    arrays = {"train_images": GREY, "train_labels": LABELS, "test_images": GREY}
    found = load(saved(tmp_path, **arrays, test_labels=np.full(12, 9)))
    assert found["train"].class_names == found["test"].class_names == ("0", "1", "2", "9")


@IMAGES
def test_an_archive_that_is_not_compressed_is_mapped(tmp_path, images, expected):
    np.savez(tmp_path / "plain.npz", train_images=images, train_labels=LABELS)
    mapped = load(Config(path=tmp_path / "plain.npz"))["train"]
    np.testing.assert_array_equal(mapped.images, expected)
    np.testing.assert_array_equal(mapped.labels, LABELS)
    assert is_mapped(mapped.images) == (images.dtype == np.uint8)
    read = load(saved(tmp_path, train_images=images, train_labels=LABELS))["train"]
    assert not is_mapped(read.images)
    assert mapped.digest() == read.digest(), "how it is stored is of no account"


def is_mapped(array) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


def test_damage_to_a_mapped_image_is_found(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, train_images=RGB, train_labels=LABELS)
    content = bytearray(path.read_bytes())
    content[content.index(RGB.tobytes()) + 100] ^= 1
    path.write_bytes(content)
    assert "CRC" in str(refused(Config(path=path)))


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([0, 1, 2], ["a", "b", "c"], ("a", "b", "c")),
        ([5, 1, 3], ["a", "b", "c"], ("a", "b", "c")),  # in order of the labels: 1, 3, 5
        ([0, 1, 3], ["a", "b", "c", "d"], ("a", "b", "d")),  # labels are indices
    ],
)
def test_class_names(tmp_path, labels, names, expected):
    arrays = {"train_images": GREY, "train_labels": labels * 4, "class_names": names}
    assert load(saved(tmp_path, **arrays))["train"].class_names == expected


def bad(array: np.ndarray, value: float) -> np.ndarray:
    array = array / 255
    array[7, 2, 2] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"train_images": GREY}, "the array 'train_labels' is missing"),
        ({"images": GREY, "labels": LABELS}, "the array 'train_images' is missing"),
        ({"train_labels": LABELS[:5]}, "number of entries"),
        ({"val_images": GREY}, "the array 'val_labels' is missing"),
        ({"train_images": GREY[0]}, "wrong shape"),
        ({"train_images": GREY[:0], "train_labels": LABELS[:0]}, "wrong shape"),
        ({"train_images": np.zeros((12, 3, 6, 5), np.uint8)}, "numpy.moveaxis"),
        ({"train_images": np.zeros((12, 6, 5, 4), np.uint8)}, "wrong shape"),
        ({"train_images": GREY.astype(np.int64)}, "wrong type"),
        ({"train_images": GREY.astype(np.uint16)}, "wrong type"),
        ({"train_images": GREY > 9}, "wrong type"),
        ({"train_images": GREY.astype(np.float32)}, "out of range"),
        ({"train_images": bad(GREY, -0.01)}, "got: -0.01 to 1.0"),
        ({"train_images": bad(GREY, np.nan)}, "in 1 images, the first at index 7"),
        ({"train_images": bad(GREY, np.inf)}, "in 1 images, the first at index 7"),
        ({"train_labels": np.eye(3, dtype=int)[LABELS]}, "several labels per image"),
        ({"train_labels": LABELS - 1}, "not class numbers"),
        ({"train_labels": LABELS + 0.0}, "not class numbers"),
        ({"train_labels": LABELS.astype(str)}, "not class numbers"),
        ({"train_labels": LABELS[:, None, None]}, "not class numbers"),
        ({"train_images": GREY.astype(object)}, "allow_pickle=False"),
        ({"train_labels": LABELS.astype(object)}, "allow_pickle=False"),
        ({"class_names": np.array(["a", "b", "c"], object)}, "allow_pickle=False"),
        ({"class_names": np.array([1, 2, 3])}, "not a list of strings"),
        ({"class_names": np.array(["a", "b"])}, "do not match the labels"),
        ({"train_groups": LABELS[:5]}, "number of entries"),
    ],
)
def test_unusable_arrays_are_refused(tmp_path, arrays, words):
    whole = {"train_images": GREY, "train_labels": LABELS} | arrays
    if "is missing" in words and "val_" not in words:
        whole = arrays
    assert words in str(refused(saved(tmp_path, **whole)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "cannot be read"),
        (b"not an archive", "cannot be read"),
        (b"PK\x03\x04 not really", "cannot be read"),
    ],
)
def test_files_that_are_no_archive_are_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "set.npz").write_bytes(content)
    assert words in str(refused(Config(path=tmp_path / "set.npz")))


def test_a_single_array_and_a_folder_are_refused(tmp_path):
    np.save(tmp_path / "one.npy", GREY)
    assert "single array" in str(refused(Config(path=tmp_path / "one.npy")))
    assert "cannot be read" in str(refused(Config(path=tmp_path)))


def test_an_entry_that_is_no_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("train_images", b"raw bytes")
    refused(Config(path=tmp_path / "set.npz"))


def archived(save) -> bytes:
    stream = io.BytesIO()
    save(stream, train_images=GREY, train_labels=LABELS)
    return stream.getvalue()


WHOLE = {save: archived(save) for save in (np.savez, np.savez_compressed)}


@pytest.mark.parametrize("save", WHOLE)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_archives_are_refused_or_read_never_a_traceback(tmp_path, save, data):
    content = bytearray(WHOLE[save])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "set.npz").write_bytes(content)
    with contextlib.suppress(DataError, UserWarning):  # the warning: an array got another name
        assert set(load(Config(path=tmp_path / "set.npz"))) == {"train"}


def test_arrays_that_are_not_used_are_named(tmp_path):
    config = saved(tmp_path, train_images=GREY, train_labels=LABELS, valid_images=GREY)
    with pytest.warns(UserWarning, match="arrays not used: valid_images"):
        load(config)


def test_relative_paths_start_at_the_current_folder_and_home_is_known(tmp_path, monkeypatch):
    saved(tmp_path, train_images=GREY, train_labels=LABELS)
    monkeypatch.chdir(tmp_path)
    assert len(load(Config(path="set.npz"))["train"]) == 12
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load(Config(path="~/set.npz"))["train"]) == 12
    with pytest.raises(RecipeError, match="path"):
        validate(Config, {"path": "~no-such-user/set.npz"})


def test_groups_in_the_archive_are_the_same_in_all_splits(tmp_path):
    arrays = {
        f"{split}_{part}": array
        for split in ("train", "test")
        for part, array in (("images", GREY), ("labels", LABELS))
    }
    groups = {"train_groups": np.array(["b", "a"] * 6), "test_groups": np.array(["c", "b"] * 6)}
    found = load(saved(tmp_path, **arrays, **groups))
    np.testing.assert_array_equal(found["train"].groups, [1, 0] * 6)
    np.testing.assert_array_equal(found["test"].groups, [2, 1] * 6)


def with_table(tmp_path: Path, text: str | bytes, **arrays) -> Config:
    config = saved(tmp_path, train_images=GREY, train_labels=LABELS, **arrays)
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "groups.csv").write_bytes(content)
    return config.model_copy(update={"groups": tmp_path / "groups.csv"})


def test_groups_from_a_table_win_over_those_in_the_archive(tmp_path):
    rows = "".join(f"{row},patient {row // 2}\r\n" for row in reversed(range(12)))
    config = with_table(tmp_path, "\ufeffindex,group\r\n" + rows, train_groups=np.zeros(12, int))
    np.testing.assert_array_equal(load(config)["train"].groups, np.arange(12) // 2)


def test_table_with_several_splits(tmp_path):
    rows = [f"{split},{row},{split[0]}{row % 4}" for split in ("train", "val") for row in range(12)]
    table = "\n".join(["split,index,group", *rows])
    found = load(with_table(tmp_path, table, val_images=GREY, val_labels=LABELS))
    np.testing.assert_array_equal(found["train"].groups, np.arange(12) % 4)
    np.testing.assert_array_equal(found["val"].groups, np.arange(12) % 4 + 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lacks a column"),
        ("index,patient\n0,a\n", "lacks a column"),
        ("row,group\n0,a\n", "lacks a column"),
        ("index,group\n0,a\n1\n", "line 3"),
        ("index,group\n0,a\n0,b\n", "line 3"),
        ("index,group\n0,a\n1,b\n", "10 images have no group"),
        (b"index,group\n0,\xff\n", "cannot be read"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, text, words):
    with pytest.raises(DataError) as caught:
        load(with_table(tmp_path, text))
    error = caught.value
    assert words in str(error)
    assert None not in (error.where, error.expected, error.got, error.next_step)


def test_missing_table_is_refused(tmp_path):
    config = saved(tmp_path, train_images=GREY, train_labels=LABELS)
    with pytest.raises(DataError, match="groups cannot be read"):
        load(config.model_copy(update={"groups": tmp_path / "none.csv"}))
