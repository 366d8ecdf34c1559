"""BibTeX for the recipes of a report: known sources by arXiv id, DOI or repository, the citation itself for others."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tailora._version import __version__
from tailora.report.latex import escape_latex
from tailora.yaml_files import read_yaml

_FILE = Path(__file__).parent / "references.yaml"
_ARXIV = re.compile(r"(?i)\barxiv[\s:.]*(\d{4}\.\d{4,5})(?:v\d+)?(?!\d)")
_DOI = re.compile(r"(?i)\b(10\.\d{4,9}/[^\s\"<>{}|\\^,;]*[^\s\"<>{}|\\^,;.)\]])")
_ORDER = ("author", "title", "journal", "volume", "number", "pages", "year", "eprint", "archivePrefix", "doi")


@dataclass(frozen=True)
class Entry:
    """One entry of a ``.bib`` file.

    Attributes:
        key: What a citation in LaTeX names; the same in every report.
        kind: ``misc`` or ``article``.
        fields: Field name to value, already LaTeX.
    """

    key: str
    kind: str
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The entry as BibTeX."""
        names = sorted(self.fields, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
        inner = "".join(f"  {name} = {{{self.fields[name]}}},\n" for name in names)
        return f"@{self.kind}{{{self.key},\n{inner}}}\n"


def entries_for(recipe: str, citation: str) -> list[Entry]:
    """Return the entries that a recipe's citation stands for.

    Sources that are known by their arXiv id, DOI, repository or name come with author and title. Another arXiv id or
    DOI becomes an entry that holds it and the citation as its note: nothing is guessed.

    Args:
        recipe: Name of the recipe, the key where the citation names no source.
        citation: Its citation.

    Returns:
        Entries in the order of ``references.yaml``, then those that are not known; empty without a citation.
    """
    if not citation.strip():
        return []
    eprints = list(dict.fromkeys(_ARXIV.findall(citation)))
    dois = list(dict.fromkeys(_DOI.findall(citation)))
    found = [
        _entry(key, known)
        for key, known in _library().items()
        if known.get("eprint") in eprints
        or str(known.get("doi", "")).lower() in map(str.lower, dois)
        or any(known.get(name) and _names(citation, known[name]) for name in ("repository", "named"))
    ]
    told = {
        value.lower() for entry in found for value in (entry.fields.get("eprint"), entry.fields.get("doi")) if value
    }
    note = escape_latex(citation)
    for eprint in eprints:
        if eprint not in told:
            known = {"eprint": eprint, "archivePrefix": "arXiv", "note": note}
            found.append(Entry(f"arxiv{eprint}", "misc", known))
    for doi in dois:
        # DataCite's DOI of an arXiv paper says nothing that its number does not.
        if doi.lower() not in told and not doi.lower().startswith("10.48550/arxiv"):
            found.append(Entry(f"doi{_key(doi)}", "misc", {"doi": doi, "note": note}))
    return found or [Entry(f"recipe-{_key(recipe)}", "misc", {"note": note})]


def known_entry(key: str) -> Entry:
    """Return a source of ``references.yaml``.

    Args:
        key: Its citation key.

    Returns:
        The entry.
    """
    return _entry(key, _library()[key])


def bibliography(entries: Iterable[Entry]) -> str:
    """Return a ``.bib`` file: every entry once, sorted by key.

    Args:
        entries: Entries, repeated ones included.

    Returns:
        BibTeX text; empty without entries.
    """
    unique = {entry.key: entry for entry in entries}
    return "\n".join(unique[key].text for key in sorted(unique))


@functools.cache
def _library() -> dict[str, dict[str, Any]]:
    return read_yaml(_FILE, "reference file", "hu2021lora: {type: misc}")


def _entry(key: str, known: Mapping[str, Any]) -> Entry:
    fields = {name: str(value) for name, value in known.items() if name not in ("type", "named", "repository")}
    if key == "tailora":
        fields["version"] = __version__
    if "eprint" in fields:
        fields["archivePrefix"] = "arXiv"
    if "repository" in known:
        fields["howpublished"] = rf"GitHub repository {escape_latex(str(known['repository']))}"
    return Entry(key, str(known["type"]), fields)


def _names(citation: str, name: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", citation, re.IGNORECASE) is not None


def _key(text: str) -> str:
    """Return a key of letters, digits and a few marks that every BibTeX takes."""
    return re.sub(r"[^A-Za-z0-9.:/-]+", "-", text).strip("-") or "unnamed"
