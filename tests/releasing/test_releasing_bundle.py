"""A bundle of a tiny run: read with the libraries others have, and searched for real images."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlcroissant
import numpy as np
import onnxruntime
import pandas
import pytest
from made_up import CLASSES, MARKER, SECRET
from PIL import Image
from sklearn.linear_model import LogisticRegression

import knowledge_recycling as kr
from knowledge_recycling import pipeline
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.errors import RunError
from knowledge_recycling.releasing import bundle as bundles
from knowledge_recycling.releasing.bundle import Order
from knowledge_recycling.releasing.dataset import without_copies
from knowledge_recycling.releasing.manifest import MANIFEST, verify
from knowledge_recycling.storage import read_sealed, write_sealed

KR = f"{sys.executable} -m knowledge_recycling.cli"
ALLOWED = {
    "LICENSE.txt", "MANIFEST.json", "MODEL_CARD.md", "README.md", "croissant.json",
    "generator.json", "generator.safetensors", "release.json", "result.json", "student.json",
    "student.onnx", "student.safetensors", "synthetic.npz", "synthetic.parquet",
}  # fmt: skip


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def images_of(bundle: Path) -> np.ndarray:
    frame = pandas.read_parquet(bundle / "synthetic.parquet")
    pictures = [Image.open(io.BytesIO(each["bytes"])) for each in frame["image"]]
    return np.stack([np.asarray(picture) for picture in pictures])[:, None]


def test_the_bundle_holds_what_is_on_the_allow_list(bundle: Path) -> None:
    assert {path.name for path in bundle.rglob("*")} == ALLOWED
    assert verify(bundle) == len(ALLOWED) - 1
    digests = json.loads((bundle / MANIFEST).read_text())["sha256"]
    for name, digest in digests.items():
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest


def test_parquet_and_npz_hold_the_same_set(bundle: Path) -> None:
    frame = pandas.read_parquet(bundle / "synthetic.parquet")
    with np.load(bundle / "synthetic.npz", allow_pickle=False) as npz:
        assert np.array_equal(images_of(bundle)[:, 0], npz["train_images"])
        assert np.array_equal(frame["label"].to_numpy(), npz["train_labels"][:, 0])
    soft = np.stack(frame["soft_labels"].to_list())
    assert soft.shape == (len(frame), 2)
    np.testing.assert_allclose(soft.sum(axis=1), 1.0, atol=1e-5)
    assert [CLASSES[k] for k in frame["label"]] == frame["class_name"].to_list()


def test_the_datasets_library_reads_images_and_class_names(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    loaded = datasets.load_dataset(
        "parquet", data_files=str(bundle / "synthetic.parquet"), cache_dir=str(tmp_path)
    )["train"]
    assert loaded.features["label"].names == list(CLASSES)
    first = np.asarray(loaded[0]["image"])
    assert np.array_equal(first, images_of(bundle)[0, 0])


def test_onnx_safetensors_and_the_run_agree(bundle: Path, run: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 12, 12), dtype=np.uint8)
    session = onnxruntime.InferenceSession(bundle / "student.onnx")
    [onnx] = session.run(None, {"images": images})
    student = kr.load(bundle)
    assert student.classes == CLASSES
    np.testing.assert_allclose(student.predict(images), onnx, atol=1e-4)
    test = np.load(run / "evaluation/predictions.npz")
    with np.load(run.parent / f"{SECRET}.npz") as real:
        np.testing.assert_allclose(
            student.predict(real["test_images"][:, None]), test["test_student"], atol=1e-4
        )


def test_a_classifier_of_others_learns_from_the_parquet_set(bundle: Path) -> None:
    frame, images = pandas.read_parquet(bundle / "synthetic.parquet"), images_of(bundle)
    flat = images.reshape(len(images), -1)
    own = LogisticRegression(max_iter=500).fit(flat[::2], frame["label"][::2])
    assert own.score(flat[1::2], frame["label"][1::2]) > 0.7


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a library of the checker
def test_croissant_is_valid(bundle: Path) -> None:
    metadata = mlcroissant.Dataset(str(bundle / "croissant.json")).metadata
    assert metadata.issues.errors == set()
    records = mlcroissant.Dataset(str(bundle / "croissant.json")).records("images")
    assert next(iter(records))["images/class_name"].decode() in CLASSES


def unpacked(bundle: Path) -> Iterator[bytes]:
    for path in bundle.rglob("*"):
        yield path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from map(archive.read, archive.namelist())


def test_no_real_image_and_no_local_name_leaves(bundle: Path) -> None:
    package = str(Path(kr.__file__).parents[1])
    for content in unpacked(bundle):
        for local in (SECRET, package, str(Path.home()), sys.prefix, tempfile.gettempdir()):
            assert local.encode() not in content
    corners = images_of(bundle)[:, 0, :3, :3]
    assert not (corners == MARKER).all(axis=(1, 2)).any()
    digests = json.loads((bundle / "result.json").read_text())["digests"]
    assert digests == {}


def test_cards_say_why_it_was_released_and_escape_what_they_quote(bundle: Path) -> None:
    card = (bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "a test of &lt;b&gt;\\|it&lt;/b&gt;" in card
    assert "there is no audit" in card
    assert "the generator was not attacked" in card
    assert "<script>" not in card


def test_without_an_override_the_policy_refuses(run: Path, tmp_path: Path) -> None:
    for reason in (None, "", " "):  # an empty reason is none
        with pytest.raises(RunError, match="refuses") as caught:
            pipeline.release(run, tmp_path / "bundle", Order(override=reason))
        assert "there is no audit" in str(caught.value.got)
    assert list(tmp_path.iterdir()) == []


def spoil(kind: str, bundle: Path) -> str:
    if kind == "changed":
        (bundle / "student.onnx").write_bytes(b"other")
        return "changed: student.onnx"
    if kind == "missing":
        (bundle / "synthetic.npz").unlink()
        return "missing: synthetic.npz"
    (bundle / "more.txt").write_text("more")
    return "not on the list: more.txt"


@pytest.mark.parametrize("kind", ["changed", "missing", "additional"])
def test_a_spoilt_bundle_is_found_out(copied: Path, kind: str) -> None:
    expected = spoil(kind, copied)
    with pytest.raises(RunError, match="not as it was released") as caught:
        verify(copied)
    assert expected in str(caught.value.got)
    with pytest.raises(RunError):
        kr.load(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sha256": 7}', "{}"])
def test_a_damaged_list_is_named(copied: Path, text: str) -> None:
    (copied / MANIFEST).write_text(text)
    with pytest.raises(RunError, match="list of the bundle's files is damaged"):
        verify(copied)


def test_a_link_is_no_file_of_the_bundle(copied: Path, bundle: Path) -> None:
    (copied / "student.onnx").unlink()
    (copied / "student.onnx").symlink_to(bundle / "student.onnx")
    with pytest.raises(RunError, match="not as it was released"):
        verify(copied)


def test_an_edited_run_is_not_released(run: Path, tmp_path: Path) -> None:
    edited = Path(shutil.copytree(run, tmp_path / "run"))
    weights = edited / "student/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(RunError, match="missing or changed"):
        pipeline.release(edited, tmp_path / "bundle", Order(override="x"))
    shutil.rmtree(edited / "student")
    with pytest.raises(RunError, match="not finished"):
        pipeline.release(edited, tmp_path / "bundle", Order(override="x"))
    assert not (tmp_path / "bundle").exists()


def test_a_failure_half_way_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundles, "write_npz", full)
    with pytest.raises(RunError, match="no space left"):
        pipeline.release(run, tmp_path / "bundle", Order(override="x"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
@pytest.mark.parametrize("kib", [16, 60, 100, 140, 180])
def test_a_disk_that_is_full_half_way_keeps_nothing(run: Path, tmp_path: Path, kib: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = f"mount -t tmpfs -o size={kib}k none {disk} && {KR} release {run} {disk}/bundle "
    inside += f"--override x; echo code $?; ls -A {disk} | wc -l"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "permission denied" in told.stderr.lower() or "not permitted" in told.stderr.lower():
        pytest.skip("may not mount")
    assert told.stdout.split() == ["code", "2", "0"], told.stderr
    assert "no space left" in told.stderr
    assert "Traceback" not in told.stderr


def test_an_existing_folder_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(RunError, match="exists already"):
        pipeline.release(run, tmp_path / "bundle", Order(override="x"))


def test_copies_of_members_are_found_and_left_out(make_set: Callable[..., ImageSet]) -> None:
    members = make_set(40)
    rng = np.random.default_rng(0)
    fresh = rng.integers(0, 256, (10, 1, 8, 8), dtype=np.uint8)
    near = members.images[3].copy()
    near[0, 4, 4] ^= 1
    images = np.concatenate([fresh[:5], members.images[:2], near[None], fresh[5:]])
    synthetic = ImageSet(images, np.zeros(13, np.int64), members.class_names)
    copies = without_copies(synthetic, members, rng)
    assert (copies.exact, copies.near) == (2, 1)
    assert copies.kept.tolist() == [0, 1, 2, 3, 4, 8, 9, 10, 11, 12]


def test_mirrored_copies_are_found_where_the_generator_saw_mirrored_members(
    make_set: Callable[..., ImageSet],
) -> None:
    members, rng = make_set(40), np.random.default_rng(0)
    images = members.images[:4].copy()
    images[1], images[2] = images[1, :, ::-1], images[2, :, :, ::-1]
    images[3] = images[3, :, ::-1, ::-1]
    synthetic = ImageSet(images, np.zeros(4, np.int64), members.class_names)
    seen = {
        names: without_copies(synthetic, members, rng, names).exact
        for names in ((), ("hflip",), ("hflip", "vflip"))
    }
    assert seen == {(): 1, ("hflip",): 2, ("hflip", "vflip"): 4}


def test_figures_that_were_edited_do_not_pass_the_gate(run: Path, tmp_path: Path) -> None:
    edited = Path(shutil.copytree(run, tmp_path / "run"))
    values = json.loads((edited / "result.json").read_text())
    values["audit"] = {"mode": "pipeline", "shadows": 16, "images": 9, "primary_attack": "lira"}
    (edited / "result.json").write_text(json.dumps(values))
    with pytest.raises(RunError, match=r"result\.json"):
        pipeline.release(edited, tmp_path / "bundle")


def test_a_recipe_of_another_policy_is_not_taken_for_the_runs(run: Path, tmp_path: Path) -> None:
    edited = Path(shutil.copytree(run, tmp_path / "run"))
    recipe = read_sealed(run / "given.json")
    write_sealed(
        edited / "given.json", recipe | {"release": {"audit": "none", "min_accuracy": 0.01}}
    )
    with pytest.raises(RunError, match=r"another 'release\.") as caught:
        pipeline.release(edited, tmp_path / "bundle")
    assert "kr run" in str(caught.value.next_step)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_several_generators_are_drawn_from_and_released(run: Path, tmp_path: Path) -> None:
    recipe = read_sealed(run / "given.json")
    recipe["further_generators"] = {"second": {}}
    recipe["student"]["synthesis"]["set_size"] = 1.0
    out = tmp_path / "run"
    pipeline.run(kr.Recipe.from_dict(recipe), out)
    order = Order(with_generator=True, override="x")
    pipeline.release(out, tmp_path / "bundle", order)
    pipeline.release(run, tmp_path / "of one", replace(order, images=64))

    described = json.loads((tmp_path / "bundle/generator.json").read_text())
    assert [each["weights"] for each in described["generators"]] == [
        "generator.safetensors",
        "generator-second.safetensors",
    ]
    for each, part in zip(described["generators"], ("", "generator-second"), strict=True):
        assert each["settings"]["width"] == 16
        candidates = [path.read_bytes() for path in (out / "generator" / part).glob("c*.saf*")]
        assert (tmp_path / "bundle" / each["weights"]).read_bytes() in candidates
    # About half of the images (near copies are left out) are as the first generator alone draws.
    alone = {each.tobytes() for each in images_of(tmp_path / "of one")}
    shared = [each.tobytes() in alone for each in images_of(tmp_path / "bundle")]
    assert 0.35 < np.mean(shared) < 0.65


def test_a_folder_of_images_is_classified(bundle: Path, tmp_path: Path) -> None:
    folder, table = tmp_path / "new", tmp_path / "table.csv"
    (folder / "inner").mkdir(parents=True)
    bright = np.full((30, 24), 60, np.uint8)
    Image.fromarray(bright).save(folder / "inner/a.png")
    Image.fromarray(np.stack([bright + 100] * 3, axis=-1)).save(folder / "b.jpg")
    command = [sys.executable, "-m", "knowledge_recycling.cli", "predict", bundle, folder]
    subprocess.run([*command, "--csv", table], check=True, timeout=120)
    frame = pandas.read_csv(table)
    assert frame["file"].to_list() == ["b.jpg", "inner/a.png"]
    np.testing.assert_allclose(frame[list(CLASSES)].sum(axis=1), 1.0, atol=1e-4)
    assert all(row["class"] == max(CLASSES, key=lambda k: row[k]) for _, row in frame.iterrows())
