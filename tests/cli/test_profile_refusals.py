"""What ``tailora profile`` refuses, and before it has loaded anything."""

from __future__ import annotations

import pytest

from tailora.profiles import Profile

NOWHERE = "profile TMP/no-model --data TMP/no-data.jsonl -o TMP/p"
UNFINISHED = "an unfinished 'intrinsic_dimension' cannot be resumed; measure it in a profile of its own"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--signals intrinsic_dimension --resume TMP/f", UNFINISHED),
        ("--signals fisher,intrinsic_dimension --resume TMP/f", UNFINISHED),
        ("--signals all --resume TMP/f", f"{UNFINISHED}, and here all the others: --signals fisher,gradient_spectrum,"),
        ("--signals ''", "signals is empty; name at least one, such as 'fisher'"),
        ("--signals ,", "signals is empty; name at least one, such as 'fisher'"),
        ("--signals all,fischer", "unknown signal 'fischer'; did you mean 'fisher'?"),
        ("--resume TMP", "'TMP' is a folder; give --resume the name of a file in it"),
    ],
)
def test_before_anything_is_loaded(command, files, line, sentence):
    result = command(f"{NOWHERE} {line}")
    assert result.status == 2
    assert len(result.said) == 1
    assert result.said[0].startswith(sentence)
    assert files() == []


@pytest.mark.parametrize("line", ["profile HOME/llama --signals stable_rank", "merge HOME/p HOME/p"])
@pytest.mark.parametrize("output", ["''", "' '"])
def test_an_empty_output_is_not_the_current_folder(command, tmp_path, monkeypatch, line, output):
    monkeypatch.chdir(tmp_path)
    result = command(f"{line} -o {output}")
    sentence = f"--output {output} names no folder; give one, or '.' for the current folder"
    assert (result.status, result.said) == (2, [sentence])
    assert not list(tmp_path.iterdir())


def test_the_current_folder_by_name(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("profile HOME/llama --signals stable_rank -o .").status == 0
    assert set(Profile.load(tmp_path).signals) == {"stable_rank"}


def test_all_is_one_of_the_names(command, tmp_path):
    data = "--data HOME/counting.txt --max-length 9 --examples 40"
    assert command(f"profile HOME/llama {data} --signals all -o TMP/all").status == 0
    assert command(f"profile HOME/llama {data} --signals newton_spectrum,all,fisher -o TMP/p").status == 0
    single, more = (list(Profile.load(tmp_path / name).signals) for name in ("all", "p"))
    assert "newton_spectrum" not in single
    assert more == ["newton_spectrum", *single]
