"""Failures of the machine in one sentence: memory that is not there, a disk that is full, a folder that is closed."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from tailora.config import RunConfig
from tailora.errors import TailoraError, TrainingError, UserError

_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
_FULL = ("no space left on device", "disk quota exceeded", "pytorchstreamwriter failed", "file write failed")
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}


class StorageError(TailoraError):
    """The disk is full."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on a GPU or in the process.

    Args:
        error: Any error.

    Returns:
        Whether it does.
    """
    if isinstance(error, MemoryError):
        return True
    # torch's CPU allocator raises a plain RuntimeError; its GPU error is a subclass of it.
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY)


@contextlib.contextmanager
def memory_advice(config: RunConfig, stage: str) -> Iterator[None]:
    """Turn running out of memory into a sentence that names settings that need less.

    Args:
        config: The run's configuration.
        stage: Such as ``profile``, ``train`` or ``evaluate``.

    Yields:
        Nothing.

    Raises:
        TrainingError: Memory ran out inside the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, TailoraError) or not is_out_of_memory(error):
            raise
        raise TrainingError(f"memory ran out ({stage}); {_smaller(config, stage)}") from error


def _smaller(config: RunConfig, stage: str) -> str:
    """Name the settings that do the same with less memory."""
    training = config.training
    if stage in ("profile", "start") and config.calibration.batch_size > 1:
        size = config.calibration.batch_size
        return f"lower calibration.batch_size={size}, such as {size // 2}: the profile does not depend on it"
    if stage == "evaluate" and training.per_device_eval_batch_size > 1:
        size = training.per_device_eval_batch_size
        return f"lower training.per_device_eval_batch_size={size}, such as {size // 2}: the scores do not depend on it"
    size, groups = training.per_device_train_batch_size, training.gradient_accumulation_steps
    if stage == "train" and size > 1:
        smaller = next(part for part in range(size // 2, 0, -1) if size % part == 0)
        return (
            f"training.per_device_train_batch_size={size} is too much; use "
            f"training.per_device_train_batch_size={smaller} "
            f"training.gradient_accumulation_steps={groups * size // smaller}, which is the same "
            f"{size * groups} examples per step"
        )
    if stage == "train" and not training.gradient_checkpointing:
        return "use training.gradient_checkpointing=true, which computes more and stores less"
    return f"lower task.max_length={config.task.max_length}, or use a smaller model"


def explain(error: BaseException, place: str | Path = "") -> TailoraError | None:
    """Return the sentence for a disk that is full or a folder that cannot be written.

    Args:
        error: What was raised.
        place: The folder that was written to.

    Returns:
        The error to raise instead, or ``None`` where it is something else.
    """
    if isinstance(error, TailoraError):
        return None
    number = getattr(error, "errno", None)
    where = str(place or getattr(error, "filename", None) or "the output folder")
    text = str(error).lower()
    # safetensors and torch.save have errors of their own, which only carry the system's words.
    wrapped = not isinstance(error, OSError) and any(words in text for words in _FULL)
    if number in {errno.ENOSPC, errno.EDQUOT} or wrapped:
        return StorageError(f"the disk of {where!r} is full; free some space and run the same command again")
    if isinstance(error, OSError) and number in _CLOSED:
        name = str(error.filename or where)
        return UserError(f"{name!r} cannot be used ({error.strerror}); choose another folder, or change its rights")
    if isinstance(error, NotADirectoryError | FileExistsError):
        name = str(error.filename or where)
        return UserError(f"{name!r} is in the way ({error.strerror}); choose another output folder")
    return None
