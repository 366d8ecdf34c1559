"""Files that are whole or absent, and hashes that do not depend on key order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tailora.errors import UserError


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no white space, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(value: Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` so that a reader sees the old file or the new one, never a part.

    Args:
        path: Where to write; missing parent folders are made.
        text: UTF-8 text.

    Returns:
        The path written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; give the result the permissions an ordinary open() would.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON, atomically.

    Args:
        path: Where to write.
        value: Anything JSON can hold.

    Returns:
        The path written.
    """
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


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
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{what} {str(path)!r} does not exist; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{what} {str(path)!r} is a folder; give the JSON file inside it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {str(path)!r} is not UTF-8 text (byte {error.start}); is it the right file?") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{what} {str(path)!r} is not valid JSON (line {error.lineno}: {error.msg}); was it edited or cut off?"
        ) from None
    except (RecursionError, ValueError):
        # Thousands of brackets, or a number of thousands of digits: JSON by the letter, and nothing we ever wrote.
        raise UserError(f"{what} {str(path)!r} nests or counts too far to be read; is it the right file?") from None
    except OSError as error:
        raise UserError(f"{what} {str(path)!r} cannot be read: {error.strerror}") from None
