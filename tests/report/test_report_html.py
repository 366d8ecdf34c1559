"""The page: complete, escaped, self-contained, accessible; the figures: well-formed and collision-free."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from report_fixtures import write_run, write_study

from tailora.errors import UserError
from tailora.report import write_report

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects tags and checks that they nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.stack, self.ids, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.stack, f"left open: {self.stack}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag):
        assert self.stack, tag
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def named(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture(scope="module")
def page(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "deep" / "report.html"
    assert write_report(study, out) == out
    return out


@pytest.fixture(scope="module")
def parsed(page):
    return Page(page.read_text(encoding="utf-8"))


def test_five_files_are_written(page):
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "comparison.csv",
        "comparison.tex",
        "references.bib",
        "report.html",
        "report.md",
    ]


def test_one_title_and_ordered_headings(parsed):
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert parsed.named("html") == [{"lang": "en"}]
    assert len(parsed.named("main")) == 1


def test_all_parts_are_there(page):
    text = page.read_text()
    places = [
        text.index(f'id="{name}"')
        for name in ("comparison", "paired", "maps", "curves", "size", "flips", "plans", "runs")
    ]
    places += [text.index(f'id="{name}"') for name in ("provenance", "citations", "problems")]
    assert places == sorted(places)
    for word in ("arXiv 2106.09685", "no status.json", "is not valid JSON", "2.8.0", "Fisher information"):
        assert word in text
    for link in re.findall(r'href="#([\w-]+)"', text):
        assert f'id="{link}"' in text


def test_every_figure_has_words(parsed):
    figures = parsed.named("svg")
    assert len(figures) == 3 + 2 + 3 + 5
    assert not parsed.named("img")
    for attrs in figures:
        assert attrs["role"] == "img"
        assert len(attrs["aria-label"]) > 20
    assert len(parsed.named("figcaption")) == len(figures)


def test_ids_are_unique(parsed):
    assert len(parsed.ids) == len(set(parsed.ids))


def test_nothing_is_loaded_from_outside(page, parsed):
    assert not [tag for tag, _ in parsed.tags if tag in {"script", "link", "iframe", "object", "base"}]
    for _, attrs in parsed.tags:
        for key in ("src", "href", "srcset", "data", "action", "xlink:href"):
            assert (attrs.get(key) or "#").startswith("#")
        assert not [key for key in attrs if key.startswith("on")]
    text = page.read_text()
    assert "@import" not in text
    assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*([^)]*)\)", text))


def test_figures_are_well_formed_xml_with_real_text(page):
    figures = re.findall(r"<svg.*?</svg>", page.read_text(), flags=re.DOTALL)
    for figure in figures:
        root = ET.fromstring(figure)
        assert root.findall(".//{http://www.w3.org/2000/svg}text")
        assert "DejaVu Sans'," not in figure.partition(">")[2]
        # Placeholders must all have become the page's own colour.
        assert "#01020" not in figure
        assert "currentColor" in figure
        for target in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', figure):
            assert f'id="{"".join(target)}"' in figure


def test_dark_print_and_narrow_pages_are_provided_for(page):
    text = page.read_text()
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert 'name="viewport"' in text
    # A table may be wider than a phone; it must then scroll in a box of its own that the keyboard reaches.
    assert text.count("<table") == len(re.findall(r'<div class="scroll" tabindex="0"[^>]*>\s*<table', text))


def test_data_is_escaped_everywhere(tmp_path):
    evil = '<script>alert("x")</script>&\' $a_b$ [bold]'
    for recipe in ("lora", evil):
        folder = write_run(tmp_path / "runs", recipe, task=evil, model=evil, budget=evil, citation=evil, examples=20)
        plan = json.loads((folder / "plan.json").read_text())
        plan["targets"][0] |= {"name": evil, "role": evil, "stack": evil}
        (folder / "plan.json").write_text(json.dumps(plan))
        names = [target["name"] for target in plan["targets"]]
        signals = {evil: {name: place for place, name in enumerate(names)}, evil + "2": dict.fromkeys(names, 1.0)}
        (folder / "signals.json").write_text(json.dumps(signals))
        (folder / "environment.json").write_text(json.dumps({evil: evil, "x\u0000y\ud800": "\u0007"}))
        scores = json.loads((folder / "scores.json").read_text())
        (folder / "scores.json").write_text(json.dumps({**scores, "primary": evil, evil: 0.5}))
    bad = write_run(tmp_path / "runs", "lora", 1, task=evil)
    (bad / "status.json").write_text(json.dumps({"status": evil, "error": evil}))
    text = write_report(tmp_path / "runs").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert" in text
    Page(text)
    for figure in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ET.fromstring(figure)
    assert "<script" not in (tmp_path / "runs" / "report.md").read_text().replace(r"\<script", "")


def test_a_signal_of_the_whole_model_is_a_sentence_and_no_map(tmp_path):
    folder = write_run(tmp_path / "runs", "newton")
    signals = json.loads((folder / "signals.json").read_text())
    names = list(next(iter(signals.values())))
    (folder / "signals.json").write_text(json.dumps({**signals, "newton_agreement": dict.fromkeys(names, 0.51)}))
    text = write_report(tmp_path / "runs").read_text()
    assert "The same for all targets: newton agreement 0.51 (by newton, seed 0)." in text
    assert "fisher" in text
    assert text.count("newton agreement") == 1


def test_two_stacks_and_a_language_model(t5_study, tmp_path):
    text = write_report(t5_study, tmp_path / "t5.html").read_text()
    page = Page(text)
    assert "perplexity" in text
    assert "cross-attention" in text
    assert "encoder layer 0, attention query" in text
    assert (tmp_path / "t5.md").exists()
    assert len(page.named("h1")) == 1


def test_several_budgets_and_tasks_on_one_page(tmp_path):
    write_study(tmp_path, seeds=1, budgets=("r=2", "r=4"), examples=40)
    write_run(tmp_path, task="another", examples=40)
    page = Page(write_report(tmp_path).read_text())
    assert len(page.ids) == len(set(page.ids))
    # Signals are equal for all budgets and tasks of the fixture and drawn once.
    labels = [attrs["aria-label"] for attrs in page.named("svg")]
    assert sum("Heat map of fisher" in label for label in labels) == 1
    assert sum("Heat map of the ranks" in label for label in labels) == 7


def test_a_folder_with_problems_only_still_gives_a_page(tmp_path):
    write_run(tmp_path, status="failed")
    text = write_report(tmp_path).read_text()
    Page(text)
    assert "No finished run" in text


def test_a_run_without_side_files_still_gives_a_page(tmp_path):
    folder = write_run(tmp_path)
    for name in ("history.jsonl", "predictions.jsonl", "signals.json", "timings.json", "counts.json"):
        (folder / name).unlink()
    Page(write_report(tmp_path).read_text())


def test_an_empty_plan_still_gives_a_page(tmp_path):
    folder = write_run(tmp_path)
    for targets in ([], [{"name": "x", "role": "other", "rank": 0}]):
        plan = {**json.loads((folder / "plan.json").read_text()), "targets": targets}
        (folder / "plan.json").write_text(json.dumps(plan))
        Page(write_report(tmp_path).read_text())


def test_the_same_runs_give_the_same_page(study, tmp_path, page):
    assert write_report(study, tmp_path / "again.html").read_text() == page.read_text()


def test_wrong_arguments_are_the_users_error(study, tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        write_report(study, tmp_path)
    with pytest.raises(UserError, match="'gora' was not run"):
        write_report(study, tmp_path / "x.html", baseline="gora")
    other = write_report(study, tmp_path / "x.html", baseline="fim-lora").read_text()
    assert "against fim-lora" in other
