"""Files that are whole or absent, and hashes that do not depend on key order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailora.errors import UserError


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no white space, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(value: Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def check_writable(folder: str | Path) -> None:
    """Refuse an output folder that cannot be made or written to; nothing is made yet.

    Args:
        folder: The folder, which need not exist.

    Raises:
        UserError: A file is in its way, or its nearest folder is closed.
    """
    folder = Path(folder)
    above = next(place for place in (folder.absolute(), *folder.absolute().parents) if _exists(place))
    if not above.is_dir():
        raise UserError(f"{str(folder)!r} cannot be written to: {str(above)!r} is a file; choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(
            f"{str(folder)!r} cannot be written to: folder {str(above)!r} is closed to writing; choose another place, "
            "or change its rights"
        )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{str(path)[:80]!r} cannot be used as a path ({reason}); choose another place") from None


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` so that a reader sees the old file or the new one, never a part.

    Args:
        path: Where to write; missing parent folders are made.
        text: UTF-8 text.

    Returns:
        The path written.

    Raises:
        UserError: It is a folder, or nothing can be written there.
    """
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write ``data`` so that a reader sees the old file or the new one, never a part.

    Args:
        path: Where to write; missing parent folders are made.
        data: What to write.

    Returns:
        The path written.

    Raises:
        UserError: It is a folder, or nothing can be written there.
    """
    path = Path(path)
    write_together(path.parent, {path.name: data})
    return path


def write_together(folder: str | Path, files: Mapping[str, bytes | None]) -> None:
    """Write several files of one folder, all of them or, where the disk is full or closed, none.

    Everything is on disk under temporary names before the first file is replaced, in the order of ``files``.

    Args:
        folder: Where to; made if missing.
        files: Name to content; a file whose content is ``None`` is removed.

    Raises:
        UserError: A name is that of a folder, or nothing can be written there.
    """
    folder = Path(folder)
    check_writable(folder)
    for name in files:
        if (folder / name).is_dir():
            raise UserError(f"{str(folder / name)!r} is a folder; give the name of a file in it")
    folder.mkdir(parents=True, exist_ok=True)
    # mkstemp makes private files; give the results the permissions an ordinary open() would.
    umask = os.umask(0)
    os.umask(umask)
    staged: dict[str, str] = {}
    try:
        for name, data in files.items():
            if data is None:
                continue
            handle, staged[name] = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=".tmp")
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(staged[name], 0o666 & ~umask)
        for name in files:
            if name in staged:
                os.replace(staged.pop(name), folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        # A full disk says so without saying which.
        error.filename = error.filename or str(folder)
        raise
    finally:
        for temporary in staged.values():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON, atomically.

    Args:
        path: Where to write.
        value: Anything JSON can hold.

    Returns:
        The path written.
    """
    return write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return indented JSON for people to read, with a line's end.

    Args:
        value: Anything JSON can hold.

    Returns:
        The text.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_text(
    path: str | Path, what: str, error: type[UserError] = UserError, *, recode: str = "is it the right file?"
) -> str:
    """Read a text file.

    Args:
        path: The file.
        what: What the file is meant to be, for the error sentence.
        error: The error to raise.
        recode: The way out where it is not UTF-8.

    Returns:
        The text, without the mark that spreadsheets and some editors write in front.

    Raises:
        UserError: The file is missing, a folder, not UTF-8 or unreadable.
    """
    name = f"{what} {str(path)!r}"
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise error(f"{name} does not exist; check the path") from None
    except IsADirectoryError:
        raise error(f"{name} is a folder; give the file inside it") from None
    except UnicodeDecodeError as found:
        raise error(f"{name} is not UTF-8 text (byte {found.start}); {recode}") from None
    except OSError as found:
        raise error(f"{name} cannot be read: {found.strerror}; check its name and rights") from None
    except ValueError as found:
        # A NUL inside the name is no error of the operating system's.
        raise error(f"{name} is no path: {found}; check it") from None


def read_json(path: str | Path, what: str = "file") -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        what: What the file is meant to be, for the error sentence.

    Returns:
        The decoded value.

    Raises:
        UserError: The file is missing, a folder, unreadable, or not JSON.
    """
    text = read_text(path, what)
    name = f"{what} {str(path)!r}"
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{name} is not valid JSON (line {error.lineno}: {error.msg}); was it edited or cut off?"
        ) from None
    except (RecursionError, ValueError):
        # Thousands of brackets, or a number of thousands of digits: JSON by the letter, and nothing we ever wrote.
        raise UserError(f"{name} nests or counts too far to be read; is it the right file?") from None
