"""Synthetic run folders that look like real ones: seeded, small, and with answers that can be computed by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

RECIPES = ("lora", "spectral", "fim-lora")
CITATIONS = {
    "lora": "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685",
    "spectral": "Tailora",
    "fim-lora": "FIM-LoRA: rank allocation in proportion to the Fisher information",
}
ROLES = ("attention.query", "attention.key", "attention.value", "attention.output", "ffn.up", "ffn.down")


def encoder_targets(layers: int = 6, width: int = 384) -> list[dict]:
    targets = []
    for depth in range(layers):
        for role in ROLES:
            shape = {"ffn.up": [4 * width, width], "ffn.down": [width, 4 * width]}.get(role, [width, width])
            name = f"encoder.layer.{depth}.{role}"
            targets.append({"name": name, "role": role, "depth": depth, "stack": "", "shape": shape})
    targets.append(
        {"name": "embeddings.word", "role": "embedding", "depth": None, "stack": "", "shape": [30522, width]}
    )
    return [{**target, "kind": "linear", "experts": 1} for target in targets]


def t5_targets(layers: int = 4, width: int = 256) -> list[dict]:
    targets = []
    for stack in ("encoder", "decoder"):
        for depth in range(layers):
            kinds = ["SelfAttention"] + (["EncDecAttention"] if stack == "decoder" else [])
            for kind in kinds:
                for role in ("query", "key", "value", "output"):
                    name = f"{stack}.block.{depth}.{kind}.{role}"
                    targets.append({"name": name, "role": f"attention.{role}", "shape": [width, width]})
            for role in ("gate", "up", "down"):
                name = f"{stack}.block.{depth}.DenseReluDense.{role}"
                shape = [width, 4 * width] if role == "down" else [4 * width, width]
                targets.append({"name": name, "role": f"ffn.{role}", "shape": shape})
            for target in targets:
                target.setdefault("depth", depth)
                target.setdefault("stack", stack)
    return [{**target, "kind": "linear", "experts": 1} for target in targets]


def _ranks(recipe: str, targets: list[dict], rng: np.random.Generator) -> list[int]:
    if recipe == "lora":
        return [0 if target["depth"] is None else 2 for target in targets]
    # Deal ranks by lot, late layers and some roles favoured, until uniform rank 2's parameters are spent.
    deepest = max(target["depth"] or 0 for target in targets) + 1
    costs = np.array([sum(target["shape"]) for target in targets])
    inside = np.array([target["depth"] is not None for target in targets])
    favour = np.array([4.0 if target["role"].endswith((".value", ".output", ".down")) else 1.0 for target in targets])
    late = np.array(
        [0.1 + ((target["depth"] or 0) / deepest) ** (2 if recipe == "spectral" else 1) for target in targets]
    )
    ranks, left = np.zeros(len(targets), dtype=int), int(2 * costs[inside].sum())
    while (open_ := inside & (costs <= left)).any():
        weights = favour * late * open_
        pick = int(rng.choice(len(targets), p=weights / weights.sum()))
        ranks[pick] += 1
        left -= int(costs[pick])
    return ranks.tolist()


def write_run(
    root: Path,
    recipe: str = "lora",
    seed: int = 0,
    *,
    task: str = "stdlib docstrings",
    kind: str = "text-classification",
    budget: str = "r=2",
    model: str = "sentence-transformers/all-MiniLM-L6-v2",
    targets: list[dict] | None = None,
    correct: Iterable[bool] | None = None,
    examples: int = 600,
    learning_rate: float = 0.002,
    status: str = "done",
    quality: float | None = None,
    citation: str | None = None,
    texts: Iterable[str] | None = None,
    label: str = "",
    evaluate_on: str = "",
    calibration: int | None = None,
    ranks_of: str = "",
) -> Path:
    """Write one run folder; ``correct`` fixes the predictions, else they are drawn with the recipe's quality."""
    rng = np.random.default_rng([seed, sum(map(ord, recipe + budget)) + (calibration or 0)])
    targets = encoder_targets() if targets is None else targets
    config = {
        "recipe": recipe,
        "budget": budget,
        "seed": seed,
        "model": model,
        "task": {"kind": kind, "name": task},
        "training": {"learning_rate": learning_rate, "steps": 200, "batch_size": 16},
    }
    config |= {"label": label} if label else {}
    config["task"] |= {"evaluate_on": evaluate_on} if evaluate_on else {}
    config |= {"calibration": {"examples": calibration}} if calibration else {}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    folder = root / f"{recipe}-{digest[:10]}"
    folder.mkdir(parents=True)
    scale = int(budget.removeprefix("r=")) / 2 if budget.startswith("r=") else 1
    planned, total = [], 0
    for target, base_rank in zip(targets, _ranks(ranks_of or recipe, targets, rng), strict=True):
        rank = round(base_rank * scale)
        cost = rank * sum(target["shape"])
        total += cost
        planned.append({**target, "rank": rank, "alpha": 2.0 * rank, "cost": cost})
    plan = {
        "recipe": {"name": recipe, "title": recipe.title(), "citation": citation or CITATIONS.get(recipe, "")},
        "budget": budget,
        "budget_params": total + 44,
        "total_params": total,
        "hash": hashlib.sha256(json.dumps(planned).encode()).hexdigest(),
        "model_params": 22_713_216,
        "targets": planned,
    }
    _dump(folder / "config.json", config)
    _dump(folder / "plan.json", plan)
    _dump(folder / "signals.json", _signals(targets))
    good = quality if quality is not None else {"lora": 0.66, "spectral": 0.72, "fim-lora": 0.67}.get(recipe, 0.65)
    _write_results(folder, rng, kind, good + 0.01 * np.log2(scale), correct, examples, planned)
    if texts is not None:
        kept = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        rows = [{**row, "text": text} for row, text in zip(kept, texts, strict=True)]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = {"adapter_params": total, "head_params": 7_710 if kind != "causal-lm" else 0, "base_params": 22_713_216}
    _dump(folder / "counts.json", counts)
    timings = {"profile_s": 4.1, "plan_s": 0.02, "train_s": 61.5 + seed, "evaluate_s": 3.3, "total_s": 69.0 + seed}
    _dump(folder / "timings.json", {**timings, "peak_memory_mb": 812.5 + 10 * seed})
    environment = {"tailora": "0.1.0", "torch": "2.8.0", "python": "3.11.9", "platform": "Linux-x86_64"}
    _dump(folder / "environment.json", environment)
    _dump(folder / "status.json", {"status": status, "error": None, "hash": digest})
    return folder


def _signals(targets: list[dict]) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(11)
    fisher, spectrum = {}, {}
    for target in targets:
        late = (target["depth"] or 0) / 6
        fisher[target["name"]] = float(np.exp(rng.normal(-7 + 3 * late + 1.5 * target["role"].endswith(".value"), 0.6)))
        spectrum[target["name"]] = float(np.exp(rng.normal(-2 + late, 0.4)))
    return {"fisher": fisher, "gradient_spectrum": spectrum}


def _write_results(folder, rng, kind, quality, correct, examples, planned) -> None:
    history = []
    for step in range(5, 201, 5):
        decay = float(np.exp(-step / 60))
        train = 0.9 + 1.5 * decay - quality * 0.4 + float(rng.normal(0, 0.06))
        history.append({"step": step, "split": "train", "loss": train, "learning_rate": 0.002 * (1 - step / 201)})
        if step % 25 == 0:
            row = {
                "step": step,
                "split": "eval",
                "loss": 1.0 + 1.3 * decay - quality * 0.4 + float(rng.normal(0, 0.02)),
            }
            if kind != "causal-lm":
                row["accuracy"] = quality * (1 - 0.5 * decay)
            history.append(row)
    # One difficulty per example, the same in every run: that is what makes pairing worth while.
    difficulty = np.random.default_rng(99).uniform(size=examples)
    flags = (
        list(correct)
        if correct is not None
        else [bool(value) for value in difficulty + rng.normal(0, 0.08, examples) < quality]
    )
    losses = [
        float(abs(d + 0.6 - quality + noise))
        for d, noise in zip(np.resize(difficulty, len(flags)), rng.normal(0, 0.05, len(flags)), strict=True)
    ]
    predictions = []
    for index, (flag, loss) in enumerate(zip(flags, losses, strict=True)):
        row = {"index": index, "label": index % 5, "prediction": index % 5 if flag else (index + 1) % 5, "loss": loss}
        predictions.append({**row, "correct": bool(flag)} if kind != "causal-lm" else {**row, "prediction": None})
    loss = float(np.mean(losses))
    if kind == "causal-lm":
        scores = {"primary": "loss", "higher_is_better": False, "loss": loss, "perplexity": float(np.exp(loss))}
    else:
        scores = {"primary": "accuracy", "higher_is_better": True, "accuracy": float(np.mean(flags)), "loss": loss}
    _dump(folder / "scores.json", {**scores, "examples": len(flags)})
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in predictions))


def _dump(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def write_study(root: Path, *, seeds: int = 2, budgets: tuple[str, ...] = ("r=2",), **options) -> Path:
    """Write three recipes with some seeds each, one broken folder and one unfinished folder."""
    for budget in budgets:
        for recipe in RECIPES:
            for seed in range(seeds):
                write_run(root, recipe, seed, budget=budget, **options)
    broken = write_run(root / "odd", "spectral", 8, budget=budgets[0], **options)
    (broken / "plan.json").write_text('{"recipe": {"name": "spec')
    unfinished = write_run(root / "odd", "lora", 9, budget=budgets[0], **options)
    (unfinished / "status.json").unlink()
    (unfinished / "scores.json").unlink()
    return root
