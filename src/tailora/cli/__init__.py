"""The command line: thin commands over the library, one file each."""

from __future__ import annotations

from tailora.cli.app import main

__all__ = ["main"]
