"""Tailora with transformers' own Trainer: a classifier whose head trains beside the adapter.

    python examples/library/own_trainer.py                  # a tiny random BERT, seconds
    python examples/library/own_trainer.py --model FOLDER   # an encoder of yours

The data are made up (the class is the larger of two counts), so that nothing has to be downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

import tailora


def load_model(folder: Path | None) -> PreTrainedModel:
    """Load a model with a new two-class head, or build a tiny one."""
    torch.manual_seed(0)
    if folder is not None:
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        num_labels=2,
    )
    return BertForSequenceClassification(config)


def make_examples(number: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Make examples of two kinds of tokens; the label says which kind is in the majority."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(number):
        ids = torch.randint(10, 12, (15,), generator=generator)
        label = (ids == 11).sum() > 7
        examples.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": label.long()})
    return examples


def accuracy(outcome: tuple) -> dict[str, float]:
    """Return the share of right classes, in the form that Trainer asks for."""
    logits, labels = outcome
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder; default: a tiny one built here")
    parser.add_argument("--output", type=Path, default=Path("own-trainer"), help="where checkpoints and adapter go")
    parser.add_argument("--steps", type=int, default=80)
    arguments = parser.parse_args()

    base = load_model(arguments.model)
    training, held_out = make_examples(800, seed=1), make_examples(200, seed=2)
    batches = [
        {name: torch.stack([example[name] for example in training[start : start + 16]]) for name in training[0]}
        for start in range(0, 64, 16)
    ]

    # The new head trains in full, so it gets no LoRA and is not part of the budget.
    profile = tailora.profile(base, batches)
    plan = tailora.plan(profile, recipe="fim-lora", budget="r=4")
    model = plan.apply(base, task_type="SEQ_CLS", seed=0)
    print(f"{plan.total_params:,} of {plan.budget_params:,} parameters, ranks {sorted(set(plan.ranks.values()))}")

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.output),
            max_steps=arguments.steps,
            per_device_train_batch_size=16,
            learning_rate=5e-3,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
        ),
        train_dataset=training,
        eval_dataset=held_out,
        compute_metrics=accuracy,
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]
    print(f"held-out accuracy {before:.3f} -> {after:.3f}")
    trainer.save_model(str(arguments.output / "adapter"))
    print(f"adapter in {arguments.output / 'adapter'}")


if __name__ == "__main__":
    main()
