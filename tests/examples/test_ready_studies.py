"""The ready studies: every file can be read at every scale, and says what its comments promise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from places import REPOSITORY
from tailora.cli import main
from tailora.recipes import load_recipe
from tailora.studies.expansion import expand
from tailora.studies.files import load_study
from tailora.yaml_files import read_yaml

STUDIES = REPOSITORY / "examples" / "studies"
# File, scale, runs that search, final runs; the table of docs/studies-ready.md.
SIZES = {
    ("allocation", "full"): (360, 450),
    ("allocation", "encoder"): (360, 450),
    ("allocation", "language"): (396, 495),
    ("allocation", "small"): (0, 28),
    ("fim_lora_glue", "full"): (0, 384),
    ("fim_lora_glue", "fair"): (512, 640),
    ("fim_lora_glue", "small"): (0, 24),
    ("fim_lora_commonsense", "full"): (0, 15),
    ("fim_lora_commonsense", "small"): (0, 10),
    ("fim_lora_ablations", "full"): (0, 63),
    ("fim_lora_ablations", "small"): (0, 26),
    ("placement", "full"): (0, 90),
    ("placement", "fair"): (144, 180),
    ("placement", "small"): (0, 70),
    ("gelora_glue", "full"): (336, 420),
    ("gelora_glue", "small"): (0, 36),
    ("fish_tuning", "full"): (800, 1000),
    ("fish_tuning", "small"): (0, 24),
    ("metamath", "full"): (0, 30),
    ("metamath", "fair"): (24, 30),
    ("metamath", "small"): (0, 12),
}


@pytest.fixture(autouse=True)
def real_data(monkeypatch):
    """The files' own default is relative to themselves; a relative folder in the environment is this one's."""
    if given := os.environ.get("TAILORA_TEST_DATA"):
        monkeypatch.setenv("TAILORA_TEST_DATA", str(Path(given).resolve()))


@pytest.fixture
def no_package(minilm):
    """Small studies of encoders need the package with the encoder; skip with the reason without it."""


def finals(expansion):
    grid = expansion.study.learning_rate.search
    return expansion.final({cell.place: grid[0] for cell in expansion.cells} if grid else None)


def test_every_study_is_listed():
    files = {path.stem: path for path in STUDIES.glob("*.yaml") if not path.stem.startswith("_")}
    scales = {(name, scale) for name, path in files.items() for scale in ("full", *read_yaml(path).get("scales", {}))}
    assert scales == set(SIZES)
    table = (REPOSITORY / "docs" / "studies-ready.md").read_text()
    for (name, scale), (search, final) in SIZES.items():
        counted = f"{search:,} + {final:,}" if search else f"{final:,}"
        assert f"| `{name}` | {scale} | {counted} |" in table, f"the row of {name}, {scale} in docs/studies-ready.md"


@pytest.mark.parametrize(("name", "scale"), SIZES)
def test_every_study_expands(name, scale, request):
    if scale in ("small", "encoder") and name in (
        "allocation",
        "fim_lora_glue",
        "fim_lora_ablations",
        "gelora_glue",
        "fish_tuning",
    ):
        request.getfixturevalue("no_package")
    expansion = expand(load_study(STUDIES / f"{name}.yaml", [f"scale={scale}"]))
    final = finals(expansion)
    assert (len(expansion.search), len(final)) == SIZES[name, scale]
    assert expansion.notes == (), "exclude names something that is not there"
    study = expansion.study
    assert study.title
    assert study.baseline in {cell.place[2] for cell in expansion.cells}
    # Scales must not mix in one folder, whose report would put them into one table.
    assert study.folder.name == (name if scale == "full" else f"{name}-{scale}")
    if scale != "small":
        assert len(study.seeds) >= 3
    rates = {run.config.training.learning_rate for run in final}
    assert len(rates) == 1, "every row has the same rate, or the same search"


@pytest.mark.parametrize("name", ["metamath", "placement"])
def test_the_command_shows_a_full_study_without_a_hub(name, capsys):
    main_quietly("study", STUDIES / f"{name}.yaml", "--dry-run")
    shown = capsys.readouterr().out
    assert f"{SIZES[name, 'full'][1]} runs, {SIZES[name, 'full'][1]} to be done" in shown
    assert not (STUDIES / "studies" / name).exists(), "a dry run writes nothing"


def test_small_studies_need_nothing_but_local_files(data_root, minilm):
    for name, scale in SIZES:
        if scale == "small":
            for run in finals(expand(load_study(STUDIES / f"{name}.yaml", ["scale=small"]))):
                task = run.config.task
                for place in (run.config.model, task.train, task.evaluation or task.train):
                    assert Path(place).exists(), f"{name}: {place}"


@pytest.mark.parametrize("path", sorted((STUDIES / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_studies_is_whole(path):
    recipe = load_recipe(path)
    assert recipe.title
    assert recipe.citation
    assert recipe.name == path.stem
    # Drop-out is why these are files; compared recipes must agree in it.
    dropout = {"fim": 0.1, "placement": 0.1, "commonsense": 0.05}[path.parent.name]
    assert recipe.adapter.dropout == dropout
    assert all(
        path.stem in text or f"{path.parent.name}/{path.name}" in text
        for text in [" ".join(file.read_text() for file in STUDIES.glob("*.yaml"))]
    ), "no study uses it"


def main_quietly(*arguments):
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        assert not end.code
