"""The image files of a folder: which split and class each belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from knowledge_recycling.data.images import SplitName
from knowledge_recycling.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})

_SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True)
class ImageFile:
    """One image of the folder."""

    path: Path
    name: str
    """Path below the root, with `/`."""
    class_name: str


def list_images(root: Path) -> dict[SplitName, list[ImageFile]]:
    """Returns the images of each split, sorted by name; all are `train` without split folders.

    Hidden files and folders and files that are not images are passed over.

    Raises:
        DataError: The folder is missing or has no class with images, a folder does not fit among
            the splits, or a link leads to a folder or out of this one.
    """
    if not root.is_dir():
        raise DataError(
            "the folder of images does not exist",
            where=root,
            expected="a folder with one folder per class",
            got="a file" if root.exists() else "nothing",
            next_step="correct the path; a relative one starts at the current folder",
        )
    folders = _split_folders(root)
    found = {split: _images_of_split(folder, root) for split, folder in folders.items()}
    if not any(found.values()):
        raise DataError(
            "the folder has no images in class folders",
            where=root,
            expected=f"class folders with {', '.join(sorted(SUFFIXES))} files",
            got=", ".join(sorted(entry.name for entry in root.iterdir())[:5]) or "an empty folder",
            next_step="put the images of each class into a folder named after the class",
        )
    return found


def _split_folders(root: Path) -> dict[SplitName, Path]:
    """Returns the folder of each split; the root is `train` where no split folder has folders."""
    folders = list(_folders(root, root))
    split_of = {folder: _SPLIT_FOLDERS.get(folder.name.lower()) for folder in folders}
    if not any(split_of[folder] and any(_folders(folder, root)) for folder in folders):
        return {"train": root}
    found: dict[SplitName, Path] = {}
    for folder, split in split_of.items():
        if split is None or split in found:
            raise DataError(
                f"the folder '{folder.name}' does not fit among split folders",
                where=root,
                expected="train and, if there are, test and one of val, valid, validation",
                got=", ".join(folder.name for folder in folders),
                next_step=f"move or rename '{folder.name}'",
            )
        found[split] = folder
    return found


def _images_of_split(split_folder: Path, root: Path) -> list[ImageFile]:
    return [
        ImageFile(path, path.relative_to(root).as_posix(), folder.name)
        for folder in _folders(split_folder, root)
        for path in _files(folder, root)
    ]


def _folders(folder: Path, root: Path) -> Iterator[Path]:
    return (entry for entry in _visible(folder, root) if entry.is_dir())


def _files(folder: Path, root: Path) -> Iterator[Path]:
    """Yields the image files in `folder` and in the folders below it."""
    for entry in _visible(folder, root):
        if entry.is_dir():
            yield from _files(entry, root)
        elif entry.suffix.lower() in SUFFIXES:
            yield entry


def _visible(folder: Path, root: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith("."):
            _check_link(entry, root)
            yield entry


def _check_link(entry: Path, root: Path) -> None:
    """Refuses what would read outside the folder, and links to folders, which may form a loop."""
    if not entry.is_symlink():
        return
    target = entry.resolve()
    if target.is_dir() or not target.is_relative_to(root.resolve()):
        raise DataError(
            "a symbolic link leads to a folder or out of the folder of images",
            where=entry,
            expected="links to files inside it only",
            got=target,
            next_step="copy the images to the place of the link",
        )
