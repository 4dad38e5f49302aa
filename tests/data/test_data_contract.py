"""Every file of data/sources keeps the contract of a source, on a small set of its own form.

Also: importing sources needs no optional library, and a user's own module is accepted by its name.
"""

from __future__ import annotations

import ast
import inspect
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knowledge_recycling.config import kind_module, known_kinds
from knowledge_recycling.data.sources import SourceConfig
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.errors import KRError

KINDS = known_kinds("data.sources")
OPTIONAL = {"medmnist", "pyarrow", "datasets", "pydicom"}


def write_archive(path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", 20), ("val", 6), ("test", 8)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(size, dtype=np.uint8)[:, None] % 2
    np.savez(path, **arrays)


def digits_example(folder: Path) -> dict[str, object]:
    return {}


def npz_example(folder: Path) -> dict[str, object]:
    write_archive(folder / "set.npz")
    return {"path": folder / "set.npz"}


def folder_example(folder: Path) -> dict[str, object]:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return {"path": folder}


def medmnist_example(folder: Path) -> dict[str, object]:
    pytest.importorskip("medmnist")
    write_archive(folder / "breastmnist.npz")
    return {"name": "breastmnist", "root": folder}


def table_example(folder: Path) -> dict[str, object]:
    folder_example(folder)
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    rows = [f"{path},{path.parent}" for path in paths]
    (folder / "set.csv").write_text("\n".join(["path,label", *rows]))
    return {"path": folder / "set.csv"}


def hub_example(folder: Path) -> dict[str, object]:
    datasets = pytest.importorskip("datasets")
    folder_example(folder / "images")
    paths = sorted((folder / "images").rglob("*.png"))
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    labels = [path.parent.name for path in paths]
    made = datasets.Dataset.from_dict({"image": images, "label": labels})
    made.save_to_disk(folder / "set")
    return {"path": folder / "set"}


def dicom_example(folder: Path) -> dict[str, object]:
    pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    source = Path(str(get_testdata_file("MR_small.dcm", download=False)))
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for number in range(8):
            shutil.copy(source, folder / name / f"{number}.dcm")
    return {"path": folder, "group_by": "none"}


def idx_example(folder: Path) -> dict[str, object]:
    rng = np.random.default_rng(0)
    for begin, size in (("train", 30), ("t10k", 10)):
        images = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        labels = np.arange(size, dtype=np.uint8) % 3
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
            (folder / f"{begin}-{name}-ubyte").write_bytes(head + array.tobytes())
    return {"path": folder}


def cifar_example(folder: Path) -> dict[str, object]:
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = rng.integers(0, 256, (12, 3072), dtype=np.uint8)
        batch = {"labels": [i % 10 for i in range(12)], "data": pixels, "filenames": ["a.png"]}
        (batches / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"class {i}" for i in range(10)]
    meta = {"num_cases_per_batch": 12, "label_names": names, "num_vis": 3072}
    (batches / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return {"root": folder}


EXAMPLES: dict[str, Callable[[Path], dict[str, object]]] = {
    "digits": digits_example,
    "npz": npz_example,
    "folder": folder_example,
    "medmnist": medmnist_example,
    "table": table_example,
    "hub": hub_example,
    "dicom": dicom_example,
    "idx": idx_example,
    "cifar": cifar_example,
}


@pytest.fixture(autouse=True)
def _home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # medmnist makes a folder


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def config(kind, tmp_path):
    return kind_module("data.sources", kind).Config(**EXAMPLES[kind](tmp_path))


def test_has_documented_config_and_load(kind):
    module = kind_module("data.sources", kind)
    assert module.__doc__
    assert inspect.getdoc(module.load)
    assert list(inspect.signature(module.load).parameters) == ["config"]
    assert issubclass(module.Config, SourceConfig)
    assert module.Config.model_fields["kind"].default == kind
    undocumented = [
        name
        for name, field in module.Config.model_fields.items()
        if name != "kind" and not field.description
    ]
    assert not undocumented


def test_found_splits_are_well_formed(config):
    found = kind_module("data.sources", config.kind).load(config)
    assert "train" in found
    assert set(found) <= {"train", "val", "test"}
    for part in found.values():
        assert part.images.dtype == np.uint8
        assert part.images.shape == (len(part), *part.shape)
        assert part.shape[0] in (1, 3)
        assert part.shape == found["train"].shape
        assert part.labels.dtype == np.int64
        assert part.labels.shape == (len(part),)
        assert set(part.labels) <= set(range(part.num_classes))
        assert part.class_names == found["train"].class_names


def test_loading_twice_gives_the_same_and_keeps_found_splits(config):
    found = kind_module("data.sources", config.kind).load(config)
    first, second = load_splits(config), load_splits(config)
    for split in ("train", "val", "test"):
        assert getattr(first, split).digest() == getattr(second, split).digest()
        if len(found) == 3:
            assert getattr(first, split).digest() == found[split].digest()


def test_importing_needs_no_optional_library(kind):
    tree = ast.parse(inspect.getsource(kind_module("data.sources", kind)))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names}
    packages = {node.module for node in imports if isinstance(node, ast.ImportFrom)} | names
    assert not {str(package).split(".")[0] for package in packages} & OPTIONAL


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [
        ("medmnist", "medmnist", "medmnist"),
        ("hub", "datasets", "hub"),
        ("dicom", "pydicom", "dicom"),
    ],
)
def test_a_missing_extra_is_one_line_that_says_what_to_install(
    kind, module, extra, tmp_path, monkeypatch
):
    config = kind_module("data.sources", kind).Config(**EXAMPLES[kind](tmp_path))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(KRError) as caught:
        kind_module("data.sources", kind).load(config)
    expected = (
        f"'{module}' is not installed; it comes with: pip install 'knowledge-recycling[{extra}]'"
    )
    assert str(caught.value) == expected


def test_a_module_of_ones_own_is_a_source(tmp_path, monkeypatch):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "stripes.py").write_text(
        "import numpy as np\n"
        "from knowledge_recycling.data.images import ImageSet\n"
        "from knowledge_recycling.data.sources import SourceConfig\n"
        "class Config(SourceConfig):\n"
        "    kind: str = 'my_lab.stripes'\n"
        "def load(config):\n"
        "    labels = np.arange(40) % 2\n"
        "    images = np.zeros((40, 1, 8, 8), np.uint8)\n"
        "    return {'train': ImageSet(images, labels, ('dark', 'bright'))}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = kind_module("data.sources", "my_lab.stripes").Config()
    splits = load_splits(config)
    assert [len(splits.train), len(splits.val), len(splits.test)] == [26, 6, 8]
