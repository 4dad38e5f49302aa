"""The bundle: all that may leave the building, by an allow-list, written whole or not at all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from knowledge_recycling.artefacts import (
    Run,
    chosen_candidate,
    chosen_knobs,
    load_ensemble,
    load_student,
    student_source,
)
from knowledge_recycling.data.images import to_unit
from knowledge_recycling.errors import RunError
from knowledge_recycling.randomness import numpy_rng
from knowledge_recycling.recycling.synthesis import draw_set, open_set
from knowledge_recycling.releasing.cards import write_cards
from knowledge_recycling.releasing.croissant import write_croissant
from knowledge_recycling.releasing.dataset import Copies, without_copies, write_npz, write_parquet
from knowledge_recycling.releasing.gate import violations
from knowledge_recycling.releasing.manifest import verify, write_manifest
from knowledge_recycling.releasing.student import write_student
from knowledge_recycling.reporting.reading import read_result
from knowledge_recycling.reporting.result import Result
from knowledge_recycling.reporting.sharing import shareable
from knowledge_recycling.rundir import differing_key
from knowledge_recycling.storage import write_json, write_text

PARQUET = "synthetic.parquet"
NPZ = "synthetic.npz"
GENERATORS = "generator.json"
SCRATCH = ".scratch"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What was asked for beside the run itself."""

    images: int | None = None
    """Synthetic images; `None`: as many as one set of the student has."""
    name: str = "private image set"
    """What the cards call the real set: its file's name may tell too much."""
    with_generator: bool = False
    override: str | None = None
    """Why it is released although the policy refuses it."""
    licence: str | None = None
    """Text of the licence; `None`: that use needs permission."""


def release(run: Run, result: Result, out: Path, order: Order) -> int:
    """Writes the bundle of a finished run to the new folder `out`; returns its number of files.

    Args:
        run: The run, its stages checked.
        result: Its figures, made anew from the stages: a file could have been edited.
        out: A folder that does not exist.
        order: What is asked for.

    Raises:
        RunError: The run's recipe is not that of its result, the policy refuses the release, the
            folder exists, or it cannot be written.
    """
    check_same_settings(run.folder, result)
    refused = violations(result, run.recipe.release, with_generator=order.with_generator)
    if refused and not (order.override or "").strip():
        raise RunError(
            "the release policy refuses this run",
            where=run.folder,
            expected="all limits under [release] of the recipe kept",
            got="; ".join(refused),
            next_step="mend it; or change [release] in the recipe and repeat kr run, which trains "
            "nothing anew; or give a reason with --override",
        )
    with new_folder(out) as beside:
        dataset = result.dataset.model_copy(update={"name": order.name})
        named = result.model_copy(update={"dataset": dataset})
        fill(run, beside, order, shareable(named), refused)
        write_manifest(beside)
        return verify(beside)


def check_same_settings(folder: Path, result: Result) -> None:
    """Checks that `result` is of the recipe that the run's own result was written for.

    A folder's recipe exchanged for that of another run may differ in what no stage depends on, such
    as the release policy.

    Raises:
        RunError: It is not, or the run's own result is damaged.
    """
    known, present = read_result(folder).changed_settings, result.changed_settings
    key = differing_key(known, present)
    if key is not None:
        raise RunError(
            f"the recipe in the folder has another '{key}' than the run's result",
            where=folder,
            expected=known.get(key),
            got=present.get(key),
            next_step="write both again with the right recipe: kr run RECIPE --out RUN",
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Gives a folder that takes the name `out` when all went well, and is removed otherwise.

    Raises:
        RunError: `out` exists, or the disk is full or read-only.
    """
    if out.exists():
        raise RunError(
            "the folder of the bundle exists already", where=out, next_step="name another"
        )
    beside = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        beside.rename(out)
    except OSError as error:
        raise RunError(
            "no space left for the bundle"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "the bundle cannot be written",
            where=out,
            got=error.strerror or error,
            next_step="free some space, or release to another folder",
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def fill(run: Run, bundle: Path, order: Order, result: Result, refused: list[str]) -> None:
    """Writes the files of the bundle, one by one from the allow-list."""
    students = run.recipe.student
    assert students.classifier is not None
    difference = write_student(
        load_student(run), students.classifier, run.members.shape, run.members.class_names, bundle
    )
    copies = write_set(run, bundle, order.images or students.num_images(len(run.members)))
    if order.with_generator:
        write_generators(run, bundle)
    about: dict[str, Any] = {
        "images": len(copies.kept),
        "copies": {key: value for key, value in asdict(copies).items() if key != "kept"},
        "onnx_difference": difference,
        "override": order.override if refused else None,
        "refused": refused,
        "policy": run.recipe.release.model_dump(mode="json"),
        "with_generator": order.with_generator,
    }
    write_json(bundle / "result.json", public_result(result))
    write_json(bundle / "release.json", about)
    write_cards(bundle, result, about)
    write_croissant(bundle, result, PARQUET)
    reserved = files("knowledge_recycling.releasing").joinpath("LICENSE.bundle.txt")
    write_text(bundle / "LICENSE.txt", order.licence or reserved.read_text(encoding="utf-8"))


def write_generators(run: Run, bundle: Path) -> None:
    """Writes the chosen candidate of each generator, and what it takes to build and use it."""
    described = []
    for each in run.each_generator:
        weights = f"{each.part or 'generator'}.safetensors"
        shutil.copyfile(chosen_candidate(each), bundle / weights)
        settings = each.generator.model_dump(mode="json")
        knobs = dict(chosen_knobs(each))
        described.append({"weights": weights, "settings": settings, "knobs": knobs})
    shape, classes = run.members.shape, run.members.class_names
    write_json(bundle / GENERATORS, {"shape": shape, "classes": classes, "generators": described})


def public_result(result: Result) -> dict[str, Any]:
    """Returns `result.json` as the bundle has it: figures, no paths, no digests of real images."""
    public = result.model_copy(update={"digests": {}, "stages": {}})
    values = public.model_dump(mode="json")
    return {"schema": values.pop("schema_version"), **values}


def write_set(run: Run, bundle: Path, size: int) -> Copies:
    """Draws the bundle's synthetic set and writes it without copies of members."""
    teachers = load_ensemble(run)
    source = student_source(run, teachers)
    path = bundle / SCRATCH / "synthetic.npy"
    draw_set(source, size, path, ("release", "set"), run.context)
    synthetic = open_set(path, run.members.class_names)
    copies = without_copies(
        synthetic,
        run.members,
        numpy_rng(run.context.seed, "release", "copies"),
        run.recipe.generator_training.augment or (),
    )
    if len(copies.kept) == 0:
        raise RunError(
            "every synthetic image is a near copy of a real one",
            where=run.folder,
            got=f"all {size} are nearer than {copies.threshold:.3g} grey values",
            next_step="train the generator shorter, or raise tuning's latent_std",
        )
    write_parquet(synthetic, copies.kept, soft_labels(run, teachers), bundle / PARQUET)
    write_npz(synthetic, copies.kept, bundle / NPZ)
    shutil.rmtree(bundle / SCRATCH)
    return copies


def soft_labels(run: Run, teachers: nn.Module) -> Any:
    """Returns the function from images [N,C,H,W] to the teachers' probabilities [N,K]."""
    fabric = run.context.fabric

    @torch.inference_mode()
    def label(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        with fabric.autocast():
            logits = teachers(to_unit(images).to(fabric.device))
        return np.asarray(logits.double().softmax(dim=1).cpu().numpy())

    return label
