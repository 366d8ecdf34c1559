"""Ctrl-C and SIGTERM in ``tailora profile``: what is kept, what is said and with which status it ends."""

from __future__ import annotations

import os
import signal

import pytest

from tailora.profiles import Profile
from tailora.signals import passes
from tailora.stopping import StopRequest

LINE = "profile HOME/llama --data HOME/counting.txt --max-length 9 --examples 32 --seed 1 -o TMP/p"
BOTH = pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])


@pytest.fixture
def stop(monkeypatch):
    """Return a function that sends signals to this process, once, while a batch is at hand; it returns those seen."""
    plain = passes.Pass.take

    def ask(number, *, batch, times=1):
        seen = []

        def take(self, given):
            plain(self, given)
            seen.append(self.batches)
            if seen == list(range(1, batch + 1)):
                for _ in range(times):
                    os.kill(os.getpid(), number)

        monkeypatch.setattr(passes.Pass, "take", take)
        return seen

    return ask


@BOTH
def test_with_a_file_the_batch_at_hand_is_the_last_one(command, files, stop, tmp_path, number, name):
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    seen = stop(number, batch=3)
    result = command(f"{LINE} --resume TMP/f")
    assert result.status == 128 + number
    sentence = f"stopped by {name} after 24 of 32 examples; the sums are kept in 'TMP/f' and the same command goes on"
    assert result.said[-1] == f"{sentence} from there"
    assert files() == ["f"]
    assert handlers == [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    assert command(f"{LINE} --resume TMP/f").status == 0
    assert seen == [1, 2, 3, 4]
    assert "f" not in files()
    assert command(LINE.replace("TMP/p", "TMP/whole")).status == 0
    assert Profile.load(tmp_path / "p").hash == Profile.load(tmp_path / "whole").hash


@BOTH
def test_without_a_file_it_ends_at_once_and_says_how_not_to(command, files, stop, number, name):
    stop(number, batch=2)
    result = command(LINE)
    assert result.status == 128 + number
    assert result.said == [
        f"stopped by {name} after 8 of 32 examples; nothing was kept; with --resume FILE the same command would go on "
        "from there"
    ]
    assert files() == []


def test_a_second_signal_stops_at_once(command, files, stop):
    stop(signal.SIGINT, batch=1, times=2)
    result = command(f"{LINE} --resume TMP/f")
    assert result.status == 130
    assert result.said[-1].startswith(
        "stopped by Ctrl-C; 'TMP/f' keeps nothing, as no pass over the data was under way"
    )
    assert files() == []


def test_outside_of_a_pass_there_is_nothing_to_wait_for(command, files, monkeypatch):
    from tailora import profiles

    monkeypatch.setattr(profiles, "select", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr("tailora.placement.select", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    result = command(f"{LINE} --resume TMP/f")
    assert result.status == 143
    assert result.said[-1].startswith("stopped by SIGTERM; 'TMP/f' keeps nothing")
    assert files() == []


def test_signals_of_the_weights_stop_too(command, files, monkeypatch):
    monkeypatch.setattr("tailora.profiles.select", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    result = command("profile HOME/llama --signals stable_rank -o TMP/p")
    assert (result.status, files()) == (130, [])
    assert result.said == ["stopped by Ctrl-C; nothing was kept"]


def test_what_is_said_while_the_batch_goes_on(home, tmp_path, stop, capfd):
    from tailora.cli import main

    stop(signal.SIGINT, batch=1)
    with pytest.raises(SystemExit):
        main(f"{LINE} --resume TMP/f".replace("HOME", str(home)).replace("TMP", str(tmp_path)).split())
    notice = "tailora: stopping after this batch with its sums kept; once more stops at once\n"
    assert notice in capfd.readouterr().err


def test_what_training_says_is_as_it_was(capfd):
    stop = StopRequest()
    assert (
        str(stop.error("at step 3 of 9")) == "stopped by Ctrl-C at step 3 of 9; run the same command again to continue"
    )
    with stop.listening(), stop.graceful():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.number == signal.SIGTERM
    assert capfd.readouterr().err == ("tailora: stopping after this step with a checkpoint; once more stops at once\n")
