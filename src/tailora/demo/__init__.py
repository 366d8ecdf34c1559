"""The whole story in a few minutes, with what is on the machine: no hub, no download."""

from __future__ import annotations

from tailora.demo.show import run_demo

__all__ = ["run_demo"]
