"""The image files of a folder: which split and class each belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from knowledge_recycling.data.images import SplitName
from knowledge_recycling.data.sources._squares import Item
from knowledge_recycling.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})

SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


def has_image_suffix(path: Path) -> bool:
    """Returns whether the name of the file is that of an image."""
    return path.suffix.lower() in SUFFIXES


def list_images(
    root: Path,
    is_image: Callable[[Path], bool] = has_image_suffix,
    expected: str = f"class folders with {', '.join(sorted(SUFFIXES))} files",
) -> dict[SplitName, list[Item]]:
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
    found = {split: _images_of_split(folder, root, is_image) for split, folder in folders.items()}
    if not any(found.values()):
        raise DataError(
            "the folder has no images in class folders",
            where=root,
            expected=expected,
            got=", ".join(sorted(entry.name for entry in root.iterdir())[:5]) or "an empty folder",
            next_step="put the images of each class into a folder named after the class",
        )
    return found


def _split_folders(root: Path) -> dict[SplitName, Path]:
    """Returns the folder of each split; the root is `train` where no split folder has folders."""
    folders = list(_folders(root, root))
    split_of = {folder: SPLIT_FOLDERS.get(folder.name.lower()) for folder in folders}
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


def _images_of_split(
    split_folder: Path, root: Path, is_image: Callable[[Path], bool]
) -> list[Item]:
    return [
        Item(path.relative_to(root).as_posix(), folder.name, path)
        for folder in _folders(split_folder, root)
        for path in _files(folder, root)
        if is_image(path)
    ]


def _folders(folder: Path, root: Path) -> Iterator[Path]:
    return (entry for entry in _visible(folder, root) if entry.is_dir())


def _files(folder: Path, root: Path) -> Iterator[Path]:
    """Yields the visible files in `folder` and in the folders below it."""
    for entry in _visible(folder, root):
        if entry.is_dir():
            yield from _files(entry, root)
        else:
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
    if not stays_inside(entry, root) or entry.is_dir():
        raise DataError(
            "a symbolic link leads to a folder or out of the folder of images",
            where=entry,
            expected="links to files inside it only",
            got=entry.readlink(),
            next_step="copy the images to the place of the link",
        )


def stays_inside(path: Path, root: Path) -> bool:
    """Returns whether `path`, all links followed, is in `root` or below it."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a circle of links
        return False
