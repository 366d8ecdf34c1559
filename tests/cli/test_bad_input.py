"""What users get wrong, through the real command line: the exact sentence, status 2, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import models
import tailora
from tailora.recipes import recipe_names
from tailora.signals import SIGNALS, partial

FORMS = "write it as 'r=8', '2.4M', '300k', '0.5%', '12MB' or a whole number of parameters"
RECIPES = ", ".join(recipe_names())
KNOWN_SIGNALS = ", ".join(sorted(SIGNALS.names()))
TERMS = (
    "all-linear, attention, ffn, query-value, upper:0.5, lower:0.5, layers:0-5,11, stack:decoder, cross-attention, "
    "role:attention.query+ffn.up, regex:..."
)
ROLES = (
    "attention.query, attention.key, attention.value, attention.qkv, attention.output, ffn.gate, ffn.up, ffn.down, "
    "embedding, head, other"
)
KINDS = (
    "'text-classification', 'regression', 'multiple-choice', 'token-classification', 'seq2seq', "
    "'image-classification' or 'causal-lm'"
)
NOT_REACHED = (
    "We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files."
)
PLAN = "plan --profile HOME/p"
PROFILE = "profile HOME/llama --data HOME/counting.txt -o TMP/p"
TRAIN = "train HOME/run.yaml output=TMP/runs"


def refused(result, sentence, status=2):
    assert (result.status, result.out, result.said) == (status, "", [sentence])


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        (
            "1",
            "the budget of 1 parameters is below the smallest plan: rank 1 on the cheapest target costs 24; raise it",
        ),
        ("r=0", "budget 'r=0': the rank must be at least 1; write it as 'r=8'"),
        ("r=-1", "budget 'r=-1': the rank must be at least 1; write it as 'r=8'"),
        ("r=1.5", "budget 'r=1.5': the rank '1.5' is not a whole number; write it as 'r=8'"),
        ("0", f"budget '0' is not a finite amount above zero; {FORMS}"),
        ("-5", f"budget '-5' is not a finite amount above zero; {FORMS}"),
        ("-2M", f"budget '-2M' is not a finite amount above zero; {FORMS}"),
        ("nan", f"budget 'nan' cannot be read; {FORMS}"),
        ("inf", f"budget 'inf' cannot be read; {FORMS}"),
        ("5 apples", f"budget '5 apples' cannot be read; {FORMS}"),
        ("", f"budget '' cannot be read; {FORMS}"),
        ("200%", "budget '200%' is more than the whole model; ask for at most 100%"),
        ("0.0000001%", f"budget '0.0000001%' comes to less than one parameter; {FORMS}"),
        (
            "12MB@bf",
            "budget '12MB@bf': '@' needs a size such as '12MB' and one of fp32, bf16, fp16 behind it",
        ),
        (
            "1e99",
            "the budget of 1e+99 parameters is more than the largest ranks allowed on the 14 targets cost (6,656); "
            "lower the budget, raise r_max or widen the placement",
        ),
        (
            "r=17",
            "the budget of 7,888 parameters is more than the largest ranks allowed on the 14 targets cost (6,656); "
            "lower the budget, raise r_max or widen the placement",
        ),
    ],
)
def test_impossible_budgets(command, files, budget, sentence):
    refused(command(f"{PLAN} -o TMP/plan.json --budget", budget), sentence)
    assert files() == []


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--recipe lorra", f"unknown recipe 'lorra'; did you mean 'lora'? known: {RECIPES}"),
        (
            "--placement attension",
            "term 1 ('attension') of placement 'attension' is unknown; did you mean 'attention'? the terms are "
            f"{TERMS}",
        ),
        (
            "--placement role:attention.qery",
            "term 1 ('role:attention.qery') of placement 'role:attention.qery' has the unknown role 'attention.qery'; "
            f"did you mean 'attention.query'? the roles are {ROLES}",
        ),
        (
            "--placement layers:7",
            "term 1 ('layers:7') of placement 'layers:7' names layer 7, which this model does not have; it has the "
            "layers 0-1",
        ),
        (
            "--placement 'regex:('",
            "term 1 ('regex:(') of placement 'regex:(' is not a regular expression (missing ), unterminated "
            "subpattern at position 0); escape what is meant literally",
        ),
        (
            "--placement 'attention & ffn'",
            "placement 'attention&ffn' leaves no target, although each of its terms matches some; drop a term",
        ),
        (
            "-r spectral --signal fischer",
            f"unknown signal 'fischer'; did you mean 'fisher'? known: {KNOWN_SIGNALS}",
        ),
        (
            "-r fim-lora --signal fisher_batch_b",
            "recipe 'fim-lora' reads the signal 'fisher_batch_b', which the source does not hold; profile the model "
            "with signals=('fisher_batch_b',) (tailora profile --signals fisher_batch_b) and plan from the profile",
        ),
        ("--signal fisher", "unknown option of allocator 'uniform' in recipe 'lora': 'signal'; known: none"),
        (
            "--r-max many",
            "recipe 'lora': allocation.r_max='many' cannot be used: r_max 'many' must be a whole number or a factor "
            "such as '4x'",
        ),
        (
            "--r-min -1",
            "recipe 'lora': allocation.r_min=-1 cannot be used: it should be greater than or equal to 0",
        ),
        (
            "--emit axolot",
            "unknown trainer 'axolot'; did you mean 'axolotl'? known: adapter-config, axolotl, peft, trl, unsloth",
        ),
        ("--emit peft --json", "--emit peft and --json both decide what is printed; give one of them"),
        ("-r explicit", "recipe 'explicit' needs ranks: a file or a mapping of target names to ranks"),
        ("-o TMP", "'TMP' is a folder; give the name of a file in it"),
        (
            "--model HOME/bert",
            "give --profile (a folder made by 'tailora profile') or --model, one of the two",
        ),
    ],
)
def test_names_and_options_of_plan(command, files, line, sentence):
    refused(command(f"{PLAN} {line}"), sentence)
    assert files() == []


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("plan", "give --profile (a folder made by 'tailora profile') or --model, one of the two"),
        (
            "plan --model HOME/bert -r spectral",
            "recipe 'spectral' reads the signal 'gradient_spectrum', which the source does not hold; profile the model "
            "with signals=('gradient_spectrum',) (tailora profile --signals gradient_spectrum) and plan from the "
            "profile",
        ),
        ("plan --profile TMP", "'TMP' holds no profile (profile.json is missing); make one with 'tailora profile'"),
        ("plan --model TMP", "folder 'TMP' holds no config.json; give a model folder, its config.json or a hub id"),
        ("inspect TMP", "folder 'TMP' holds no config.json; give a model folder, its config.json or a hub id"),
        ("inspect TMP/no", "model 'TMP/no' does not exist; give a model folder, its config.json or a hub id"),
        (
            "inspect org/nowhere",
            f"model 'org/nowhere' has no configuration that can be read ({NOT_REACHED}); check the folder or id",
        ),
        ("plan --diff TMP/a.json TMP/a.json", "plan file 'TMP/a.json' does not exist; check the path"),
        ("recipes spektral", f"unknown recipe 'spektral'; did you mean 'spectral'? known: {RECIPES}"),
        (
            "report TMP",
            "no run found in 'TMP' or 3 levels below it (a run folder holds config.json and status.json) and no "
            "profile in it (profile.json); run 'tailora train' first or give another folder",
        ),
        (
            "report TMP/no",
            "folder 'TMP/no' does not exist; give a run folder, a folder that holds some, or, to tailora report, a "
            "profile's folder (with profile.json)",
        ),
        ("watch TMP", "'TMP' holds no config.json; give the folder of one run, as 'tailora train' names it"),
        ("eval TMP", "'TMP' holds no adapter_config.json; give an adapter folder or a run folder"),
        ("train TMP/no.yaml", "configuration 'TMP/no.yaml' does not exist; check the path"),
        ("train TMP", "configuration 'TMP' is a folder; give the file inside it"),
        (
            "profile HOME/llama --data HOME/counting.txt -o TMP/p --signals fischer",
            f"unknown signal 'fischer'; did you mean 'fisher'? known: {KNOWN_SIGNALS}",
        ),
        (
            "profile HOME/llama --data HOME/counting.txt -o TMP/p --batch-size 0",
            "tailora profile: calibration.batch_size=0 cannot be used: it should be greater than or equal to 1",
        ),
    ],
)
def test_places_where_nothing_is(command, files, line, sentence):
    refused(command(line), sentence)
    assert files() == []


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--labels x", "labels='x' is not known; use 'data' or 'model'"),
        ("--pooling max", "pooling='max' is not known; use 'mean' or 'last' or 'first'"),
        ("--on-nonfinite ignore", "on_nonfinite='ignore' is not known; use 'raise' or 'skip'"),
        (
            "--until 3",
            "until=3.0 must lie between 0 and 1 and needs the signal 'fisher'; add it or leave until out",
        ),
        (
            "--until 0.9 --signals gradient_norm",
            "until=0.9 must lie between 0 and 1 and needs the signal 'fisher'; add it or leave until out",
        ),
        ("--signals ''", "signals is empty; name at least one, such as 'fisher'"),
        (
            "--signals intrinsic_dimension --examples 8",
            "8 examples are too few for an intrinsic dimension with twonn and halves of them as replicates; profile at "
            "least 22, better 2,500",
        ),
        (
            "--signals intrinsic_dimension --resume TMP/unfinished",
            "an unfinished 'intrinsic_dimension' cannot be resumed; measure it in a profile of its own",
        ),
        ("--resume TMP", "'TMP' is a folder; give --resume the name of a file in it"),
        (
            "--resume HOME/counting.txt",
            "the unfinished profile 'HOME/counting.txt' cannot be continued (Error while deserializing header: header "
            "too large); remove it to start anew",
        ),
        (
            "--resume HOME/counting.txt/unfinished",
            "'HOME/counting.txt' cannot be written to: 'HOME/counting.txt' is a file; choose another place",
        ),
    ],
)
def test_options_of_profile(command, files, line, sentence):
    refused(command(f"{PROFILE} {line}"), sentence)
    assert files() == []


@pytest.mark.parametrize(
    ("placement", "reason"),
    [
        ("attention", "cannot be continued (it measures other targets)"),
        ("all-linear", "was measured on other batches"),
    ],
)
def test_the_unfinished_pass_of_another_profile(command, files, home, tmp_path, monkeypatch, placement, reason):
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(partial, "EVERY_SECONDS", 0.0)
    model, file = AutoModelForCausalLM.from_pretrained(home / "llama"), tmp_path / "unfinished"

    def stop(seen):
        if seen > 3:
            raise KeyboardInterrupt

    words = torch.arange(24).reshape(3, 8)
    batches = [{"input_ids": words, "labels": words}, {"input_ids": words + 8, "labels": words + 8}]
    with pytest.raises(KeyboardInterrupt):
        tailora.profile(model, batches, ("fisher",), placement=placement, resume=file, progress=stop)
    sentence = f"the unfinished profile 'TMP/unfinished' {reason}; remove it to start anew"
    refused(command(f"{PROFILE} --signals fisher --resume TMP/unfinished"), sentence)
    assert files() == ["unfinished"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "merge HOME/p HOME/p -o TMP/m",
            "the profile in 'HOME/p' was saved without its sums; profile again with keep_sums=True "
            "(tailora profile --keep-sums)",
        ),
        (
            "merge TMP HOME/p -o TMP/m",
            "'TMP' holds no profile (profile.json is missing); make one with 'tailora profile'",
        ),
        ("merge HOME/s -o TMP/m", "merging needs two profiles or more, not 1; name another"),
        (
            "merge HOME/s HOME/a HOME/s -o TMP/m",
            "'HOME/s' is the same profile as 'HOME/s' and its examples would count twice; leave one of them out",
        ),
        (
            "merge HOME/s HOME/a -o TMP/m",
            "profile number 2 measures other targets than the first; measure both alike",
        ),
        (
            "merge HOME/s HOME/a -o HOME/counting.txt",
            "'HOME/counting.txt' cannot be written to: 'HOME/counting.txt' is a file; choose another place",
        ),
        ("compare HOME/p TMP", "'TMP' holds no profile (profile.json is missing); make one with 'tailora profile'"),
    ],
)
def test_profiles_that_do_not_fit_together(command, files, home, line, sentence):
    for name, placement in (("s", "all-linear"), ("a", "attention")):
        if not (home / name).exists():
            tailora.profile(
                models.build("llama"), models.batches("llama"), ("fisher",), placement=placement, keep_sums=True
            ).save(home / name)
    refused(command(line), sentence)
    assert files() == []


def test_profiles_that_share_no_signal(command, home, tmp_path):
    tailora.profile(models.build("llama"), (), ("stable_rank",)).save(tmp_path / "weights")
    result = command("compare HOME/p TMP/weights")
    assert (result.status, result.out, len(result.said)) == (2, "", 1)
    assert result.said[0].startswith("the profiles share 14 targets and 0 signals; ")


def test_a_profile_of_the_weights_alone_says_so(command, tmp_path):
    result = command(f"{PROFILE} --signals stable_rank")
    assert result.status == 0
    assert "stable_rank of 14 targets from the weights alone in" in result.out
    assert "read from the weights alone" in command("report TMP/p").out + (tmp_path / "p/report.html").read_text()


@pytest.mark.parametrize(
    ("content", "line", "sentence"),
    [
        ("alocation: {name: uniform}\n", f"{PLAN} -r TMP/f.yaml",
         "recipe file 'TMP/f.yaml': 'allocation' is missing; add it"),
        (
            "allocation: {name: uniform}\nplacment: ffn\n", f"{PLAN} -r TMP/f.yaml",
            "recipe file 'TMP/f.yaml': unknown key 'placment'; did you mean 'placement'?",
        ),
        (
            "", f"{PLAN} -r TMP/f.yaml",
            "recipe file 'TMP/f.yaml' is empty; it must be a mapping such as 'allocation: {name: uniform}'",
        ),
        (
            b"title: caf\xe9", f"{PLAN} -r TMP/f.yaml",
            "recipe file 'TMP/f.yaml' is not UTF-8 text (byte 10); convert it, for example with iconv",
        ),
        (
            "model.layers.0.self_attn.q_pro: 4\n", f"{PLAN} -r explicit --ranks TMP/f.yaml",
            "explicit rank 4 is for 'model.layers.0.self_attn.q_pro', which is no candidate target; did you mean "
            "'model.layers.0.self_attn.q_proj'?",
        ),
        (
            "a: b\n", f"{PLAN} -r explicit --ranks TMP/f.yaml",
            "the explicit rank of 'a' is 'b'; it must be a whole number of at least 0",
        ),
        (
            "a: 1\na: 2\n", f"{PLAN} -r explicit --ranks TMP/f.yaml",
            "ranks file 'TMP/f.yaml' is not valid YAML (line 2): key 'a' is given twice; correct it",
        ),
        (
            '{"format": "x", "targets": [{}]}', f"{PLAN} -r explicit --ranks TMP/f.yaml",
            "ranks file 'TMP/f.yaml' is a plan in which a target has no name or no rank; plan again, or write lines "
            "'name: rank'",
        ),
        (
            "{", "plan --diff TMP/f.yaml TMP/f.yaml",
            "plan file 'TMP/f.yaml' is not valid JSON (line 1: Expecting property name enclosed in double quotes); was "
            "it edited or cut off?",
        ),
        (
            "[]", "plan --from TMP/f.yaml",
            "plan file 'TMP/f.yaml' is not a plan of format 'tailora-plan/1' (found 'list'); make one with 'tailora "
            "plan'",
        ),
        ("model: [a\n", "train TMP/f.yaml",
         "configuration 'TMP/f.yaml' is not valid YAML (line 2): expected ',' or ']', but got '<stream end>'; "
         "correct it"),
        ("", "train TMP/f.yaml", "configuration 'TMP/f.yaml' is empty; it must be a mapping such as 'model: ...'"),
        (
            "x", "report TMP/f.yaml",
            "'TMP/f.yaml' is a file; give a run folder, a folder that holds some, or, to tailora report, a profile's "
            "folder (with profile.json)",
        ),
        (
            "x", f"{PLAN} -o TMP/f.yaml/plan.json",
            "'TMP/f.yaml' cannot be written to: 'TMP/f.yaml' is a file; choose another place",
        ),
        (
            "x", "profile HOME/llama --data HOME/counting.txt -o TMP/f.yaml/deep/p",
            "'TMP/f.yaml/deep/p' cannot be written to: 'TMP/f.yaml' is a file; choose another place",
        ),
    ],
)  # fmt: skip
def test_files_that_are_not_what_they_should_be(command, files, tmp_path, content, line, sentence):
    (tmp_path / "f.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(command(line), sentence)
    assert files() == ["f.yaml"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("recipe=lorra", f"unknown recipe 'lorra'; did you mean 'lora'? known: {RECIPES}"),
        ("recipee=lora", "HOME/run.yaml: unknown key 'recipee'; did you mean 'recipe'?"),
        ("training.steps=5", "HOME/run.yaml: unknown key 'training.steps'; did you mean 'max_steps'?"),
        ("task=sst2", "HOME/run.yaml: task='sst2' must be a section with the keys {task}"),
        (
            "task.kind=clasification",
            f"HOME/run.yaml: task.kind='clasification' cannot be used: it should be {KINDS}; did you mean "
            "'text-classification'?",
        ),
        (
            "training.learning_rate=fast",
            "HOME/run.yaml: training.learning_rate='fast' cannot be used: it should be a valid number, unable to parse "
            "string as a number",
        ),
        ("seed=-1", "HOME/run.yaml: seed=-1 cannot be used: it should be greater than or equal to 0"),
        ("seed", "override 'seed' is not of the form key=value; write training.learning_rate=1e-3"),
        ("budget=r=0", "budget 'r=0': the rank must be at least 1; write it as 'r=8'"),
        (
            "placement=attension",
            f"term 1 ('attension') of placement 'attension' is unknown; did you mean 'attention'? the terms are "
            f"{TERMS}",
        ),
    ],
)
def test_configurations(command, files, override, sentence):
    from tailora.config import TaskConfig

    refused(command(TRAIN, override), sentence.format(task=", ".join(sorted(TaskConfig.model_fields))))
    assert files() == []


def labelled(*labels):
    """JSON lines with one row per label."""
    return "".join(json.dumps({"text": f"w{row} good", "label": label}) + "\n" for row, label in enumerate(labels))


@pytest.mark.parametrize(
    ("name", "content", "more", "sentence"),
    [
        ("a.jsonl", labelled(*"xy" * 9), "task.text=txt",
         "'TMP/a.jsonl' has no column 'txt'; did you mean 'text'? columns: text, label (set task.text)"),
        ("a.jsonl", labelled(*"xy" * 9), "task.label=lable",
         "'TMP/a.jsonl' has no column 'lable'; did you mean 'label'? columns: text, label (set task.label)"),
        ("a.csv", None, "", "data 'TMP/a.csv' does not exist; check the path"),
        ("a.csv", "", "", "data 'TMP/a.csv' is empty; is it the right file?"),
        ("a.csv", "text,label\n", "", "data 'TMP/a.csv' has column names but no rows; is it the right file?"),
        ("a.csv", b"text,label\ncaf\xe9,x\n", "",
         "data 'TMP/a.csv' is not UTF-8 text (byte 14); convert it, for example with iconv"),
        ("a.csv", "text,label\none,x\ntwo\n", "",
         "data 'TMP/a.csv', line 3 has 1 fields where 2 are expected; correct the line or the separator"),
        ("a.tsv", "text\tlabel\none\tx\ttoo much\n", "",
         "data 'TMP/a.tsv', line 2 has 3 fields where 2 are expected; correct the line or the separator"),
        ("a.csv", 'text,label\n"one,x\n', "",
         "data 'TMP/a.csv', line 2 is not valid csv: unexpected end of data; correct the quotes"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b"}\n', "",
         "data 'TMP/a.jsonl', line 2 lacks the field 'label', which line 1 has; add it (null stands for no value)"),
        ("a.jsonl", labelled("x") + '{"text": "b\n', "",
         "data 'TMP/a.jsonl', line 2 is not valid JSON: Unterminated string starting at; fix it"),
        ("a.xyz", "x", "",
         "data 'TMP/a.xyz' ends in '.xyz'; give a file that ends in .csv, .tsv, .json, .jsonl, .ndjson, .txt, "
         ".parquet"),
        ("a.csv", Path, "",
         "data 'TMP/a.csv' is a folder without data; give a data file, or a folder that save_to_disk wrote"),
        ("a.jsonl", labelled("x", "y", None) * 6, "",
         "'TMP/a.jsonl', column 'label', row 3 has no label; a class name or a whole number is expected"),
        ("a.jsonl", labelled(*[""] * 18), "",
         "'TMP/a.jsonl', column 'label', row 1 has no label; a class name or a whole number is expected"),
        ("a.jsonl", labelled(0, 0.5, 1) * 6, "",
         "'TMP/a.jsonl', column 'label', row 2 has the label 0.5; a class name or a whole number is expected"),
        ("a.jsonl", labelled(*"x" * 18), "",
         "'TMP/a.jsonl', column 'label' has only the class 'x'; classification needs two or more"),
        ("a.jsonl", labelled("pos", "neg", 7), "task.train=HOME/reviews0.jsonl task.evaluation=TMP/a.jsonl",
         "'TMP/a.jsonl', row 3 has the label '7', which the training data lacks (it has neg, pos); remove the row or "
         "add training examples"),
        ("a.jsonl", '{"text": null, "label": 1}\n' * 9 + '{"text": "a", "label": 0}\n' * 9, "",
         "'TMP/a.jsonl', column 'text', row 1 holds null and no text; choose another column with task.text"),
    ],
)  # fmt: skip
def test_data(command, files, tmp_path, name, content, more, sentence):
    if content is Path:
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = files()
    refused(command(f"{TRAIN} task.evaluation=null task.train=TMP/{name} {more}"), sentence)
    left_by_a_failed_run(tmp_path, set(files()) - set(before), sentence)


def left_by_a_failed_run(tmp_path, files, sentence):
    """A run that could not start leaves its status, which says why, and nothing else."""
    for name in files:
        assert Path(name).parts[0] == "runs"
        assert Path(name).name == "status.json"
        status = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        assert status["status"] == "failed"
        assert status["error"].replace(str(tmp_path), "TMP") == sentence
    assert len(files) == 1


CODE = "from pathlib import Path\nPath(__file__).with_name('it-ran').touch()\nclass C: pass\n"


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def with_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def with_damaged_weights(folder):
    (folder / "model.safetensors").write_bytes(b"x" * 100)


def without_configuration(folder):
    (folder / "config.json").unlink()


def without_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def with_code(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    auto = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForSequenceClassification"), "mine.C")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": auto}), encoding="utf-8")
    (folder / "mine.py").write_text(CODE, encoding="utf-8")


CODE_REFUSED = (
    "model 'TMP/m' comes with Python code of its own, which is not run unless you allow it; read it, then allow it "
    "with trust_remote_code=true in the configuration or --trust-remote-code"
)
SAFE = "but weights are read from safetensors alone (a pickle can run code); save the model with save_pretrained"


@pytest.mark.parametrize(
    ("damage", "line", "sentence"),
    [
        (without_weights, TRAIN, f"model folder 'TMP/m' holds no weights, {SAFE}"),
        (with_a_pickle, TRAIN, f"model folder 'TMP/m' holds only the pickle pytorch_model.bin, {SAFE}"),
        (with_damaged_weights, TRAIN,
         "model 'TMP/m' cannot be loaded: Error while deserializing header: header too large; check the id or folder "
         "and the network"),
        (without_configuration, TRAIN,
         "model folder 'TMP/m' has no config.json; give the folder that save_pretrained wrote"),
        (without_tokenizer, TRAIN, "model folder 'TMP/m' has no tokenizer; add its files, such as tokenizer.json"),
        (with_code, TRAIN, CODE_REFUSED),
        (with_code, "inspect TMP/m", CODE_REFUSED),
        (with_code, "plan --model TMP/m", CODE_REFUSED),
        (with_code, "profile TMP/m --data HOME/counting.txt -o TMP/p", CODE_REFUSED),
        (shutil.rmtree, TRAIN, "model folder 'TMP/m' does not exist; check the path or give a hub id"),
    ],
)  # fmt: skip
def test_model_folders(command, files, home, tmp_path, damage, line, sentence):
    shutil.copytree(home / "bert", tmp_path / "m")
    damage(tmp_path / "m")
    before = files()
    refused(command(line, *(["model=TMP/m"] if line == TRAIN else [])), sentence)
    assert not (tmp_path / "m" / "it-ran").exists()
    if line == TRAIN:
        left_by_a_failed_run(tmp_path, set(files()) - set(before), sentence)
    else:
        assert files() == before
