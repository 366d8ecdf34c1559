"""``tailora profile`` without data: signals of the weights alone, and what is said where data are needed."""

from __future__ import annotations

import json
import random

import pytest

import tailora
from tailora.profiles import Profile
from tiny_runs import save_bert

ALONE = "weight_spectrum, stable_rank, condition_number, weight_snr"
NEEDS = "; give --data, or ask with --signals for those of the weights alone: "


def test_it_needs_no_data_and_no_tokenizer(command, home, tmp_path):
    import numpy as np
    import transformers

    for file in ("config.json", "model.safetensors"):
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / file).write_bytes((home / "llama" / file).read_bytes())
    names = ("condition_number", "stable_rank", "weight_snr", "weight_spectrum")
    result = command(f"profile TMP/m --signals {','.join(names)} -p attention -o TMP/p")
    assert (result.status, result.said) == (0, [])
    assert f"{', '.join(names)} of 8 targets from the weights alone in" in result.out
    found = Profile.load(tmp_path / "p")
    model = transformers.AutoModelForCausalLM.from_pretrained(home / "llama")
    wanted = tailora.profile(model, (), names, placement="attention")
    assert found.targets == wanted.targets
    for name in names:
        np.testing.assert_array_equal(found.signals[name], wanted.signals[name])
    assert (found.meta["examples"], found.meta["loss"], found.meta["placement"]) == (0, "", "attention")
    found.check(model)


def test_the_profile_is_of_the_same_model_as_one_with_data(command, tmp_path):
    assert command("profile HOME/llama --signals stable_rank -o TMP/one").status == 0
    data = "--data HOME/counting.txt --examples 8"
    assert command(f"profile HOME/llama {data} --signals stable_rank,fisher -o TMP/two").status == 0
    one, two = (Profile.load(tmp_path / name) for name in ("one", "two"))
    assert one.targets == two.targets
    assert one.meta["model"] == two.meta["model"]
    assert (one.signals["stable_rank"] == two.signals["stable_rank"]).all()
    assert "stable_rank" in command("compare TMP/one TMP/two").out


def test_a_model_without_a_head_is_loaded_as_it_is(command, tmp_path):
    save_bert(tmp_path / "bert")
    result = command("profile TMP/bert --signals stable_rank -o TMP/p --json")
    assert result.status == 0
    assert json.loads(result.out)["meta"]["model_class"] == "BertModel"
    assert Profile.load(tmp_path / "p").targets[0].name == "encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", f"signal 'fisher' is measured on data{NEEDS}{ALONE}"),
        ("--signals all", f"signal 'fisher' is measured on data{NEEDS}{ALONE}"),
        (
            "--signals stable_rank,explained_variance",
            f"signal 'explained_variance' is measured on data{NEEDS}{ALONE}",
        ),
        ("--signals intrinsic_dimension", f"signal 'intrinsic_dimension' is measured on data{NEEDS}{ALONE}"),
        ("--signals stable_rank --task causal-lm", "--task causal-lm goes with --data; leave it out, or name the data"),
        (
            "--signals adapter_output_norm",
            "signal 'adapter_output_norm' is measured on a model with a LoRA, which this command does not load; call "
            "tailora.profile(peft_model, batches, ('adapter_output_norm',)) from Python",
        ),
        (
            "--signals stable_rank --placement sideways",
            "term 1 ('sideways') of placement 'sideways' is unknown",
        ),
    ],
)
def test_what_cannot_be_measured_gets_a_sentence(command, files, line, sentence):
    result = command(f"profile HOME/llama -o TMP/p {line}")
    assert (result.status, result.out, len(result.said)) == (2, "", 1)
    assert result.said[0].startswith(sentence)
    assert files() == []


def test_all_signals_of_a_base_model_leave_the_adapters_out(command, tmp_path):
    generator = random.Random(0)
    rows = [" ".join(f"w{generator.randrange(40)}" for _ in range(7)) for _ in range(60)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    result = command("profile HOME/llama --data TMP/t.jsonl --max-length 8 --examples 40 --signals all -o TMP/p")
    assert result.status == 0
    held = set(Profile.load(tmp_path / "p").signals)
    assert {"fisher", "stable_rank", "intrinsic_dimension"} <= held
    assert "adapter_output_norm" not in held


def test_a_folder_without_weights(command, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    result = command("profile TMP/m --signals stable_rank -o TMP/p")
    assert result.status == 2
    assert "holds no weights" in result.said[0]
