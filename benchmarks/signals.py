"""What the profile of the base weights costs beside a plain pass, and how the cost grows.

Run: python benchmarks/signals.py [SECTION ...] [--rounds 5] [--threads 2] [--models Llama] [--batches 32]

Every round measures every row once, in a new order; a row's ratio is the median over rounds of its time divided by the
floor's of the same round.  The floor of "gradients" is a plain forward and backward pass of the same batches in which
LoRA parameters (r=8 on the same matrices) require a gradient; that of "inputs" is a forward pass without gradients.
Sections: gradients, inputs, growth.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from timing import Work, compare, show

# This folder's profile.py would hide the standard library's, which torch imports.
sys.path.pop(0)
import peft
import torch
import transformers as tf
from torch import nn

import tailora

Batches = list[dict[str, torch.Tensor]]
GRADIENT = ("fisher", "fisher_lora_b", "gradient_norm", "gradient_spectrum", "gradient_cross_spectrum")
ACTIVATION = (
    "activation_second_moment",
    "activation_spectrum",
    "explained_variance",
    "output_gradient_second_moment",
    "output_gradient_spectrum",
)


def bert(layers: int = 6) -> nn.Module:
    torch.manual_seed(0)
    config = tf.BertConfig(hidden_size=384, num_hidden_layers=layers, num_attention_heads=6, intermediate_size=1536)
    return tf.BertForSequenceClassification(config).eval()


def llama(layers: int = 8) -> nn.Module:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=2000,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    return tf.LlamaForCausalLM(config).eval()


def wide(layers: int = 2) -> nn.Module:
    """Return a BERT as wide as BERT-large, where feed-forward gradients are sketched."""
    torch.manual_seed(0)
    config = tf.BertConfig(hidden_size=1024, num_hidden_layers=layers, num_attention_heads=16, intermediate_size=4096)
    return tf.BertForSequenceClassification(config).eval()


def wider(layers: int = 1) -> nn.Module:
    """Return one block as wide as a language model of a billion parameters, where all gradients are sketched."""
    return _block(layers, 2048, 5632, heads=16, key_value_heads=16)


def widest(layers: int = 1) -> nn.Module:
    """Return one block of Llama 8B's shapes."""
    return _block(layers, 4096, 14336, heads=32, key_value_heads=8)


def _block(layers: int, width: int, inner: int, *, heads: int, key_value_heads: int) -> nn.Module:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=2000,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        tie_word_embeddings=True,
    )
    return tf.LlamaForCausalLM(config).eval()


# Model, whether it classifies, examples a batch, tokens an example, batches.
MODELS = {
    "BERT 384/6L": (bert, True, 32, 64, 8),
    "Llama 256/8L": (llama, False, 8, 256, 8),
    "BERT 1024/2L": (wide, True, 16, 64, 16),
    "Llama 2048/1L": (wider, False, 4, 128, 16),
    "Llama 4096/1L": (widest, False, 4, 128, 8),
}


def batches_of(model: nn.Module, count: int, size: int, tokens: int, *, classifies: bool) -> Batches:
    """Return batches of random tokens."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(int(model.config.vocab_size), 2000)  # type: ignore[union-attr, arg-type]
    made = []
    for _ in range(count):
        ids = torch.randint(5, vocabulary, (size, tokens), generator=generator)
        labels = torch.randint(0, 2, (size,), generator=generator) if classifies else ids
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return made


def plain(model: nn.Module, batches: Batches) -> Work:
    """Return a forward and backward pass with LoRA on the linear layers of the blocks."""
    adapted: Any = peft.get_peft_model(
        model, peft.LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
    )

    def work() -> None:
        for batch in batches:
            adapted.zero_grad()
            adapted(**batch).loss.backward()

    return work


def forward(model: nn.Module, batches: Batches) -> Work:
    def work() -> None:
        with torch.no_grad():
            for batch in batches:
                model(**{key: value for key, value in batch.items() if key != "labels"})

    return work


def profiled(model: nn.Module, batches: Batches, signals: tuple[str, ...], **how: Any) -> Work:
    return lambda: tailora.profile(model, batches, signals=signals, **how)


class OnePass:
    """The batches for peft's EVA, which reads one ahead and then goes round and round until its components settle.

    Those of random tokens never do, so this ends it after one pass, which is what the other rows take.
    """

    class Over(Exception):
        """The pass is over."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        yield from self.batches
        raise OnePass.Over


def eva(model: nn.Module, batches: Batches) -> Work:
    """Return one pass of peft's own EVA over the same batches."""
    from peft import EvaConfig, LoraConfig, get_peft_model
    from peft.tuners.lora.eva import get_eva_state_dict

    # The linear layers of the blocks: peft's EVA takes no input of one vector an example, such as a pooler's.
    linear = r".*layers?\.\d+\..*(query|key|value|dense|_proj)"
    config = LoraConfig(
        r=16, target_modules=linear, init_lora_weights="eva", eva_config=EvaConfig(rho=2.0, use_label_mask=False)
    )
    adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
    given = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]

    def work() -> None:
        with contextlib.suppress(OnePass.Over):
            get_eva_state_dict(adapted, OnePass(given), show_progress_bar=False)
        for module in adapted.modules():
            module._forward_hooks.clear()

    return work


def gradients(rounds: int) -> None:
    """Signals of gradients and activations against a plain pass."""
    for title, (make, classifies, size, tokens, count) in MODELS.items():
        batches = batches_of(make(), count, size, tokens, classifies=classifies)
        print(f"{title}, {count} batches of {size} examples of {tokens} tokens, all linear layers of the blocks")
        model = make()
        rows = {
            "plain forward and backward": plain(make(), batches),
            "plain again": plain(make(), batches),
            "fisher": profiled(model, batches, ("fisher",)),
            "fisher, gradient_spectrum (every run's)": profiled(model, batches, ("fisher", "gradient_spectrum")),
            "all gradient signals": profiled(model, batches, GRADIENT),
            "all gradient and activation signals": profiled(model, batches, GRADIENT + ACTIVATION),
        }
        show(compare(rows, rounds), "plain forward and backward")


def inputs(rounds: int) -> None:
    """The activation spectrum against a forward pass, and peft's EVA."""
    for title, (make, classifies, size, tokens, _) in MODELS.items():
        model = make()
        batches = batches_of(model, 4, size, tokens, classifies=classifies)
        print(f"{title}, 4 batches of {size} examples of {tokens} tokens")
        given = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
        rows = {
            "forward": forward(model, batches),
            "forward again": forward(model, batches),
            "activation_second_moment": profiled(model, given, ("activation_second_moment",)),
            "explained_variance": profiled(model, given, ("explained_variance",)),
            "peft's EVA (its components too)": eva(make(), batches),
        }
        show(compare(rows, rounds), "forward")


def growth(rounds: int) -> None:
    """How the cost grows with examples and layers."""
    print("BERT 384, batches of 16 examples of 64 tokens, signal fisher")
    few = bert(2)
    rows = {
        f"2 layers, {count} batches": profiled(few, batches_of(few, count, 16, 64, classifies=True), GRADIENT[:1])
        for count in (1, 2, 4, 8)
    }
    for layers in (4, 8):
        deep = bert(layers)
        rows[f"{layers} layers, 2 batches"] = profiled(deep, batches_of(deep, 2, 16, 64, classifies=True), GRADIENT[:1])
    show(compare(rows, rounds), "2 layers, 2 batches")


SECTIONS = {"gradients": gradients, "inputs": inputs, "growth": growth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=", ".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", default="", help="beginnings of their names, joined by commas; all by default")
    parser.add_argument("--batches", type=int, help="of the section gradients, instead of each model's own number")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    for name in list(MODELS):
        if not name.startswith(tuple(given.models.split(","))):
            del MODELS[name]
        elif given.batches:
            MODELS[name] = (*MODELS[name][:-1], given.batches)
    print(f"torch {torch.__version__}, {given.threads} threads, {given.rounds} rounds")
    for name in given.sections or SECTIONS:
        SECTIONS[name](given.rounds)


if __name__ == "__main__":
    main()
