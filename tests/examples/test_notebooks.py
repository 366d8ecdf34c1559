"""The notebooks run from the first cell to the last on local models and data, and are stored without outputs."""

from __future__ import annotations

import re

import nbformat
import pytest

from places import REPOSITORY, shared_path

NOTEBOOKS = REPOSITORY / "examples" / "notebooks"
NAMES = ("smoke_test", "placement_analysis")


def load(name, smaller):
    """Read a notebook; ``smaller`` replaces text in its one cell of settings."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    settings = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for old, new in smaller.items():
        assert settings.source.count(old) == 1, f"{name}: {old}"
        settings.source = settings.source.replace(old, new)
    return notebook


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own, in which the notebooks find the shared models and data."""
    monkeypatch.setenv("TAILORA_TEST_DATA", str(shared_path("models", "stories260k").parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def walk(name, capsys, **smaller):
    """Execute a notebook's cells in this process; return what they printed and the number of their figures."""
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    plt.close("all")
    names = {"__name__": "__main__"}
    capsys.readouterr()
    figures = 0
    for number, cell in enumerate(load(name, smaller).cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{name}, cell {number}", "exec"), names)
            # A notebook shows the figures of a cell below it and begins the next cell with none.
            figures += len(plt.get_fignums())
            plt.close("all")
    return capsys.readouterr().out, figures


def run(name, folder, monkeypatch):
    """Execute a notebook in a kernel, as its reader does; return what its cells printed and its figures."""
    from nbclient import NotebookClient

    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = load(name, {})
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    figures = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    text = "\n".join(output.text for cell in cells for output in cell.outputs if output.get("name") == "stdout")
    return text, figures


def check_smoke_test(folder, text, figures):
    assert figures == 2
    assert len(list((folder / "smoke-test").glob("*/status.json"))) == 6
    assert re.search(r"^lora +11,560 of 11,560 parameters; ranks 2 to 2$", text, re.M)
    for recipe in ("fim-lora", "spectral"):
        assert re.search(rf"^{recipe} +minus lora: [+-][\d.]+, 95 % interval", text, re.M)
    assert "adapter parameters reloaded" in text
    assert (folder / "smoke-test" / "report.html").is_file()


def check_placement_analysis(folder, text, figures):
    assert figures == 2
    for published in ("6,291,456", "4,325,376", "1,966,080"):
        assert f"{published} parameters: " in text
    assert "4,325,376 parameters: 2,359,296 in attention, 1,966,080 in feed-forward" in text
    assert len(re.findall(r"(?:no difference shown|differs from all)$", text, re.M)) == 4
    assert len(list((folder / "placement-analysis" / "runs").glob("*/status.json"))) == 10


CHECKS = {"smoke_test": check_smoke_test, "placement_analysis": check_placement_analysis}
# Fewer steps; every cell is executed all the same.
SMALLER = {
    "smoke_test": {'"max_steps": 10, ': '"max_steps": 2, ', '"logging_steps": 2}': '"logging_steps": 1}'},
    "placement_analysis": {'"max_steps": 8, ': '"max_steps": 2, '},
}


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_does_what_it_says(name, here, capsys):
    CHECKS[name](here, *walk(name, capsys, **SMALLER[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_runs_as_it_stands_in_a_kernel(name, here, monkeypatch):
    CHECKS[name](here, *run(name, here, monkeypatch))


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
