"""Data sets from files, folders and hub ids: formats, labels, splits, fingerprints, tokens and packing."""

from __future__ import annotations

from tailora.data.encoding import Encoded, EncodingReport
from tailora.data.labels import Labels
from tailora.data.splits import carve, sample
from tailora.data.table import Table, read_table

__all__ = ["Encoded", "EncodingReport", "Labels", "Table", "carve", "read_table", "sample"]
