"""Reading data sets: local tables, plain text and hub ids, with labels, splits and fingerprints."""

from __future__ import annotations

from tailora.data.labels import Labels
from tailora.data.splits import carve, sample
from tailora.data.table import Table, read_table

__all__ = ["Labels", "Table", "carve", "read_table", "sample"]
