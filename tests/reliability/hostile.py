"""Image files as one may meet them and as one should not, each with what may come of it."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (16, 16), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Odd:
    """A file that is put among good ones."""

    name: str
    content: bytes | Callable[[Path], object]
    """What it holds, or what makes it at its path."""
    may_be_read: bool = False
    """Whether it is an image that may come back, or one to be refused by name."""
    may_be_refused: bool = False
    """Of an image that may come back: whether its decoder may also refuse it."""


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def trap(marker: Path) -> bytes:
    return pickle.dumps(Trap(marker))


def encoded(image: Image.Image | np.ndarray, format: str = "PNG", **options: Any) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """Returns a small PNG whose header tells of a large image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000), 9)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bmp_claiming(width: int, height: int) -> bytes:
    whole = bytearray(encoded(COLOUR, "BMP"))
    whole[18:26] = struct.pack("<ii", width, height)
    return bytes(whole)


def jpeg_claiming(width: int, height: int) -> bytes:
    whole = bytearray(encoded(COLOUR, "JPEG"))
    start = whole.index(b"\xff\xc0")
    whole[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(whole)


def real_bomb() -> bytes:
    """Returns 30,000 x 30,000 white pixels in some 100 kB."""
    return encoded(Image.new("1", (30_000, 30_000), 1))


def odd_files() -> Iterator[Odd]:
    yield from unusual_images()
    yield from unusual_names()
    yield from no_images()
    yield from damaged_images()


def unusual_images() -> Iterator[Odd]:
    """Yields images of every size and mode that Pillow writes."""
    for width, height in ((1, 1), (20_000, 1), (1, 20_000), (3, 500), (16, 16)):
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
            image = Image.new(mode, (width, height), None if mode == "I;16" else 1)
            yield Odd(f"{mode[0]}{len(mode)}-{width}x{height}.png", encoded(image), True)
        for mode in ("L", "RGB", "CMYK"):
            image = Image.new(mode, (width, height))
            for format, suffix in (("JPEG", "jpg"), ("TIFF", "tif")):  # noqa: A001
                yield Odd(f"{mode}-{width}x{height}.{suffix}", encoded(image, format), True)
    for mode in ("LAB", "RGBX", "F", "I"):
        yield Odd(f"{mode}.tif", encoded(Image.new(mode, (16, 16)), "TIFF"), mode != "F")
    ycbcr = encoded(Image.new("YCbCr", (16, 16)), "TIFF")
    yield Odd("YCbCr.tif", ycbcr, may_be_read=True, may_be_refused=True)  # by Pillow 10
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    several = {"save_all": True, "append_images": frames[1:]}
    yield Odd("animated.png", encoded(frames[0], **several))
    yield Odd("pages.tif", encoded(frames[0], "TIFF", **several))
    yield Odd("several.jpg", encoded(frames[0], "MPO", **several), True)
    yield Odd("interlaced.png", encoded(COLOUR, optimize=True), True)
    yield Odd("progressive.jpg", encoded(COLOUR, "JPEG", progressive=True), True)


def unusual_names() -> Iterator[Odd]:
    """Yields good images under names that break careless programs."""
    names = [
        *("new\nline", "<script>alert(1)<_script>", "tab\t", "quote'\"", "{0}%s$(x)", "-rf"),
        *(
            " space ",
            "[bold]rich[_bold]",
            "\u00e9",
            "\u5b57",
            "\U0001f600",
            "a" * 240,
            "\x1b[31mred",
        ),
        *("back\\slash", "dots..", "con", "\udcff\udcfe"),
    ]
    for name in names:
        for suffix in ("png", "PNG"):
            yield Odd(f"{name}.{suffix}", encoded(GREY), True)


def no_images() -> Iterator[Odd]:
    """Yields what is no image, claims to be huge, or leads elsewhere."""
    wrong = {
        "empty": b"",
        "zeros": bytes(1000),
        "one": b"\x89",
        "text": b"<html><script>alert(1)</script></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "gif": encoded(GREY, "GIF"),
        "webp": encoded(COLOUR, "WEBP"),
        "pdf": encoded(GREY, "PDF"),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        "pickle": trap(Path("x")),
        "zip": b"PK\x03\x04" + bytes(50),
        "noise": RNG.bytes(5000),
        "ico": encoded(GREY, "ICO"),
    }
    for kind, content in wrong.items():
        for suffix in ("png", "jpg", "tiff", "bmp"):
            yield Odd(f"{kind}.{suffix}", content)
    yield Odd("jpeg.png", encoded(COLOUR, "JPEG"), True)  # the content tells, not the name
    yield Odd("png.bmp", encoded(COLOUR), True)
    for width, height in ((50_000, 50_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (0, 0), (0, 9)):
        yield Odd(f"claims-{width}x{height}.png", png_claiming(width, height))
    for width, height in ((60_000, 60_000), (2**31 - 1, 2), (0, 5), (-5, 5)):
        yield Odd(f"claims-{width}x{height}.bmp", bmp_claiming(width, height))
    for width, height in ((65_500, 65_500), (0, 5)):
        yield Odd(f"claims-{width}x{height}.jpg", jpeg_claiming(width, height))
    yield Odd("bomb.png", real_bomb())
    yield Odd("passwords.png", lambda path: path.symlink_to("/etc/passwd"))
    yield Odd("nowhere.png", lambda path: path.symlink_to("missing.png"))
    yield Odd("circle.png", lambda path: path.symlink_to(path.name))
    yield Odd("up.png", lambda path: path.symlink_to(".."))
    yield Odd("device.png", lambda path: path.symlink_to("/dev/zero"))
    yield Odd("pipe.png", os.mkfifo)


def damaged_images() -> Iterator[Odd]:
    """Yields good images cut off or with a byte changed, by chance."""
    for format, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("TIFF", "tif"), ("BMP", "bmp")):  # noqa: A001
        whole = encoded(COLOUR, format)
        for number, cut in enumerate(np.linspace(1, len(whole) - 1, 8).astype(int)):
            yield Odd(f"cut-{number}.{suffix}", whole[:cut], True, True)
        for number, place in enumerate(RNG.integers(0, min(len(whole), 120), 12)):
            changed = bytearray(whole)
            changed[place] ^= int(RNG.integers(1, 256))
            yield Odd(f"changed-{number}.{suffix}", bytes(changed), True, True)
