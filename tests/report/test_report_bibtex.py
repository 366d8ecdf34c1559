"""BibTeX: every shipped recipe has an entry, every entry parses, nothing is made up for what is not known."""

from __future__ import annotations

import re

import pytest
from report_fixtures import write_run

from tailora.recipes import list_recipes
from tailora.report import write_report
from tailora.report.bibtex import bibliography, entries_for, known_entry


def parse(text):
    """Read BibTeX strictly: ``@kind{key, name = {balanced}, ...}`` and nothing else between the entries."""
    found, place = {}, 0
    for head in re.finditer(r"@(\w+)\{([A-Za-z0-9.:/-]+),\n", text):
        assert not text[place : head.start()].strip()
        place, fields = head.end(), {}
        while not text.startswith("}\n", place):
            name = re.compile(r"  (\w+) = \{").match(text, place)
            assert name, text[place : place + 40]
            depth, end = 1, name.end()
            while depth:
                # A backslash takes the next letter with it, as \{ opens nothing.
                end += 2 if text[end] == "\\" else 0
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            assert text.startswith(",\n", end)
            assert name[1] not in fields
            fields[name[1]] = text[name.end() : end - 1]
            place = end + 2
        place += 2
        assert head[2] not in found
        found[head[2]] = (head[1], fields)
    assert not text[place:].strip()
    return found


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)
def test_every_shipped_recipe_has_an_entry(recipe):
    entries = entries_for(recipe.name, recipe.citation)
    known = parse(bibliography(entries))
    assert known
    assert all("title" in fields for _, fields in known.values())
    for eprint in re.findall(r"arXiv (\S+?)[,.]?(?=\s|$)", recipe.citation):
        (fields,) = [fields for _, fields in known.values() if fields.get("eprint") == eprint]
        assert fields["archivePrefix"] == "arXiv"
        assert " and " in fields["author"] or recipe.name == "rslora"
        # The first author and the year that the citation gives, so that the two cannot drift apart.
        told = re.search(r"(\S+) et al\. (\d{4})", recipe.citation)
        if told:
            assert fields["author"].startswith(told[1])
            assert fields["year"] == told[2]


def test_entries_and_keys_by_hand():
    (entry,) = entries_for("lora", "Hu et al. 2021, LoRA, arXiv:2106.09685v2")
    assert entry.key == "hu2021lora"
    assert entry.text.startswith("@misc{hu2021lora,\n  author = {Hu, Edward J. and ")
    keys = [entry.key for entry in entries_for("spectral", "Tailora; marginal gain by Eckart and Young 1936")]
    assert keys == ["eckart1936approximation", "tailora"]
    assert known_entry("holm1979simple").kind == "article"


def test_what_is_not_known_is_not_made_up():
    (entry,) = entries_for("mine", "Me & You, 50 % of {it}, arXiv 2501.12345")
    assert (entry.key, entry.fields["eprint"]) == ("arxiv2501.12345", "2501.12345")
    assert set(entry.fields) == {"eprint", "archivePrefix", "note"}
    assert entry.fields["note"] == r"Me \& You, 50 \% of \{it\}, arXiv 2501.12345"
    (other,) = entries_for("mine", "Somebody 2020, doi 10.1234/ab_c.d.")
    assert other.fields["doi"] == "10.1234/ab_c.d"
    (bare,) = entries_for("my recipe ü", "a talk } with \\ and a brace")
    assert bare.key == "recipe-my-recipe"
    assert entries_for("none", " ") == []
    # Four digits more would be another paper.
    assert entries_for("x", "arXiv 2106.096851")[0].key == "recipe-x"
    parse(bibliography([entry, other, bare]))


def test_the_file_lies_beside_the_page_and_the_page_holds_it(tmp_path):
    write_run(tmp_path, "lora", 0, examples=20)
    write_run(tmp_path, "fim-lora", 0, examples=20, citation="Anon, arXiv 2501.00001, <script>")
    page = write_report(tmp_path).read_text()
    text = (tmp_path / "references.bib").read_text()
    # Holm's correction is used where something was compared, McNemar's test where answers are right or wrong.
    assert list(parse(text)) == ["arxiv2501.00001", "holm1979simple", "hu2021lora", "mcnemar1947note"]
    assert "<code>hu2021lora</code>" in page
    assert "@misc{hu2021lora," in page
    assert "`hu2021lora`" in (tmp_path / "report.md").read_text()
    assert "<script" not in page


def test_no_recipe_no_references(tmp_path):
    write_run(tmp_path, "mine", examples=20)
    page = write_report(tmp_path).read_text()
    assert (tmp_path / "references.bib").read_text() == ""
    assert 'id="citations"' not in page
