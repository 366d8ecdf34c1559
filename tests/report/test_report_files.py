"""What lies beside the page: LaTeX, separate figures; and readable provenance, mean ranks."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest
from report_fixtures import write_run

from tailora.errors import UserError
from tailora.report import compare_runs, load_runs, paired_differences, write_report
from tailora.report.content import provenance
from tailora.report.grids import rank_grid
from tailora.report.heatmaps import rank_heat_map
from tailora.report.latex import comparison_latex, escape_latex
from tailora.report.spending import mean_ranks, parameters_by_depth, ranks_by_depth, ranks_by_role


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b & 50% of #1", r"a\_b \& 50\% of \#1"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("$x^2$ ~ {y}", r"\$x\textasciicircum{}2\$ \textasciitilde{} \{y\}"),
        ('<a> | "b"', r"\textless{}a\textgreater{} \textbar{} \textquotedbl{}b\textquotedbl{}"),
        ("\N{MINUS SIGN}0.1 ± 0.2\nnext – line", r"$-$0.1 $\pm$ 0.2 next -- line"),
        ("plain r=8", "plain r=8"),
    ],
)
def test_latex_escapes(text, escaped):
    assert escape_latex(text) == escaped


def test_the_latex_table(study):
    runs = load_runs(study)
    text = comparison_latex(compare_runs(runs), paired_differences(runs))
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 2
    tests = text.rpartition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert [line.split(" & ")[0].strip() for line in tests] == ["spectral", "fim-lora"]
    assert all(line.endswith(r"\\") and line.count(" & ") == 5 for line in tests)
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 3
    assert all(line.endswith(r"\\") and line.count(" & ") == 5 for line in body)
    bold = [line for line in body if r"\textbf" in line]
    assert [line.split(" & ")[0].strip() for line in bold] == ["spectral"]
    assert "baseline lora" in text
    assert comparison_latex([]) == ""


def test_names_cannot_break_the_latex_table(tmp_path):
    for recipe in ("lora", r"a_b & \input{/etc/passwd} %"):
        write_run(tmp_path, recipe, task="50% $x$", budget="r=2", examples=20)
    text = comparison_latex(compare_runs(load_runs(tmp_path)))
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert all(len(re.findall(r"(?<!\\)&", line)) == 3 for line in body)
    assert r"\input" not in text.replace(r"\textbackslash{}input", "")
    assert r"50\% \$x\$" in text


def test_every_figure_is_written_twice(tmp_path):
    image = pytest.importorskip("PIL.Image")
    runs, out = tmp_path / "runs", tmp_path / "figures"
    write_run(runs, examples=20)
    page = write_report(runs, tmp_path / "report.html", figures=out).read_text()
    names = sorted(path.stem for path in out.glob("*.svg"))
    assert len(names) == page.count("<svg ")
    assert names == sorted(path.stem for path in out.glob("*.png"))
    told = (out / "figures.md").read_text()
    for name in names:
        ET.fromstring((out / f"{name}.svg").read_text())
        assert f"`{name}`" in told
        # Opaque, white at the corner, and none of the placeholders that a page would turn into its own colours.
        pixels = image.open(out / f"{name}.png").convert("RGBA")
        assert pixels.getextrema()[3] == (255, 255)
        assert pixels.getpixel((0, 0)) == (255, 255, 255, 255)
        assert not {colour[:3] for _, colour in pixels.getcolors(1 << 24)} & {(1, 2, 3), (1, 2, 4), (1, 2, 5)}
    # Drawing for files changes nothing on the page.
    assert page == write_report(runs, tmp_path / "again.html").read_text()


def test_a_file_is_no_folder_for_figures(study, tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="figures folder .* is a file"):
        write_report(study, tmp_path / "report.html", figures=tmp_path / "x")
    assert not (tmp_path / "report.html").exists()


def test_provenance_is_words(tmp_path):
    folder = write_run(tmp_path, model="/some/place/MiniLM/model")
    environment = {"packages": {"torch": "2.8.0", "peft": None}, "flags": {"tf32": False}, "devices": []}
    (folder / "environment.json").write_text(json.dumps(environment))
    found = dict(provenance(load_runs(tmp_path)))
    assert found == {
        "devices": "none",
        "flags": "tf32 no",
        "model": "MiniLM/model",
        "packages": "peft none, torch 2.8.0",
    }
    page = write_report(tmp_path).read_text()
    assert "/some/place" not in page
    write_run(tmp_path / "hub")
    assert dict(provenance(load_runs(tmp_path / "hub")))["model"] == "sentence-transformers/all-MiniLM-L6-v2"


def _target(name, role, depth, rank):
    return {"name": name, "role": role, "depth": depth, "stack": "", "shape": [4, 4], "rank": rank}


PLAN = {
    "targets": [
        _target("a", "attention.query", 0, 4),
        _target("b", "ffn.up", 0, 0),
        _target("c", "attention.query", 1, 1),
        _target("d", "embedding", None, 3),
    ]
}


def test_mean_ranks_by_hand():
    assert {key.key: value for key, value in mean_ranks(PLAN, "role").items()} == {
        "attention.query": 2.5,
        "ffn.up": 0.0,
        "embedding": 3.0,
    }
    assert {key.label: value for key, value in mean_ranks(PLAN, "depth").items()} == {
        "0": 2.0,
        "1": 1.0,
        "outside": 3.0,
    }
    assert "x is highest at outside the blocks with 3" in ranks_by_depth({"x": PLAN}, name="d")
    assert "x: attention query 2.5, feed-forward up 0, embedding 3" in ranks_by_role({"x": PLAN}, name="r")
    empty = {"targets": []}
    assert ranks_by_depth({"x": empty}, name="d") is None
    assert "Adapter parameters by layer" in parameters_by_depth({"x": empty}, name="d")
    assert ranks_by_role({"x": empty}, name="r") is None


def test_an_embedding_takes_a_row_and_no_column():
    text = rank_heat_map(PLAN, name="m")
    assert len(rank_grid(PLAN).columns) == 3
    # Two columns of forty pixels would be 134 wide, so the smallest width holds; the row carries the role's name.
    assert ">embed<" in text
    assert "outside the blocks, embedding: rank 3" in text
    assert ">outside<" not in text
