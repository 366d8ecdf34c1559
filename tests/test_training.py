"""Training: order, history, checkpoints, and the stop at a loss that is no number."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from tailora import early_stopping
from tailora.early_stopping import hold_out
from tailora.errors import ConfigError, TrainingError
from tailora.evaluation import Evaluation
from tailora.methods import METHODS, OptimizerSettings
from tailora.plans import plan
from tailora.tasks import TASKS
from tailora.training import Job, _arguments, last_checkpoint, train
from tiny_runs import read_rows, review_config, text_config


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
    }
    arguments = arguments_of(tmp_path, **given)
    assert {name: arguments[name] for name in given} == given
    assert arguments_of(tmp_path)["report_to"] == "none"
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
