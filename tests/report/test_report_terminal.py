"""The terminal: narrow, colourless and markup-proof."""

from __future__ import annotations

import io

import pytest
from report_fixtures import write_run
from rich.console import Console

from tailora.report import comparison_table, load_runs, paired_table, rank_map, rank_maps
from tailora.report.grids import cost_by, rank_grid


def shown(renderable, width=80, colour=False):
    stream = io.StringIO()
    options = {"force_terminal": True, "color_system": "256"} if colour else {"color_system": None}
    Console(file=stream, width=width, **options).print(renderable)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["study", "t5_study"])
def test_eighty_columns_are_enough(name, request):
    runs = load_runs(request.getfixturevalue(name))
    for part in (comparison_table(runs), paired_table(runs), rank_maps(runs)):
        text = shown(part)
        assert max(map(len, text.splitlines())) <= 80
        # Rich marks what it had to cut.
        assert "…" not in text


def test_the_table_says_the_score_the_baseline_and_the_head(study):
    text = shown(comparison_table(load_runs(study)))
    assert "lora *" in text
    assert "the task head trains 7,710 parameters more" in text
    assert "2/3" in text
    assert "accuracy ↑" in text


def test_the_map_shows_every_rank_without_colour(study):
    run = next(run for run in load_runs(study) if run.recipe == "spectral")
    text = shown(rank_map(run.plan))
    grid = rank_grid(run.plan)
    for depth in range(6):
        line = next(line for line in text.splitlines() if line.split()[:1] == [str(depth)])
        ranks = [
            grid.cells[row, column]
            for row in grid.rows
            for column in grid.columns
            if row.depth == depth and (row, column) in grid.cells
        ]
        assert line.split()[1:] == [f"{rank:g}" if rank else "·" for rank in ranks]
    # The embedding, which is not adapted here, has a line of its own and no column.
    assert [line.split() for line in text.splitlines() if "embed" in line] == [["embed", "·"]]
    assert "\x1b[" not in text
    assert "\x1b[" in shown(rank_map(run), colour=True)


def test_stacks_come_apart_and_cross_attention_has_its_columns(t5_study):
    text = shown(rank_map(load_runs(t5_study)[0]))
    assert text.index("encoder") < text.index("decoder")
    assert "cross" in text


def test_maps_stand_side_by_side_when_there_is_room(study):
    runs = load_runs(study)
    wide = shown(rank_maps(runs), width=200)
    assert any("lora, 82,944" in line and "spectral" in line for line in wide.splitlines())
    plans = {run.recipe: run.plan for run in runs}
    assert "spectral" in shown(rank_maps(plans))


def test_several_targets_in_one_place_add_up():
    target = {"role": "ffn.up", "depth": 0, "stack": "", "shape": [4, 6], "experts": 1}
    plan = {"targets": [{**target, "name": f"expert.{n}", "rank": n} for n in range(4)]}
    assert list(rank_grid(plan).cells.values()) == [6.0]
    assert "sums of ranks" in " ".join(shown(rank_map(plan)).split())
    assert list(cost_by(plan, "role").values()) == [6 * 10]
    assert list(cost_by(plan, "depth").values()) == [6 * 10]


def test_names_are_not_markup(tmp_path):
    write_run(tmp_path, "[red]lora[/]", task="[bold]x[/bold]", examples=10)
    write_run(tmp_path, "[/]", task="[bold]x[/bold]", examples=10)
    runs = load_runs(tmp_path)
    text = shown(comparison_table(runs)) + shown(rank_maps(runs)) + shown(paired_table(runs))
    assert "[bold]x[/bold]" in text
    assert "[red]lora[/]" in text


def test_nothing_finished_and_nothing_to_compare(tmp_path):
    assert "no finished run" in shown(comparison_table([]))
    assert "no finished run" in shown(rank_maps([]))
    write_run(tmp_path)
    assert "only one recipe" in shown(paired_table(load_runs(tmp_path)))
