"""What ``tailora report`` says of folders that it cannot show: runs are not all that it takes."""

from __future__ import annotations

import shutil

import pytest

from tailora.errors import UserError
from tailora.report.runs import load_runs

TAKES = "give a run folder, a folder that holds some, or, to tailora report, a profile's folder (with profile.json)"


def test_nothing_there(command):
    result = command("report TMP/absent")
    assert (result.status, result.said) == (2, [f"folder 'TMP/absent' does not exist; {TAKES}"])


def test_a_file(command, home):
    result = command("report HOME/p/profile.json")
    assert (result.status, result.said) == (2, [f"'HOME/p/profile.json' is a file; {TAKES}"])


def test_half_a_profile(command, home, tmp_path):
    shutil.copy(home / "p" / "profile.safetensors", tmp_path)
    result = command("report TMP")
    assert result.status == 2
    assert result.said == [
        "no run found in 'TMP' or 3 levels below it (a run folder holds config.json and status.json); it holds "
        "profile.safetensors without the profile.json that makes it a profile's folder; run 'tailora train' first or "
        "give another folder"
    ]


def test_from_python_a_profile_is_sent_to_the_command(home):
    with pytest.raises(UserError, match="it holds a profile, which tailora report shows"):
        load_runs(home / "p")
