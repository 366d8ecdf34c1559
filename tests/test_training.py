"""Training: order, history, checkpoints, and the stop at a loss that is no number."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
import transformers as tf

import tailora.requirements
from tailora import early_stopping
from tailora.early_stopping import hold_out
from tailora.errors import ConfigError, TrainingError
from tailora.evaluation import Evaluation
from tailora.methods import METHODS, OptimizerSettings
from tailora.plans import plan
from tailora.profiles import profile
from tailora.runs import execute
from tailora.tasks import TASKS
from tailora.tasks.calibration import cached_profile, known_scores, prepare
from tailora.training import Job, _arguments, last_checkpoint, train
from tiny_runs import read_rows, review_config, save_bert, save_llama, text_config, tokenizer


def start(config, folder, **changes):
    """Return a peft model and a job for it."""
    task = TASKS[config.task.kind]
    splits = task.read(config.task)
    base = task.load(config, splits).fresh(config.seed)
    examples, _ = task.encode(config.task, splits, base.tokenizer)
    model = plan(base.model, config.recipe, config.budget).apply(
        base.model, task_type=task.task_type, modules_to_save=list(base.new_modules) or None, seed=config.seed
    )
    job = {"task": task, "tokenizer": base.tokenizer, "examples": examples, "settings": config.training}
    return model, Job(**{**job, "seed": config.seed, "folder": folder, **changes})


def seen_batches(config, folder):
    """Train and return the first inputs the model saw, batch by batch."""
    model, job = start(config, folder)
    seen = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    train(model, job)
    hook.remove()
    return seen


@pytest.mark.parametrize("make", [review_config, text_config])
def test_order_depends_on_the_seed_and_not_on_the_recipe(tmp_path, make):
    training = {"max_steps": 14, "eval_steps": None}
    first = seen_batches(make(tmp_path, training=training), tmp_path / "a")
    again = seen_batches(make(tmp_path, training=training, recipe="ffn-only", budget="r=1"), tmp_path / "b")
    other = seen_batches(make(tmp_path, training=training, seed=1), tmp_path / "c")
    assert len(first) == 14
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert any(x.shape != y.shape or not torch.equal(x, y) for x, y in zip(first, other, strict=True))


def test_it_learns_and_keeps_to_its_own_random_state(tmp_path):
    config = review_config(tmp_path, training={"max_steps": 30, "learning_rate": 2e-2})
    states = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    model, job = start(config, tmp_path / "run")
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = train(model, job)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert random.getstate() == states[2]
    assert trained.steps == 30
    losses = [row["loss"] for row in trained.history if row["split"] == "train"]
    assert losses[-1] < 0.6 * losses[0]
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


@pytest.mark.parametrize("make", [review_config, text_config])
def test_history_rows_and_silence(tmp_path, make, capsys):
    told = []
    model, job = start(make(tmp_path), tmp_path / "run", progress=lambda *step: told.append(step))
    trained = train(model, job)
    rows = read_rows(tmp_path / "run" / "history.jsonl")
    assert rows == list(trained.history)
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert all(set(row) == {"step", "split", "loss", "learning_rate"} for row in rows)
    assert told[-1] == ("train", 12, 12)
    assert capsys.readouterr().out == ""


def test_evaluation_between_steps_changes_nothing(tmp_path):
    config = review_config(tmp_path, training={"eval_steps": None})
    model, job = start(config, tmp_path / "plain")
    plain = train(model, job)
    config = review_config(tmp_path)
    model, job = start(config, tmp_path / "watched")
    task, (training, _) = job.task, (job.examples, None)
    watching = Job(**{**vars(job), "evaluate": lambda m: task.evaluate(m, job.tokenizer, training[:9], batch_size=4)})
    watched = train(model, watching)
    rows = [row for row in watched.history if row["split"] == "eval"]
    assert [row["step"] for row in rows] == [6]
    assert {"loss", "accuracy"} <= set(rows[0])
    assert [row for row in watched.history if row["split"] == "train"] == list(plain.history)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("make", [review_config, text_config])
def test_a_loss_that_is_no_number_names_its_step(tmp_path, make, bad):
    model, job = start(make(tmp_path, training={"eval_steps": None}), tmp_path / "run")
    calls = []

    def poison(module, args, output):
        calls.append(1)
        if len(calls) == 6:
            for key in ("loss", "log_probs"):
                if output.get(key) is not None:
                    output[key] = output[key] * bad
        return output

    model.get_base_model().register_forward_hook(poison)
    with pytest.raises(TrainingError, match=r"became -?(nan|inf) at step 6; lower training.learning_rate=0.01"):
        train(model, job)


def test_lora_plus_trains_b_faster(tmp_path):
    moved = {}
    for ratio in (1.0, 16.0):
        config = review_config(tmp_path, training={"max_steps": 2, "learning_rate": 1e-3, "warmup_ratio": 0.0})
        model, job = start(config, tmp_path / str(ratio))
        optimizer = METHODS["lora-plus"].optimizer(model, OptimizerSettings(1e-3), {"ratio": ratio})
        train(model, job, optimizer=optimizer)
        moved[ratio] = sum(float(p.detach().abs().sum()) for n, p in model.named_parameters() if "lora_B" in n)
    assert moved[16.0] / moved[1.0] == pytest.approx(16, rel=0.15)


def test_half_written_checkpoints_are_passed_over(tmp_path):
    model, job = start(text_config(tmp_path), tmp_path / "run")
    train(model, job)
    folder = tmp_path / "run" / "checkpoints"
    assert last_checkpoint(folder).name == "checkpoint-12"
    state = folder / "checkpoint-12" / "trainer_state.json"
    state.write_text(state.read_text(encoding="utf-8")[:40], encoding="utf-8")
    assert last_checkpoint(folder).name == "checkpoint-8"
    (folder / "checkpoint-8" / "optimizer.pt").unlink()
    assert last_checkpoint(folder) is None
    assert last_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("make", [review_config, text_config])
def test_resuming_repeats_the_undisturbed_training(tmp_path, make):
    config = make(tmp_path, training={"eval_steps": None, "max_steps": 16})
    model, job = start(config, tmp_path / "whole")
    whole = train(model, job)
    expected = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}

    class Stopped(Exception):
        pass

    def stop(stage, done, total):
        if done == 10:
            raise Stopped

    model, job = start(config, tmp_path / "cut", progress=stop)
    with pytest.raises(Stopped):
        train(model, job)
    model, job = start(config, tmp_path / "cut")
    resumed = train(model, job)
    assert (resumed.resumed_from, resumed.steps) == (8, 16)
    assert [row["step"] for row in resumed.history] == [4, 8, 12, 16]
    assert resumed.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"], rel=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-7)


def test_epochs_and_accumulation(tmp_path):
    settings = {"max_steps": None, "num_train_epochs": 2, "gradient_accumulation_steps": 3, "eval_steps": None}
    model, job = start(review_config(tmp_path, training=settings), tmp_path / "run")
    # 96 examples in batches of 8 and groups of 3: 4 steps an epoch.
    assert train(model, job).steps == 8
    state = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["epoch"] == 2


def without_dropout(model):
    """Set drop-out to 0 where it would draw other numbers for other batches."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def final(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("make", [review_config, text_config])
def test_accumulated_small_batches_equal_one_large_batch(tmp_path, make):
    weights, losses = [], []
    for size, groups in ((8, 1), (4, 2)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": groups, "eval_steps": None}
        model, job = start(make(tmp_path, training=settings), tmp_path / str(size))
        losses.append([row["loss"] for row in train(without_dropout(model), job).history])
        weights.append(final(model))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("make", [review_config, text_config])
def test_gradient_checkpointing_gives_the_same_losses(tmp_path, make):
    losses = []
    for wanted in (False, True):
        config = make(tmp_path, training={"gradient_checkpointing": wanted, "eval_steps": None, "max_steps": 8})
        model, job = start(config, tmp_path / str(wanted))
        losses.append([row["loss"] for row in train(without_dropout(model), job).history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def arguments_of(tmp_path, **training):
    model, job = start(review_config(tmp_path, training=training), tmp_path / "run")
    return _arguments(job, model)


def test_settings_reach_the_trainer_under_their_own_names(tmp_path):
    given = {
        "optim": "adafactor",
        "adam_beta1": 0.8,
        "adam_beta2": 0.99,
        "adam_epsilon": 1e-6,
        "dataloader_num_workers": 2,
        "dataloader_drop_last": True,
        "gradient_checkpointing": True,
        "report_to": ["tensorboard"],
        "run_name": "mine",
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "label_smoothing_factor": 0.1,
        "neftune_noise_alpha": 5.0,
        "train_sampling_strategy": "group_by_length",
        "logging_first_step": True,
        "save_total_limit": 1,
        "warmup_steps": 3,
        "max_grad_norm": 0.5,
    }
    arguments = arguments_of(tmp_path, **given)
    assert {name: arguments[name] for name in given} == given
    assert arguments_of(tmp_path)["report_to"] == "none"
    # The older name is a share of the steps; steps go before it, 0 included.
    assert arguments_of(tmp_path, warmup_ratio=0.3)["warmup_steps"] == 0.3
    assert arguments_of(tmp_path, warmup_ratio=0.3, warmup_steps=0)["warmup_steps"] == 0
    assert arguments_of(tmp_path, report_to="none")["report_to"] == "none"
    # Half floats are for GPUs: on a CPU they would only be slow and coarse.
    on_cpu = arguments_of(tmp_path, fp16=True, use_cpu=True)
    assert (on_cpu["fp16"], on_cpu["bf16"]) == (False, False)


def test_optimizer_and_its_betas_change_the_training(tmp_path):
    ends = {}
    for name, settings in {
        "adamw": {},
        "sgd": {"optim": "sgd"},
        "betas": {"adam_beta1": 0.5},
    }.items():
        config = text_config(tmp_path, training={"max_steps": 4, "eval_steps": None, **settings})
        model, job = start(config, tmp_path / name)
        train(model, job)
        ends[name] = torch.cat([p.flatten() for p in final(model).values()])
    assert not torch.allclose(ends["adamw"], ends["sgd"])
    assert not torch.allclose(ends["adamw"], ends["betas"])


def test_tensorboard_gets_the_curve(tmp_path):
    pytest.importorskip("tensorboard")
    model, job = start(text_config(tmp_path, training={"report_to": "tensorboard"}), tmp_path / "run")
    train(model, job)
    assert list((tmp_path / "run" / "tensorboard").rglob("events*"))


def test_smoothed_labels_give_the_loss_by_hand(tmp_path):
    """(1 - e) of the right class's loss and e of the mean over all classes; the same for any accumulation."""
    for make in (review_config, text_config):
        first = []
        for size, groups in ((8, 1), (4, 2)):
            settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": groups, "eval_steps": None}
            config = make(
                tmp_path, training={**settings, "label_smoothing_factor": 0.2, "max_steps": 3, "logging_steps": 1}
            )
            model, job = start(config, tmp_path / f"{make.__name__}{size}")
            without_dropout(model)
            seen = []
            hook = model.register_forward_pre_hook(lambda m, a, k, seen=seen: seen.append(k), with_kwargs=True)
            rows = train(model, job).history
            hook.remove()
            first.append([row["loss"] for row in rows])
        assert first[0] == pytest.approx(first[1], rel=1e-4)
        # By hand, on the batch of the first step of an untrained adapter.
        model, job = start(config, tmp_path / f"{make.__name__}hand")
        model.eval()
        rows = {
            tuple(ids[mask.bool()].tolist())
            for step in seen[:2]
            for ids, mask in zip(step["input_ids"], step["attention_mask"], strict=True)
        }
        chosen = [example for example in job.examples if tuple(example["input_ids"]) in rows]
        batch = job.task.collate(chosen, job.tokenizer)
        labels = batch.pop("labels")
        with torch.no_grad():
            logs = model(**batch).logits.log_softmax(-1)
        if make is text_config:
            logs, labels = logs[:, :-1], labels[:, 1:]
        counted = labels != -100
        logs, labels = logs[counted], labels[counted]
        expected = -(0.8 * logs.gather(-1, labels[:, None]).mean() + 0.2 * logs.mean())
        if len(chosen) == 8:  # no text stands twice in the data
            assert first[0][0] == pytest.approx(float(expected), rel=1e-4)


def test_smoothing_reaches_encoder_decoders(tmp_path):
    path = tmp_path / "echoes.jsonl"
    path.write_text("".join(json.dumps({"text": f"good w{n % 9}", "out": "good good"}) + "\n" for n in range(40)))
    losses = {}
    for smoothing in (0.0, 0.3):
        task = {"kind": "seq2seq", "train": str(path), "text_pair": "out", "max_length": 12}
        config = text_config(tmp_path, model=str(save_t5(tmp_path / "t5")), task=task,
                             training={"label_smoothing_factor": smoothing, "max_steps": 2,
                                       "logging_steps": 1})  # fmt: skip
        model, job = start(config, tmp_path / str(smoothing))
        losses[smoothing] = [row["loss"] for row in train(without_dropout(model), job).history]
    assert losses[0.3] != losses[0.0]
    assert losses[0.3][0] == pytest.approx(losses[0.0][0], rel=0.2)


def save_t5(folder):
    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = tf.T5Config(vocab_size=len(words), d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2,
                             decoder_start_token_id=0, pad_token_id=0, eos_token_id=3)  # fmt: skip
        tf.T5ForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_noise_on_embeddings_and_warm_up_change_the_training(tmp_path):
    ends = {}
    for name, settings in {"plain": {}, "noise": {"neftune_noise_alpha": 10.0}, "slow": {"warmup_steps": 4}}.items():
        config = text_config(tmp_path, training={"max_steps": 4, "logging_steps": 1, **settings})
        model, job = start(config, tmp_path / name)
        rows = train(model, job).history
        ends[name] = torch.cat([p.flatten() for p in final(model).values()])
        if name == "slow":
            assert [row["learning_rate"] for row in rows] == pytest.approx([0.0, 2.5e-3, 5e-3, 7.5e-3])
    assert not torch.allclose(ends["plain"], ends["noise"])
    assert not torch.allclose(ends["plain"], ends["slow"])
    assert not model.get_input_embeddings()._forward_hooks


def test_groups_of_like_length_pad_less_and_resume(tmp_path):
    training = {"train_sampling_strategy": "group_by_length", "max_steps": 18, "eval_steps": None, "save_steps": 5}
    padding = {}
    for name in ("random", "group_by_length"):
        config = review_config(tmp_path, training={**training, "train_sampling_strategy": name})
        seen = seen_batches(config, tmp_path / name)
        padding[name] = sum(int((batch == 0).sum()) for batch in seen)
    assert padding["group_by_length"] < 0.5 * padding["random"]

    class Stopped(Exception):
        pass

    def stop(stage, done, total):
        if done == 16:
            raise Stopped

    # 12 steps are an epoch: the order of the second one must not depend on where the training began.
    model, job = start(config, tmp_path / "cut", progress=stop)
    with pytest.raises(Stopped):
        train(model, job)
    again = seen_batches(config, tmp_path / "cut")
    assert len(again) == 3
    assert all(torch.equal(x, y) for x, y in zip(again, seen[15:], strict=True))
    assert not torch.equal(seen[0], seen[12])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr_scheduler_kwargs": {"min_lr": 1}}, "lr_scheduler_type=linear: .*min_lr"),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 1}}, "lr_scheduler_type=constant takes none"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "cannot be used with lr_scheduler_type=cosine_with_min_lr"),
    ],
)
def test_schedules_that_cannot_be_built_are_refused_before_any_work(tmp_path, settings, words):
    with pytest.raises(ConfigError, match=words):
        execute(text_config(tmp_path, training=settings), progress=lambda *_: pytest.fail("it began to work"))


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (review_config, {"task": {"kind": "regression"}, "training": {"label_smoothing_factor": 0.1}}, "regression"),
        (text_config, {"training": {"warmup_steps": 2.5}}, "training.warmup_steps=2.5 is no number of steps"),
        (text_config, {"training": {"greater_is_better": True}}, "contradicts training.metric_for_best_model=loss"),
        (text_config, {"training": {"metric_for_best_model": "accuracy", "greater_is_better": False}}, "the higher is"),
    ],
)  # fmt: skip
def test_settings_that_contradict(tmp_path, make, changes, words):
    with pytest.raises(ConfigError, match=words):
        make(tmp_path, **changes)


def scored_config(tmp_path, kind):
    """A run of each kind of task."""
    if kind == "causal-lm":
        return text_config(tmp_path)
    if kind == "text-classification":
        return review_config(tmp_path)
    rows = {
        "regression": [{"text": f"good w{n % 9}", "label": n % 7} for n in range(30)],
        "seq2seq": [{"text": f"good w{n % 9}", "out": "good good"} for n in range(30)],
        "token-classification": [{"text": ["good", f"w{n % 9}"], "label": ["A", "O"]} for n in range(30)],
        "multiple-choice": [{"text": f"w{n % 9}", "choices": ["w1", "w2"], "label": n % 2} for n in range(30)],
    }[kind]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pair = {"seq2seq": "out", "multiple-choice": "choices"}.get(kind)
    save = {"seq2seq": save_t5, "multiple-choice": save_llama}.get(kind, save_bert)
    task = {"kind": kind, "train": str(path), "text_pair": pair, "max_length": 16}
    return text_config(tmp_path, model=str(save(tmp_path / "model")), task=task)


KINDS = ["causal-lm", "text-classification", "regression", "seq2seq", "token-classification", "multiple-choice"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_score_can_judge_and_is_judged_in_its_direction(tmp_path, kind):
    config = scored_config(tmp_path, kind)
    prepared = prepare(config)
    found = prepared.task.evaluate(
        prepared.base.model, prepared.base.tokenizer, prepared.training[:12], batch_size=4,
        labels=prepared.splits.labels,
    )  # fmt: skip
    scores = {name: value for name, value in found.scores().items() if isinstance(value, float)}
    assert set(known_scores(config, prepared.splits.labels)) == set(scores)
    for name, value in scores.items():
        settings = config.training.model_copy(update={"metric_for_best_model": name})
        assert settings.lower_is_better == (name in ("loss", "perplexity"))
        row = early_stopping.validation_row(2, found, settings)
        assert row[name] == value
        lower, higher = ({"step": s, "split": "validation", name: v} for s, v in ((4, value - 1), (6, value + 1)))
        best = early_stopping.best_and_stale([row, lower, higher], settings)
        assert best == ((4, 1) if settings.lower_is_better else (6, 0))


def test_entities_judge_only_where_tags_name_some(tmp_path):
    config = scored_config(tmp_path, "token-classification")
    settings = {"eval_steps": 2, "load_best_model_at_end": True, "metric_for_best_model": "entity_f1"}
    config = config.model_copy(update={"training": config.training.model_copy(update=settings)})
    with pytest.raises(ConfigError, match="metric_for_best_model='entity_f1' is no score of this task"):
        prepare(config)
    path = tmp_path / "data.jsonl"
    path.write_text(path.read_text().replace('"A"', '"B-A"'))
    assert "entity_f1" in known_scores(config, prepare(config).splits.labels)


def test_an_unknown_metric_is_refused_before_data_is_read(tmp_path):
    settings = {"eval_steps": 2, "load_best_model_at_end": True}
    words = r"metric_for_best_model='f2' is no score of this task; did you mean 'f1'\? known: loss, accuracy, f1, matth"
    with pytest.raises(ConfigError, match=words):
        prepare(
            review_config(tmp_path, task={"train": "/nowhere"}, training={**settings, "metric_for_best_model": "f2"})
        )
    # transformers' own spelling.
    assert review_config(tmp_path, training={"metric_for_best_model": "eval_f1"}).training.metric_for_best_model == "f1"


def test_profiles_are_measured_on_rows_that_train(tmp_path):
    settings = {"eval_steps": 2, "early_stopping_patience": 1, "validation_share": 0.5}
    plain = text_config(tmp_path, calibration={"examples": 500})
    stopped = text_config(tmp_path, calibration={"examples": 500}, training=settings)
    prepared = prepare(stopped)
    training, validation = hold_out(stopped, prepared.training)
    assert len(training) + len(validation) == len(prepared.training)
    measured = cached_profile(stopped, prepared)
    assert measured.meta["examples"] == len(training)
    whole = cached_profile(plain, prepare(plain))
    assert whole.meta["examples"] == len(prepared.training)
    # By hand: the profile of exactly the rows that train.
    batches = prepared.task.calibration(
        prepared.base.tokenizer, training, count=500, batch_size=stopped.calibration.batch_size, seed=0
    )
    expected = profile(prepared.base.fresh(0).model, batches, ("fisher",))
    assert measured.scalar("fisher") == pytest.approx(expected.scalar("fisher"), rel=1e-6)
    assert len(list((tmp_path / "runs" / "profiles").iterdir())) == 2
    # Another way to stop on the same rows shares the profile; another share does not.
    cached_profile(text_config(tmp_path, calibration={"examples": 500}, training={
        **settings, "early_stopping_patience": 3, "metric_for_best_model": "perplexity"}), prepared)  # fmt: skip
    assert len(list((tmp_path / "runs" / "profiles").iterdir())) == 2


@pytest.mark.parametrize("tracker", ["trackio", "wandb", "mlflow", "comet_ml"])
def test_trackers_that_are_not_installed_are_named_before_any_work(tmp_path, monkeypatch, tracker):
    monkeypatch.setattr(tailora.requirements, "find_spec", lambda name: None)
    config = text_config(tmp_path, training={"report_to": tracker})
    package = tracker.replace("_", "-")
    with pytest.raises(ConfigError, match=rf"='{tracker}' needs the package '{package}'.* 'pip install {package}'"):
        execute(config, progress=lambda *_: pytest.fail("it began to work"))
    assert not (tmp_path / "runs").exists()


def worsening(losses):
    """Return a validation that reports these losses, one after the other."""
    given = iter(losses)
    return lambda model: Evaluation(loss=next(given), examples=1, records=(), accuracy=0.5)


def test_early_stopping_stops_goes_back_and_survives_a_kill(tmp_path):
    settings = {"eval_steps": 2, "early_stopping_patience": 2, "load_best_model_at_end": True, "max_steps": 20}
    config = review_config(tmp_path, training={**settings, "save_steps": 4, "logging_steps": 100})
    model, job = start(config, tmp_path / "run", validate=worsening([3.0, 2.0, 2.5, 2.6]), evaluate=None)
    model_at = {}
    original = early_stopping.keep

    def keep(model, folder, step):
        model_at[step] = final(model)
        original(model, folder, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(early_stopping, "keep", keep)
        trained = train(model, job)
    assert (trained.steps, trained.best_step) == (8, 4)
    assert [row["loss"] for row in trained.history if row["split"] == "validation"] == [3.0, 2.0, 2.5, 2.6]
    assert list(model_at) == [2, 4]
    for name, value in final(model).items():
        assert torch.equal(value, model_at[4][name]), name
    # Killed after the last step and before the status: nothing is trained or validated again.
    again, job = start(config, tmp_path / "run", validate=worsening([]))
    resumed = train(again, job)
    assert (resumed.steps, resumed.best_step, resumed.resumed_from) == (8, 4, 8)
    for name, value in final(again).items():
        assert torch.equal(value, model_at[4][name]), name


def test_validation_examples_come_from_training_data_alone(tmp_path):
    settings = {"eval_steps": 2, "early_stopping_patience": 1}
    config = review_config(tmp_path, training=settings)
    examples = [{"number": number} for number in range(96)]
    training, validation = hold_out(config, examples)
    assert (len(training), len(validation)) == (86, 10)
    numbers = [example["number"] for example in (*training, *validation)]
    assert sorted(numbers) == list(range(96))
    assert hold_out(config.model_copy(update={"seed": 9, "recipe": "dora"}), examples)[1] == validation
    assert hold_out(review_config(tmp_path), examples) == (examples, ())
    # Blocks of one text: the end, so that no block has its neighbours on the other side.
    assert hold_out(text_config(tmp_path, training=settings), examples)[1] == examples[-10:]
    model, job = start(config, tmp_path / "run", validate=worsening([1.0]))
    bad = config.training.model_copy(update={"metric_for_best_model": "f1"})
    with pytest.raises(ConfigError, match=r"metric_for_best_model='f1' is no score of this task; known: loss, accurac"):
        train(model, Job(**{**vars(job), "settings": bad}))
