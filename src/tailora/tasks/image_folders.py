"""Folders of images with one folder per class; a file is decoded when a batch needs it, and not before."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tailora.data import Table
from tailora.errors import DataError

if TYPE_CHECKING:
    import numpy as np

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
"""Endings of the files that are read."""


@dataclass(frozen=True)
class ImageFile:
    """An image that stays on the disk.

    Attributes:
        path: Where it is.
        name: Its path inside the folder of the data set.
    """

    path: str
    name: str

    @property
    def pixels(self) -> str:
        """The path, in place of the pixels: ``decode`` reads them for one batch at a time."""
        return self.path

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        try:
            with open(self.path, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"image {self.path!r} cannot be read: {error.strerror}; check its rights") from None

    def __str__(self) -> str:
        """Return the digest: a table's fingerprint takes values it does not know as text."""
        return self.digest


def read_image_folder(source: str, split: str) -> Table:
    """List a folder of images; no file is decoded, only its header is read.

    Args:
        source: A folder with one folder per class, or with such folders for each split.
        split: The split, where the folder has one of that name.

    Returns:
        A table with the columns ``image`` and ``label``, sorted by path; class names are the names of the folders.

    Raises:
        DataError: There is no class folder or no image in one, there is one class only, a file is no image, or Pillow
            is not installed.
    """
    if not find_spec("PIL"):
        raise DataError(f"image folder {source!r} cannot be read without the package pillow; install it")
    root = Path(source).expanduser()
    if (root / split).is_dir() and not _images(root / split, deep=False):
        root = root / split
    classes = _classes(root, source)
    images, labels = [], []
    for folder in classes:
        files = _images(folder, deep=True)
        if not files:
            raise DataError(
                f"class folder {str(folder)!r} has no image ({', '.join(IMAGE_SUFFIXES)}); add some, or remove the "
                "folder"
            )
        for file in files:
            _check_header(file)
            images.append(ImageFile(str(file), file.relative_to(root).as_posix()))
            labels.append(folder.name)
    return Table({"image": images, "label": labels}, source)


def decode(path: str, channels: int) -> np.ndarray:
    """Read one image file in the colours that a model reads.

    Args:
        path: A file as ``read_image_folder`` found it.
        channels: 1 turns a coloured image grey, 3 repeats a grey one.

    Returns:
        ``[height, width, channels]``: uint8, or float32 from 0 to 1 where the file has 16 bits per channel.  It is
        turned as its camera noted; transparency is dropped.

    Raises:
        DataError: The file is damaged, or is there no longer.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                # Pillow would cut 16 bits to the lowest 8 and leave most pixels white.
                grey = np.asarray(image, dtype=np.float32) / 65535
                return np.repeat(np.clip(grey, 0, 1)[..., None], channels, axis=-1)
            array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _damaged(path, error) from None
    return array.reshape(*array.shape[:2], channels)


def _classes(root: Path, source: str) -> list[Path]:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        loose = len(_images(root, deep=False))
        what = f"holds {loose} image(s) but no folder per class" if loose else "is empty"
        raise DataError(
            f"image folder {source!r} {what}; put the images of each class into a folder with the name of the class"
        )
    if len(folders) == 1:
        raise DataError(
            f"image folder {source!r} has only the class folder {folders[0].name!r}; classification needs two or more"
        )
    return folders


def _images(folder: Path, *, deep: bool) -> list[Path]:
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(
        path
        for path in found
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _check_header(path: Path) -> None:
    """Open a file, which reads its format and size alone: hundreds of thousands of images take minutes to decode."""
    from PIL import Image

    try:
        Image.open(path).close()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _damaged(str(path), error) from None


def _damaged(path: str, error: Exception) -> DataError:
    # Pillow names the file again, or the buffer that it read it into.
    reason = "no image that Pillow knows" if "identify" in str(error) else str(error).rstrip(".")
    return DataError(f"image {path!r} is damaged or cannot be read ({reason}); replace or remove it")
