"""Tailora in a training loop of your own: profile, plan, wrap, train, save, reload.

    python examples/library/own_loop.py                  # a tiny random Llama, seconds
    python examples/library/own_loop.py --model FOLDER   # a causal language model of yours

The data are made up (each token follows from the one before), so that nothing has to be downloaded.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import tailora


def load_model(folder: Path | None) -> PreTrainedModel:
    """Load a model, or build a tiny one."""
    if folder is not None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config)


def make_batches(vocabulary: int, number: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Make batches of sequences that count upwards in steps of 1 or 2, labels included."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(number):
        start = torch.randint(0, vocabulary, (8, 1), generator=generator)
        step = torch.randint(1, 3, (8, 1), generator=generator)
        ids = (start + step * torch.arange(16)) % vocabulary
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
    return batches


def mean_loss(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    """Return the mean loss, without drop-out and gradients."""
    model.eval()
    with torch.no_grad():
        return sum(float(model(**batch).loss) for batch in batches) / len(batches)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder; default: a tiny one built here")
    parser.add_argument("--output", type=Path, default=Path("own-loop"), help="where the adapter goes")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()

    base = load_model(arguments.model)
    untouched = copy.deepcopy(base)
    vocabulary = min(64, base.config.vocab_size)
    training = make_batches(vocabulary, arguments.steps, seed=1)
    held_out = make_batches(vocabulary, 4, seed=2)

    # The three lines that are Tailora.
    profile = tailora.profile(base, training[:4])
    plan = tailora.plan(profile, recipe="spectral", budget="r=4")
    model = plan.apply(base, task_type="CAUSAL_LM", seed=0)
    print(f"{plan.total_params:,} of {plan.budget_params:,} parameters, ranks {sorted(set(plan.ranks.values()))}")

    before = mean_loss(model, held_out)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    model.train()
    for batch in training:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    after = mean_loss(model, held_out)
    print(f"held-out loss {before:.3f} -> {after:.3f}")

    # An ordinary peft adapter: it reloads on the untouched base, without Tailora.
    model.save_pretrained(arguments.output)
    plan.save(arguments.output / "plan.json")
    reloaded = PeftModel.from_pretrained(untouched, arguments.output)
    print(f"reloaded: {mean_loss(reloaded, held_out):.3f}, adapter in {arguments.output}")


if __name__ == "__main__":
    main()
