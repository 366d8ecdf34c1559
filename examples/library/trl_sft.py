"""Tailora with trl's SFTTrainer: the plan goes in as ``peft_config`` and nothing else changes.

    python examples/library/trl_sft.py                  # a tiny random Llama with a word tokenizer, seconds
    python examples/library/trl_sft.py --model FOLDER   # a causal language model of yours with its tokenizer

The text is made up, so that nothing has to be downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

import tailora

WORDS = ("the", "cat", "dog", "sees", "hears", "one", "two", "three", "small", "large", "birds", "fish")


def load(folder: Path | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, or build tiny ones."""
    if folder is not None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return model, tokenizer
    vocabulary = {word: number for number, word in enumerate(("<pad>", "<eos>", "<unk>", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=64
    )
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config), tokenizer


def make_text(number: int) -> list[str]:
    """Make sentences of one pattern."""
    places = (("cat", "dog"), ("sees", "hears"), ("one", "two", "three"), ("small", "large"), ("birds", "fish"))
    return [
        " ".join(["the", *(choices[(n // 3**k) % len(choices)] for k, choices in enumerate(places))])
        for n in range(number)
    ]


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder with tokenizer; default: tiny ones built here")
    parser.add_argument("--output", type=Path, default=Path("trl-sft"), help="where checkpoints and adapter go")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()

    model, tokenizer = load(arguments.model)
    text = make_text(400)

    # A few batches as the model will see them; padding does not count.
    batches = []
    for start in range(0, 32, 8):
        batch = dict(tokenizer(text[start : start + 8], padding=True, return_tensors="pt"))
        batch.pop("token_type_ids", None)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        batches.append(batch)
    profile = tailora.profile(model, batches)
    plan = tailora.plan(profile, recipe="spectral", budget="r=4")
    print(f"{plan.total_params:,} of {plan.budget_params:,} parameters, ranks {sorted(set(plan.ranks.values()))}")

    # peft draws the adapter's first weights inside SFTTrainer, before the trainer sets its own seed.
    set_seed(0)
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(
            output_dir=str(arguments.output),
            max_steps=arguments.steps,
            per_device_train_batch_size=16,
            learning_rate=1e-2,
            max_length=64,
            bf16=False,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
        ),
        train_dataset=Dataset.from_dict({"text": text}),
        peft_config=plan.lora_config(task_type="CAUSAL_LM"),
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == plan.total_params, "peft trains exactly what was planned"
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    print(f"training loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    trainer.save_model(str(arguments.output / "adapter"))
    print(f"adapter in {arguments.output / 'adapter'}")


if __name__ == "__main__":
    main()
