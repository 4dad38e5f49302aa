"""The bundle's list of files with their SHA-256, and the check of a bundle against it."""

from __future__ import annotations

from pathlib import Path

from knowledge_recycling.errors import RunError
from knowledge_recycling.storage import file_digest, read_json, write_json

MANIFEST = "MANIFEST.json"


def write_manifest(bundle: Path) -> None:
    """Writes the digests of all files of the bundle."""
    write_json(bundle / MANIFEST, {"sha256": _digests(bundle)})


def verify(bundle: Path) -> int:
    """Returns the number of files of a bundle that is as it was released.

    Raises:
        RunError: It is no bundle, or a file is changed, missing, or not on the list.
    """
    if not (bundle / MANIFEST).exists():
        raise RunError("this folder is no bundle", where=bundle, expected=f"a {MANIFEST} in it")
    listed, present = read_json(bundle / MANIFEST)["sha256"], _digests(bundle)
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
            next_step="get the bundle again from where it was released",
        )
    return len(present)


def _digests(bundle: Path) -> dict[str, str]:
    files = sorted(path for path in bundle.rglob("*") if path.is_file() or path.is_symlink())
    names = {path.relative_to(bundle).as_posix(): path for path in files}
    return {name: file_digest(path) for name, path in names.items() if name != MANIFEST}
