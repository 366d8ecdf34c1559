"""Numbers that anyone can compute with pencil and paper, or read in the papers."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from tailora.placement import select
from tailora.targets import Target, find_targets


def on_meta(auto: str, config: tf.PreTrainedConfig) -> list[Target]:
    with torch.device("meta"):
        return find_targets(getattr(tf, auto).from_config(config))


@pytest.fixture(scope="module")
def gpt2_medium() -> list[Target]:
    return on_meta("AutoModelForCausalLM", tf.GPT2Config(n_embd=1024, n_layer=24, n_head=16))


@pytest.fixture(scope="module")
def llama_3b() -> list[Target]:
    config = tf.LlamaConfig(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
    )
    return on_meta("AutoModelForCausalLM", config)


def cost(targets: list[Target], rank: int) -> int:
    return sum(target.cost(rank) for target in targets)


@pytest.mark.parametrize(
    ("leaves", "parameters"),
    [
        ({"c_attn", "c_proj", "c_fc"}, 6_291_456),
        ({"c_attn", "c_proj"}, 4_325_376),
        ({"c_fc"}, 1_966_080),
    ],
)
def test_gpt2_medium_by_leaf_name(gpt2_medium: list[Target], leaves: set[str], parameters: int) -> None:
    assert cost([t for t in gpt2_medium if t.name.rpartition(".")[2] in leaves], 16) == parameters


@pytest.mark.parametrize(
    ("rule", "parameters"), [("attention", 2_359_296), ("ffn", 3_932_160), ("all-linear", 6_291_456)]
)
def test_gpt2_medium_by_placement(gpt2_medium: list[Target], rule: str, parameters: int) -> None:
    assert cost(select(gpt2_medium, rule), 16) == parameters


def test_llama_3b(llama_3b: list[Target]) -> None:
    assert cost(select(llama_3b, "query-value"), 32) == 9_175_040
    assert cost(select(llama_3b, "all-linear"), 1) == 1_519_616
    assert len(select(llama_3b, "all-linear")) == 28 * 7
    assert cost(select(llama_3b, "role:head"), 1) == 128256 + 3072


def test_minilm_sized_encoder() -> None:
    config = tf.BertConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12, vocab_size=30522
    )
    targets = on_meta("AutoModel", config)
    assert cost(select(targets, "all-linear"), 1) == 41_472
    assert len(select(targets, "all-linear")) == 36


def test_dora_adds_one_magnitude_per_output_and_nothing_at_rank_zero() -> None:
    linear = Target("a", "other", 0, (6, 4))
    table = Target("b", "embedding", None, (100, 8), kind="embedding")
    assert linear.cost(2, dora=True) - linear.cost(2) == 6
    assert table.cost(2, dora=True) - table.cost(2) == 8
    assert linear.cost(0, dora=True) == table.cost(0, dora=True) == 0
