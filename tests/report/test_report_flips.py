"""Flipped examples and the Pareto front against lists made by hand."""

from __future__ import annotations

import json

import pytest
from report_fixtures import write_run

from tailora.report import load_runs, write_report
from tailora.report.flips import flipped
from tailora.report.groups import group_runs
from tailora.report.pareto import pareto_front


def groups(path):
    return group_runs(load_runs(path))


def test_flipped_examples_by_hand(tmp_path):
    # Example:              0      1      2     3      4
    truth = {
        ("lora", 0): [True, False, True, False, True],
        ("lora", 1): [True, False, True, True, True],
        ("spectral", 0): [True, True, False, True, True],
        ("spectral", 1): [True, True, True, False, True],
    }
    for (recipe, seed), correct in truth.items():
        write_run(tmp_path, recipe, seed, correct=correct)
    (group,) = groups(tmp_path)
    (entry,) = flipped(group)
    assert (entry.recipe, entry.baseline, entry.seeds) == ("spectral", "lora", (0, 1))
    # Gained: 1 on both seeds, 3 on seed 0.  Lost: 2 on seed 0, 3 on seed 1.
    assert (entry.gained, entry.lost, entry.total) == (3, 2, 3)
    # Both right: 0 and 4 on both seeds, 2 on seed 1; both wrong: none, so that all ten are accounted for.
    assert (entry.both_right, entry.both_wrong) == (5, 0)
    shown = [(row.index, row.gained, row.lost) for row in entry.rows]
    # Clearest first: two seeds net, then one, then the one that went both ways.
    assert shown == [("1", (0, 1), ()), ("2", (), (0,)), ("3", (0,), (1,))]
    # The fixture predicts the label, or the label plus one where it is wrong.
    assert (entry.rows[0].label, entry.rows[0].ours, entry.rows[0].theirs) == ("1", "1", "2")
    assert entry.rows[1].ours == "2 (1 seed), 3 (1 seed)"
    assert not entry.with_text


def test_the_list_is_capped_and_says_how_many_there_are(tmp_path):
    write_run(tmp_path, "lora", correct=[False] * 50)
    write_run(tmp_path, "spectral", correct=[True] * 50)
    (entry,) = flipped(groups(tmp_path)[0], limit=7)
    assert [row.index for row in entry.rows] == [str(number) for number in range(7)]
    assert (entry.total, entry.gained, entry.lost) == (50, 50, 0)
    page = write_report(tmp_path).read_text()
    assert "30 of 50 flipped examples" in page


def test_what_cannot_be_paired_gives_no_list(tmp_path, t5_study):
    write_run(tmp_path, "lora", 0, correct=[True] * 5)
    write_run(tmp_path, "spectral", 1, correct=[False] * 5)
    assert flipped(groups(tmp_path)[0]) == []
    # Language models have no right answers.
    assert [flipped(group) for group in group_runs(load_runs(t5_study))] == [[]]


def test_recipes_that_agree_are_counted_and_list_nothing(tmp_path):
    for recipe in ("lora", "spectral"):
        for seed in range(3):
            write_run(tmp_path, recipe, seed, correct=[True, True, False])
    (entry,) = flipped(groups(tmp_path)[0])
    assert (entry.both_right, entry.gained, entry.lost, entry.both_wrong) == (6, 0, 0, 3)
    assert entry.rows == ()
    page = write_report(tmp_path).read_text()
    assert 'href="#flips"' in page
    assert "Flipped examples of" not in page
    row = "| stdlib docstrings, all-MiniLM-L6-v2, r=2 | spectral | lora | 6 | 0 | 0 | 3 | 3 |"
    assert row in (tmp_path / "report.md").read_text()


def test_generated_and_chosen_answers(tmp_path):
    """Answers are texts of any length: they are cut, and more than three different ones are counted."""
    for recipe, right in (("lora", False), ("spectral", True)):
        for seed in range(5):
            folder = write_run(tmp_path, recipe, seed, kind="causal-lm")
            rows = [
                {"index": 0, "label": "72", "prediction": f"{seed} " + "so " * 99, "correct": right, "loss": 1.0},
                {"index": 1, "label": "a\nb", "prediction": "a\nb", "correct": True, "loss": 1.0, "scores": [-1, -2]},
            ]
            (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (entry,) = flipped(groups(tmp_path)[0])
    assert (entry.both_right, entry.gained, entry.lost, entry.both_wrong) == (5, 5, 0, 0)
    (row,) = entry.rows
    assert row.gained == (0, 1, 2, 3, 4)
    assert row.ours.count("(1 seed)") == 3
    assert row.ours.endswith("…  (1 seed), 2 more".replace("  ", " "))
    assert len(row.ours) < 3 * 110
    write_report(tmp_path)


def test_the_text_of_examples_is_escaped(tmp_path):
    evil = '<script>alert("x")</script> <img src=x onerror=alert(1)> &amp; {{ 7*7 }} ' + "long " * 100
    write_run(tmp_path, "lora", correct=[False] * 3, texts=[evil] * 3)
    write_run(tmp_path, "spectral", correct=[True] * 3, texts=[evil] * 3)
    page = write_report(tmp_path).read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &lt;img src=x" in page
    assert "{{ 7*7 }}" in page
    (entry,) = flipped(groups(tmp_path)[0])
    assert max(len(row.text) for row in entry.rows) == 240


POINTS = [(1, 0.5), (2, 0.7), (2, 0.6), (3, 0.65), (4, 0.9), (1, 0.5), (5, 0.9)]


def test_pareto_front_by_hand():
    # (3, .65) is beaten by (2, .7), (2, .6) by (2, .7), (5, .9) by the smaller (4, .9); the twins stay.
    assert pareto_front(POINTS) == [0, 5, 1, 4]
    assert pareto_front([(size, -score) for size, score in POINTS], higher_is_better=False) == [0, 5, 1, 4]
    assert pareto_front([]) == []
    assert pareto_front([(1, 0.2)]) == [0]


@pytest.mark.parametrize("higher", [True, False])
def test_nothing_beats_the_front_and_the_front_beats_the_rest(higher):
    points = [(size % 7, (size * 37 % 11) / 10) for size in range(30)]
    sign = 1 if higher else -1

    def beaten(place):
        size, score = points[place]
        return any(other[0] <= size and sign * other[1] >= sign * score and other != points[place] for other in points)

    front = pareto_front(points, higher_is_better=higher)
    assert sorted(front) == [place for place in range(len(points)) if not beaten(place)]


def test_the_figure_names_the_front(tmp_path):
    write_run(tmp_path, "lora", correct=[True] * 5 + [False] * 5)
    write_run(tmp_path, "spectral", correct=[True] * 6 + [False] * 4)
    write_run(tmp_path, "lora", budget="r=4", correct=[True] * 7 + [False] * 3)
    page = write_report(tmp_path).read_text()
    small = next(run.adapter_params for run in load_runs(tmp_path) if run.recipe == "spectral")
    assert f"The Pareto front is made of spectral at {small:,}, lora at 165,888." in page
