"""The notebooks run from the first cell to the last on local models and data, and are stored without outputs."""

from __future__ import annotations

import re

import nbformat
import pytest

from places import REPOSITORY, shared_path

NOTEBOOKS = REPOSITORY / "examples" / "notebooks"
NAMES = ("smoke_test", "placement_analysis")


def run(name, folder, monkeypatch):
    """Execute a notebook in a folder of its own and return what its cells printed."""
    from nbclient import NotebookClient

    monkeypatch.setenv("TAILORA_TEST_DATA", str(shared_path("models", "stories260k").parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    figures = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    text = "\n".join(output.text for cell in cells for output in cell.outputs if output.get("name") == "stdout")
    return text, figures


def test_the_smoke_test_walks_through(tmp_path, monkeypatch):
    text, figures = run("smoke_test", tmp_path, monkeypatch)
    assert figures == 2
    assert len(list((tmp_path / "smoke-test").glob("*/status.json"))) == 6
    assert re.search(r"^lora +11,560 of 11,560 parameters; ranks 2 to 2$", text, re.M)
    for recipe in ("fim-lora", "spectral"):
        assert re.search(rf"^{recipe} +minus lora: [+-][\d.]+, 95 % interval", text, re.M)
    assert "adapter parameters reloaded" in text
    assert (tmp_path / "smoke-test" / "report.html").is_file()


def test_the_placement_analysis_counts_and_compares(tmp_path, monkeypatch):
    text, figures = run("placement_analysis", tmp_path, monkeypatch)
    assert figures == 2
    for published in ("6,291,456", "4,325,376", "1,966,080"):
        assert f"{published} parameters: " in text
    assert "4,325,376 parameters: 2,359,296 in attention, 1,966,080 in feed-forward" in text
    assert len(re.findall(r"(?:no difference shown|differs from all)$", text, re.M)) == 4
    assert len(list((tmp_path / "placement-analysis" / "runs").glob("*/status.json"))) == 10


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_stored_clean(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
            assert all(len(line) <= 125 for line in cell.source.splitlines())
    assert notebook.cells[0].cell_type == "markdown"
    assert "change the next cell and nothing else" in notebook.cells[0].source


def test_every_notebook_has_a_test():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(NAMES)
