"""``python -m tailora``."""

from __future__ import annotations

from tailora.cli import main

main()
