"""Images from ``.npz`` files and folders, and how they are brought to the size and range a model expects."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailora.artifacts import write_json
from tailora.config import RunConfig, TaskConfig
from tailora.data import Table
from tailora.errors import ConfigError, DataError, did_you_mean
from tailora.tasks.image_folders import decode, read_image_folder

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Image:
    """One image.

    Attributes:
        pixels: ``[height, width, channels]``; integers from 0 to 255, or fractions from 0 to 1.
    """

    pixels: np.ndarray

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the shape, the type and every pixel."""
        head = f"{self.pixels.shape} {self.pixels.dtype} ".encode()
        return hashlib.sha256(head + self.pixels.tobytes()).hexdigest()

    def __str__(self) -> str:
        """Return the digest: a table's fingerprint takes values it does not know as text."""
        return self.digest


def read_images(source: str, task: TaskConfig, split: str = "train") -> Table:
    """Read an ``.npz`` file, or list a folder of images.

    Args:
        source: Path of the file, or of a folder for ``read_image_folder``.
        task: Names the arrays with ``text`` and ``label``; ``images`` and ``labels`` where those are left as they are.
        split: Which part of a folder that has folders for several.

    Returns:
        A table with the columns ``image`` and ``label``.

    Raises:
        DataError: The file or an array is missing or has another form, a pixel is out of range, or there is no image.
    """
    import numpy as np

    path = Path(source).expanduser()
    if path.is_dir():
        return read_image_folder(source, split)
    if path.suffix.lower() != ".npz" or not path.is_file():
        what = "is no .npz file and no folder" if path.exists() else "does not exist"
        raise DataError(
            f"image data {source!r} {what}; give a folder with one folder per class, or save arrays 'images' and "
            "'labels' with numpy.savez"
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"image data {source!r} cannot be read ({error}); save it with numpy.savez") from None
    defaults = TaskConfig.model_fields
    images = _array(held, "images" if task.text == defaults["text"].default else str(task.text), source, "task.text")
    labels = _array(
        held, "labels" if task.label == defaults["label"].default else str(task.label), source, "task.label"
    )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size or labels.shape != images.shape[:1]:
        raise DataError(
            f"image data {source!r} holds images {list(images.shape)} and labels {list(labels.shape)}; give images "
            "[n, height, width] or [n, height, width, 3] and labels [n]"
        )
    _check_range(images, source)
    return Table({"image": [Image(image) for image in images], "label": labels.tolist()}, source)


def _array(held: dict[str, np.ndarray], name: str, source: str, key: str) -> np.ndarray:
    if name in held:
        return held[name]
    hint = did_you_mean(name, held) or ";"
    raise DataError(
        f"image data {source!r} has no array {name!r}{hint} arrays: {', '.join(held) or 'none'} (set {key})"
    )


def _check_range(images: np.ndarray, source: str) -> None:
    import numpy as np

    if images.dtype == np.uint8:
        return
    fractions = images.dtype.kind == "f"
    low, high = float(images.min()), float(images.max())
    if images.dtype.kind not in "iuf" or not (low >= 0 and high <= (1 if fractions else 255)):
        raise DataError(
            f"image data {source!r} holds {images.dtype} pixels from {low:g} to {high:g}; give integers from 0 to 255 "
            "or fractions from 0 to 1"
        )


@dataclass(frozen=True)
class Preparation:
    """How images become a model's input.

    Resized with torch: transformers' own processors need torchvision or Pillow, depending on the model.

    Attributes:
        height: In pixels, as the model was built for.
        width: In pixels.
        channels: 1 or 3; a grey image is repeated for a model with 3.
        mean: Subtracted from each channel of the pixels between 0 and 1.
        std: What the difference is divided by.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, config: RunConfig, model: Any) -> Preparation:
        """Return what a model expects, by its configuration and its ``preprocessor_config.json`` if it has one.

        Args:
            config: The run's configuration, which names the model.
            model: The model.

        Returns:
            Sizes and normalisation; one half for mean and deviation where the model does not say.

        Raises:
            ConfigError: The model does not say how large its images are.
        """
        size, channels = getattr(model.config, "image_size", None), getattr(model.config, "num_channels", 3)
        if size is None:
            raise ConfigError(
                f"model {config.model!r} ({type(model).__name__}) has no image_size in its config.json; add it"
            )
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        told = _preprocessor(config)
        mean, std = told.get("image_mean") or [0.5], told.get("image_std") or [0.5]
        spread = [tuple((list(values) * channels)[:channels]) for values in (mean, std)]
        return cls(height, width, channels, spread[0], spread[1])

    def prepare(self, pixels: np.ndarray | str) -> torch.Tensor:
        """Return one image as the model's input.

        Args:
            pixels: ``[height, width, channels]``, or ``[height, width]``; or the path of an image file.

        Returns:
            float32 ``[channels, height, width]``.

        Raises:
            DataError: A colour image in an array for a model that reads grey ones, or a damaged file.
        """
        import numpy as np
        import torch

        array = decode(str(pixels), self.channels) if isinstance(pixels, str) else np.asarray(pixels)
        scale = 1.0 if array.dtype.kind == "f" else 255.0
        image = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)) / scale
        image = image.reshape(*image.shape[:2], -1).permute(2, 0, 1)
        if len(image) > self.channels:
            raise DataError(
                f"an image has {len(image)} channels and the model reads {self.channels}; turn the images grey first"
            )
        image = image.expand(self.channels, -1, -1)
        if image.shape[1:] != (self.height, self.width):
            size = (self.height, self.width)
            image = torch.nn.functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        return (image - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``preprocessor_config.json`` beside an adapter, under transformers' names.

        Args:
            folder: An existing folder.
        """
        facts = asdict(self)
        size = {"height": facts["height"], "width": facts["width"]}
        told = {"size": size, "image_mean": list(self.mean), "image_std": list(self.std), "do_normalize": True}
        write_json(Path(folder) / "preprocessor_config.json", told | {"do_resize": True, "do_rescale": True})


def _preprocessor(config: RunConfig) -> dict[str, Any]:
    """Read the model's ``preprocessor_config.json`` without building the processor, which may need torchvision."""
    from transformers.image_processing_base import ImageProcessingMixin

    arguments = {"revision": config.revision} if config.revision else {}
    try:
        return ImageProcessingMixin.get_image_processor_dict(config.model, **arguments)[0]
    except (OSError, ValueError):
        return {}
