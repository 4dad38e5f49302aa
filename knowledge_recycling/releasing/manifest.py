"""The bundle's list of files with their SHA-256, and the check of a bundle against it."""

from __future__ import annotations

import json
from pathlib import Path

from knowledge_recycling.errors import RunError
from knowledge_recycling.storage import file_digest, write_json

MANIFEST = "MANIFEST.json"
AGAIN = "get the bundle again from where it was released"


def write_manifest(bundle: Path) -> None:
    """Writes the digests of all files of the bundle."""
    write_json(bundle / MANIFEST, {"sha256": _digests(bundle)})


def verify(bundle: Path) -> int:
    """Returns the number of files of a bundle that is as it was released.

    Raises:
        RunError: It is no bundle, or a file is changed, missing, or not on the list.
    """
    listed, present = _listed(bundle / MANIFEST), _digests(bundle)
    faults = {
        "missing": sorted(listed.keys() - present.keys()),
        "not on the list": sorted(present.keys() - listed.keys()),
        "changed": sorted(n for n in listed.keys() & present.keys() if listed[n] != present[n]),
    }
    found = "; ".join(f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names)
    if found:
        raise RunError(
            "the bundle is not as it was released",
            where=bundle,
            expected=f"the files of {MANIFEST}, unchanged",
            got=found,
            next_step=AGAIN,
        )
    return len(present)


def list_digest(bundle: Path) -> str:
    """Returns the SHA-256 of the list itself: told apart from the bundle, it vouches for it all."""
    return file_digest(bundle / MANIFEST)


def _listed(manifest: Path) -> dict[str, str]:
    if not manifest.exists():
        raise RunError(
            "this folder is no bundle", where=manifest.parent, expected=f"a {MANIFEST} in it"
        )
    try:
        digests = json.loads(manifest.read_text(encoding="utf-8"))["sha256"]
        return {str(name): str(digest) for name, digest in digests.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            "the list of the bundle's files is damaged", where=manifest, got=error, next_step=AGAIN
        ) from error


def _digests(bundle: Path) -> dict[str, str]:
    files = sorted(path for path in bundle.rglob("*") if path.is_file() or path.is_symlink())
    names = {path.relative_to(bundle).as_posix(): path for path in files}
    return {name: _digest(path) for name, path in names.items() if name != MANIFEST}


def _digest(path: Path) -> str:
    return f"link to {path.readlink()}" if path.is_symlink() else file_digest(path)
