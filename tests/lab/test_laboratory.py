"""The whole laboratory, small: records, continuation, the page and the command."""

from __future__ import annotations

import dataclasses
import json

import pytest

from small_problems import small
from tailora.cli import main
from tailora.errors import TrainingError, UserError
from tailora.lab.families import FAMILIES
from tailora.lab.page import write_results
from tailora.lab.run import record_path, run_lab
from tailora.lab.solve import Settings, choose_rate, solve

FEW = Settings(contestants=("random-rank", "spectral"), budget="r=1", steps=4, rates=(1e-2, 2e-2), stack=5)


def test_a_record_holds_everything_and_equal_problems_give_equal_records():
    record = solve(small(), FEW)
    again = solve(small(), dataclasses.replace(FEW, stack=2))
    assert list(record["contestants"]) == ["lora", "oracle", "random-rank", "spectral"]
    assert record["key"] == again["key"], "the size of a stack is no part of what is learned"
    for name, entry in record["contestants"].items():
        chosen = FEW.rates.index(entry["rate"])
        assert entry["validation"][chosen] == min(entry["validation"])
        assert entry["loss"] == entry["held_out"][chosen]
        assert entry["loss"] < record["untrained"]
        assert again["contestants"][name]["loss"] == pytest.approx(entry["loss"], rel=1e-4)
    assert record["contestants"]["spectral"]["extra_compute"] == pytest.approx(8 * 6 / (4 * 3 * 6))
    assert record["contestants"]["random-rank"]["extra_compute"] == 0
    assert json.loads(json.dumps(record)) == record


def test_a_stopped_lab_continues(tmp_path, monkeypatch):
    problems = [small(seed=seed) for seed in range(3)]
    seen = []

    def stop(spec, done, count):
        seen.append(spec.seed)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_lab(problems, FEW, tmp_path, workers=1, told=stop)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}
    assert len(before) == 2
    records = run_lab(problems, FEW, tmp_path, workers=1, told=lambda spec, done, count: seen.append(spec.seed))
    assert seen == [0, 1, 2]
    assert [record["spec"]["seed"] for record in records] == [0, 1, 2]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    other = dataclasses.replace(FEW, steps=5)
    assert record_path(tmp_path, problems[0], other) != record_path(tmp_path, problems[0], FEW)


@pytest.mark.slow
def test_several_workers_find_what_one_finds(tmp_path):
    problems = [small(seed=seed) for seed in range(2)]
    quick = dataclasses.replace(FEW, contestants=(), rates=(1e-2,))
    alone = run_lab(problems, quick, tmp_path / "one", workers=1)
    both = run_lab(problems, quick, tmp_path / "two", workers=2)
    for one, two in zip(alone, both, strict=True):
        assert one["contestants"]["lora"]["loss"] == pytest.approx(two["contestants"]["lora"]["loss"], rel=1e-5)


def test_a_damaged_record_is_named(tmp_path):
    path = record_path(tmp_path, small(), FEW)
    path.parent.mkdir()
    path.write_text('{"format": "other"}')
    with pytest.raises(UserError, match="is no record of format"):
        run_lab([small()], FEW, tmp_path, workers=1)


def test_the_rate_is_chosen_on_the_validation_batch_and_divergence_is_an_error_with_a_way_out():
    inf = float("inf")
    entry = choose_rate("spectral", (0.1, 0.2, 0.3), (0.5, 0.4, inf), (0.3, 0.6, inf))
    assert (entry["rate"], entry["loss"]) == (0.2, 0.6), "the lower held-out loss must not be seen"
    assert entry["validation"] == [0.5, 0.4, None]
    with pytest.raises(TrainingError, match=r"'spectral' diverged at every learning rate of 0\.1; give lower rates"):
        choose_rate("spectral", (0.1,), (inf,), (inf,))


def test_the_page_shows_every_contestant_and_the_maps(tmp_path):
    records = [solve(small(seed=seed), FEW) for seed in range(2)]
    page, rows = write_results(records, tmp_path)
    html = page.read_text()
    assert {row.contestant for row in rows} == {"lora", "oracle", "random-rank", "spectral"}
    assert all(name in html for name in ("random-rank", "spectral", "planted", "oracle"))
    assert html.count("<svg") == 6, "the figure, the planted ranks, the oracle, two contestants and uniform"
    assert "nan" not in html.lower().replace("covariance", "")
    summary = json.loads((tmp_path / "lab.json").read_text())
    assert summary["problems"] == 2
    assert len((tmp_path / "lab.csv").read_text().splitlines()) == 5


@pytest.fixture
def tiny_sparse(monkeypatch):
    """Make the family tiny."""
    entry = dataclasses.replace(FAMILIES.entry("sparse"), value=lambda seed: small(seed=seed))
    monkeypatch.setitem(FAMILIES._entries, "sparse", entry)


def test_the_command(tiny_sparse, tmp_path, capsys):
    arguments = ["lab", "--seeds", "1", "--steps", "3", "--rates", "0.01", "--workers", "1", "-o", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--family", "sparse", "--recipes", "random-rank", "--json"])
    assert not end.value.code
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [row["family"] for row in found["rows"]] == ["sparse"] * 3
    assert "sparse seed 0 solved (1 of 1)" in captured.err
    with pytest.raises(SystemExit):
        main([*arguments, "--family", "sparse", "--recipes", "random-rank"])
    captured = capsys.readouterr()
    assert "solved" not in captured.err, "the record was there"
    assert "oracle gap closed" in captured.out
    assert (tmp_path / "lab.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--family", "spars"], "did you mean 'sparse'"),
        (["--seeds", "0"], "--seeds 0"),
        (["--rates", "fast"], "--rates 'fast'"),
        (["--rates=-1"], "must be numbers above 0"),
        (["--recipes", "dora"], "does more than decide ranks"),
        (["--recipes", ","], "names nobody"),
        (["--steps", "0"], "steps=0"),
        (["--budget", "lots"], "budget 'lots'"),
    ],
)
def test_wrong_options_are_one_sentence(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["lab", "-o", str(tmp_path / "lab"), *arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "lab").exists()


def test_the_families_are_listed(capsys):
    with pytest.raises(SystemExit):
        main(["lab", "--list", "--json"])
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out) if entry["standard"]] == [
        "sparse",
        "power-law",
        "correlated",
        "roles",
    ]
