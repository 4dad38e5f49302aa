"""Files that are complete or absent: written beside, then renamed. JSON and safetensors only."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from knowledge_recycling import ranks
from knowledge_recycling.errors import RunError

UNFINISHED = ".part"
"""Ending of the hidden files that are being written."""


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to; it takes the name `path` only when all went well.

    Of several processes that train together only the first leaves a file.

    Raises:
        RunError: The folder cannot be written or the disk is full; an older file is untouched.
    """
    if not ranks.is_first():
        yield Path(os.devnull)
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        beside.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if beside.exists():
            beside.unlink()


def _cannot_write(path: Path, error: OSError) -> RunError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return RunError(
        "no space left on the disk" if full else "a file cannot be written",
        where=path,
        got=error.strerror or error,
        next_step="free some space" if full else "choose a folder that you may write to",
    )


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        RunError: The file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception, next_step: str | None = None) -> RunError:
    """Returns the error for a file of a run that is missing or damaged."""
    missing = isinstance(error, FileNotFoundError)
    return RunError(
        "a file of the run is missing" if missing else "a file of the run is damaged",
        where=path,
        got=None if missing else error,
        next_step=next_step or "redo the stage that writes it: kr run RECIPE --redo STAGE",
    )


SEAL = "seal"
"""Key of a JSON object under which it holds the digest of all its other keys."""


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object with a digest of its content, so that any change will show."""
    plain = json.loads(json.dumps(dict(values), allow_nan=False))  # keys as they will be read
    write_json(path, plain | {SEAL: value_digest(plain)})


def read_sealed(path: Path, next_step: str | None = None) -> dict[str, Any]:
    """Returns the content of a JSON object, checked against its seal if it has one.

    Raises:
        RunError: The file is missing, damaged, or was edited.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return unsealed(values)
    except (OSError, ValueError) as error:
        raise unreadable(path, error, next_step) from error


def unsealed(values: Any) -> dict[str, Any]:
    """Returns the content of a JSON object without its seal.

    Raises:
        ValueError: It is no object, or does not match its seal.
    """
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    plain = {key: value for key, value in values.items() if key != SEAL}
    if values.get(SEAL, value_digest(plain)) != value_digest(plain):
        raise ValueError("it was changed after it was written: the seal does not match")
    return plain


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes named arrays as a compressed npz file."""
    with written_beside(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **dict(arrays))


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Returns the arrays of an npz file; pickled content is refused.

    Raises:
        RunError: The file is missing or damaged.
    """
    try:
        # opened here, since numpy leaves the file of a damaged archive open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, BadZipFile, ZlibError) as error:
        raise unreadable(path, error) from error


def write_weights(path: Path, module: nn.Module) -> None:
    """Writes the parameters and buffers of `module` by name as safetensors."""
    tensors = {name: _plain(tensor) for name, tensor in module.state_dict().items()}
    with written_beside(path) as beside:
        beside.write_bytes(save(tensors))  # `save_file` would hide why the system refused


def read_weights(path: Path, module: nn.Module) -> None:
    """Loads into `module` what `write_weights` wrote.

    Raises:
        RunError: The file is missing, damaged, or belongs to another network.
    """
    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise unreadable(path, error) from error


def _plain(tensor: Tensor) -> Tensor:
    # safetensors refuses tensors that share memory, and channels-last strides
    return tensor.detach().clone(memory_format=torch.contiguous_format).cpu()


def write_state(path: Path, state: Any) -> None:
    """Writes nested dicts and lists of tensors and JSON values as one safetensors file."""
    tensors: dict[str, Tensor] = {}
    skeleton = _take_tensors(state, tensors)
    with written_beside(path) as beside:
        beside.write_bytes(save(tensors, metadata={"skeleton": json.dumps(skeleton)}))


def read_state(path: Path) -> Any:
    """Returns what `write_state` was given, its tensors on the CPU.

    Raises:
        RunError: The file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            skeleton = json.loads(file.metadata()["skeleton"])
            return _put_tensors(skeleton, file.get_tensor)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise unreadable(path, error) from error


def _take_tensors(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        name = str(len(tensors))
        tensors[name] = _plain(node)
        return {"tensor": name}
    if isinstance(node, Mapping):  # pairs, since JSON would turn integer keys into text
        return {"pairs": [[key, _take_tensors(value, tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        return [_take_tensors(value, tensors) for value in node]
    return node


def _put_tensors(node: Any, get_tensor: Callable[[str], Tensor]) -> Any:
    if isinstance(node, list):
        return [_put_tensors(value, get_tensor) for value in node]
    if isinstance(node, dict) and "tensor" in node:
        return get_tensor(node["tensor"])
    if isinstance(node, dict):
        return {key: _put_tensors(value, get_tensor) for key, value in node["pairs"]}
    return node


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def value_digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
