from __future__ import annotations

import json
import math
import threading
import time

import pytest
from study_cases import expanded, finish

from tailora.locking import run_lock
from tailora.run_folders import run_folder
from tailora.studies.attempts import failures, given_up
from tailora.studies.board import Board
from tailora.studies.drive import drive
from tailora.studies.estimate import estimate
from tailora.studies.events import Events
from tailora.studies.messages import Advanced, Ended, Outcome, Started
from tailora.studies.search import choose
from tailora.studies.settings import Settings
from tailora.studies.state import status_of


class Watch:
    def __init__(self):
        self.said, self.phases = [], []

    def phase(self, name, runs, missing):
        self.phases.append((name, len(runs), missing))

    def message(self, run, message):
        pass

    def say(self, sentence):
        self.said.append(sentence)


class Script:
    """An executor whose runs end as told: ``plan(config, how often it was given)`` returns an outcome or a score."""

    def __init__(self, expansion, plan):
        self.runs = {run.config.hash: run for run in (*expansion.search, *expansion.final())}
        self.expansion, self.plan, self.passes, self.given, self.rates = expansion, plan, [], {}, {}

    def __call__(self, jobs, settings):
        self.passes.append(len(jobs))
        for config in jobs:
            self.given[config.hash] = self.given.get(config.hash, 0) + 1
            yield Started(config.hash, "w")
            yield Advanced(config.hash, "train", 1, 2)
            found = self.plan(config, self.given[config.hash])
            if isinstance(found, float):
                run = self.runs.get(config.hash)
                run = run or next(r for r in self.expansion.final(self.rates) if r.config.hash == config.hash)
                finish(run, found)
                found = Outcome(config.hash, "done", seconds=1.0)
            yield Ended(found)


def rows(expansion):
    return [(row["event"], row["hash"]) for row in Events(expansion.study.folder).rows()]


def test_everything_missing_is_done_once(tmp_path):
    expansion = expanded(tmp_path, seeds=2)
    first, *rest = expansion.final()
    finish(first, 0.5)
    script, watch = Script(expansion, lambda config, n: 0.7), Watch()
    result = drive(expansion, script, Settings(), watch)
    assert (len(result.done), result.new, result.failed) == (4, 3, [])
    assert watch.phases == [("final", 4, 3)]
    assert script.passes == [3]
    done = [hash for event, hash in rows(expansion) if event == "done"]
    assert sorted(done) == sorted(run.config.hash for run in (first, *rest))
    again = drive(expansion, script, Settings(), watch)
    assert (len(again.done), again.new, script.passes) == (4, 0, [3])
    assert len(rows(expansion)) == 3 + 4


def test_what_fails_is_tried_once_more_and_then_left(tmp_path):
    expansion = expanded(tmp_path)
    bad, good = expansion.final()
    broken = Outcome(bad.config.hash, "failed", "it broke")

    def plan(config, count):
        return broken if config.hash == bad.config.hash else 0.5

    script = Script(expansion, plan)
    result = drive(expansion, script, Settings(), Watch())
    assert script.passes == [2, 1]
    assert [(run.config.hash, error) for run, error in result.failed] == [(bad.config.hash, "it broke")]
    assert [run.config.hash for run in result.done] == [good.config.hash]
    assert given_up(run_folder(bad.config))
    assert status_of(bad) == "failed"
    assert [event for event, hash in rows(expansion) if hash == bad.config.hash] == ["started", "failed"] * 2
    later = drive(expansion, script, Settings(), Watch())
    assert script.passes == [2, 1]
    assert later.failed[0][1] == "given up before: it broke"
    asked = Script(expansion, lambda config, count: 0.9)
    assert drive(expansion, asked, Settings(), Watch(), retry_failed=True).failed == []
    assert asked.passes == [1]
    assert failures(run_folder(bad.config)) == []


def test_a_fault_of_the_input_is_not_tried_again_until_the_next_start(tmp_path):
    expansion = expanded(tmp_path, recipes=["lora"])
    (run,) = expansion.final()
    script = Script(expansion, lambda config, n: Outcome(config.hash, "failed", "no such file", retry=False))
    for start in (1, 2, 3):
        assert len(drive(expansion, script, Settings(), Watch()).failed) == 1
        assert script.passes == [1] * start
    assert not given_up(run_folder(run.config))


def test_a_run_of_another_process_is_waited_for(tmp_path):
    expansion = expanded(tmp_path, recipes=["lora"])
    (run,) = expansion.final()
    folder = run_folder(run.config)
    folder.mkdir(parents=True)

    def other():
        with run_lock(folder):
            held.set()
            time.sleep(1.5)
            finish(run, 0.4)

    held = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    held.wait()

    def executor(jobs, settings):
        for config in jobs:
            status = "done" if status_of(run) == "done" else "busy"
            yield Ended(Outcome(config.hash, status, worked=False))

    watch = Watch()
    result = drive(expansion, executor, Settings(), watch)
    thread.join()
    assert (len(result.done), result.new, result.failed) == (1, 0, [])
    assert "another process is at work on 1 of the runs" in watch.said[0]
    assert [event for event, _ in rows(expansion)] == ["done"]


def test_an_executor_that_loses_a_run_counts_as_a_failure(tmp_path):
    expansion = expanded(tmp_path, recipes=["lora"])
    result = drive(expansion, lambda jobs, settings: (message for message in ()), Settings(), Watch())
    assert "without saying" in result.failed[0][1]


def test_the_best_rate_on_the_validation_split_is_taken(tmp_path):
    expansion = expanded(tmp_path, learning_rate={"search": [0.001, 0.01, 0.1], "seeds": 2}, seeds=2)
    scores = {"lora": {0.001: 0.5, 0.01: 0.8, 0.1: 0.6}, "spectral": {0.001: 0.1, 0.01: 0.2, 0.1: 0.9}}
    script = Script(expansion, lambda config, n: scores[config.recipe][config.training.learning_rate])
    places = [cell.place for cell in expansion.cells]
    script.rates = dict(zip(places, (0.01, 0.1), strict=True))
    watch = Watch()
    result = drive(expansion, script, Settings(), watch)
    assert [choice.rate for choice in result.choices] == [0.01, 0.1]
    assert [choice.edge for choice in result.choices] == ["", "highest"]
    assert len(watch.said) == 1
    assert "0.1, is the highest of the grid" in watch.said[0]
    assert {(r.config.recipe, r.config.training.learning_rate) for r in result.final} == {
        ("lora", 0.01),
        ("spectral", 0.1),
    }
    assert watch.phases == [("search", 12, 12), ("final", 4, 4)]
    stored = json.loads((expansion.study.folder / "study.json").read_text())
    assert [row["rate"] for row in stored["learning_rates"]] == [0.01, 0.1]
    assert [point["scores"] for point in stored["learning_rates"][0]["curve"]] == [[0.5, 0.5], [0.8, 0.8], [0.6, 0.6]]
    assert [row["role"] for row in stored["runs"]].count("final") == 4
    assert all((expansion.study.folder / row["folder"]).is_dir() for row in stored["runs"])


def test_ties_go_to_the_lower_loss_and_then_to_the_smaller_rate(tmp_path):
    expansion = expanded(tmp_path, recipes=["lora"], learning_rate={"search": [0.1, 0.01, 0.001]})
    low, middle, high = sorted(expansion.search, key=lambda run: run.config.training.learning_rate)
    for run, loss in ((low, 1.0), (middle, 0.5), (high, 0.5)):
        finish(run, 0.8, loss=loss)
    assert choose(expansion)[0].rate == 0.01
    finish(low, 0.8, loss=0.5)
    assert choose(expansion)[0].rate == 0.001
    for run, score in ((low, 3.0), (middle, 2.0), (high, 2.5)):
        finish(run, score, higher=False)
    assert choose(expansion)[0].rate == 0.01


def test_a_rate_whose_run_failed_is_not_chosen(tmp_path):
    expansion = expanded(tmp_path, recipes=["lora"], learning_rate={"search": [0.1, 0.01], "seeds": 2}, seeds=2)
    for run in expansion.search:
        if (run.config.training.learning_rate, run.config.seed) != (0.1, 1):
            finish(run, run.config.training.learning_rate)
    (choice,) = choose(expansion)
    assert choice.rate == 0.01
    assert [point.score for point in choice.curve] == [0.01, None]
    expansion = expanded(tmp_path / "empty", recipes=["lora"], learning_rate={"search": [0.1, 0.01]})
    assert choose(expansion)[0].rate is None
    assert expansion.final({expansion.cells[0].place: None}) == ()


def test_events_survive_a_torn_line_and_know_the_first_done(tmp_path):
    events = Events(tmp_path / "deep")
    assert events.rows() == []
    assert events.add("a", "started", "w")
    with events.path.open("a") as stream:
        stream.write('{"hash": "a", "ev')
    assert events.add("a", "failed", error="e")
    assert events.add("a", "done")
    assert not events.add("a", "done")
    assert not events.add("a", "started")
    assert [row["event"] for row in events.rows()] == ["started", "failed", "done"]


def test_two_writers_make_one_done_event(tmp_path):
    threads = [threading.Thread(target=Events(tmp_path).add, args=("a", "done")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row["event"] for row in Events(tmp_path).rows()] == ["done"]


def test_a_new_label_reaches_finished_runs(tmp_path):
    named = [{"name": "first name", "recipe": "lora"}]
    expansion = expanded(tmp_path, recipes=named)
    (run,) = expansion.final()
    finish(run, 0.5)
    other = expanded(tmp_path, recipes=[{"name": "second name", "recipe": "lora"}])
    drive(other, lambda jobs, settings: (message for message in ()), Settings(), Watch())
    assert json.loads((run_folder(run.config) / "config.json").read_text())["label"] == "second name"


def test_the_estimate_says_what_it_is_from(tmp_path):
    expansion = expanded(tmp_path, seeds=2)
    runs = expansion.final()
    before = estimate(expansion, runs)
    assert before.seconds is None
    assert "unknown: for 4 missing runs" in before.basis
    assert [(row.runs, row.done, row.missing, row.steps, row.tokens) for row in before.rows] == [(2, 0, 2, 6, 768)] * 2
    assert before.rows[0].adapter_params == 2 * (4 * 64 + 2 * (32 + 48))
    finish(runs[0], 0.5)
    after = estimate(expansion, runs)
    assert after.seconds == 3 * 4.0
    assert "1 finished runs" in after.basis
    epochs = expanded(tmp_path / "e", training={"max_steps": None, "num_train_epochs": 2.0})
    # 96 rows, 8 a step, twice.
    assert estimate(epochs, epochs.final()).rows[0].steps == 24


def test_the_board_keeps_means_and_the_time_left(tmp_path):
    expansion = expanded(tmp_path, recipes=["lora"], seeds=4)
    runs = expansion.final()
    finish(runs[0], 0.5)
    board = Board(workers=2)
    board.enter("final", runs, 3)
    assert (board.done, board.total, board.left()) == (1, 4, None)
    board.take(runs[1], Started(runs[1].config.hash, "w"))
    board.take(runs[1], Advanced(runs[1].config.hash, "train", 3, 6))
    assert board.active[runs[1].config.hash][1:] == ("w", "train", 3, 6)
    finish(runs[1], 0.7)
    board.take(runs[1], Ended(Outcome(runs[1].config.hash, "done", seconds=10.0)))
    assert board.left() == pytest.approx(2 * 10.0 / 2)
    ((task, budget, recipe, primary, count, mean, spread),) = board.means()
    assert (task, budget, recipe, primary, count) == ("reviews", "r=1", "lora", "accuracy", 2)
    assert (mean, spread) == (pytest.approx(0.6), pytest.approx(math.sqrt(0.02)))
    board.take(runs[2], Started(runs[2].config.hash, "w"))
    board.take(runs[2], Ended(Outcome(runs[2].config.hash, "failed", "e")))
    assert (board.failed, board.active) == (1, {})
