"""Finding targets: structure, kinds, order, refusals, and the costs that peft confirms."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from tailora import placement
from tailora.errors import UserError
from tailora.targets import Target, find_targets

tf: Any = transformers  # configurations take more keywords than their signatures say
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 61,
}
LLAMA = tf.LlamaConfig(**SIZES, num_key_value_heads=2)
GPT2 = tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=16)
T5 = tf.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=61, decoder_start_token_id=0)
MIXTRAL = tf.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4)
GPT_OSS = tf.GptOssConfig(**SIZES, num_key_value_heads=2, num_local_experts=4, head_dim=8)
MODELS: dict[str, tuple[Any, Any]] = {
    "llama": (tf.AutoModelForCausalLM, LLAMA),
    "gpt2": (tf.AutoModelForCausalLM, GPT2),
    "bert": (tf.AutoModelForSequenceClassification, tf.BertConfig(**SIZES)),
    "t5": (tf.AutoModelForSeq2SeqLM, T5),
    "mixtral": (tf.AutoModelForCausalLM, MIXTRAL),
    "gpt-oss": (tf.AutoModelForCausalLM, GPT_OSS),
    "opt": (
        tf.AutoModelForCausalLM,
        tf.OPTConfig(
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=61,
            word_embed_proj_dim=16,
            max_position_embeddings=16,
        ),
    ),
}


def real(name: str) -> Any:
    auto, config = MODELS[name]
    return auto.from_config(config)


def trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def adapt(model: Any, targets: list[Target], rank: int, *, dora: bool = False):
    modules = [t.name for t in targets if t.kind != "parameter"]
    parameters = [t.name for t in targets if t.kind == "parameter"]
    return get_peft_model(
        model,
        LoraConfig(r=rank, target_modules=modules, target_parameters=parameters or None, use_dora=dora),
    )


@pytest.mark.parametrize("name", MODELS)
def test_cost_is_what_peft_trains_on_every_target(name: str) -> None:
    model = real(name)
    targets = find_targets(model)
    assert trainable(adapt(model, targets, 3)) == sum(t.cost(3) for t in targets)


@pytest.mark.parametrize("name", MODELS)
def test_cost_of_each_target_and_its_shape_are_peft_s(name: str) -> None:
    model = real(name)
    targets = find_targets(model)
    if name in ("mixtral", "gpt-oss"):
        targets = [t for t in targets if "layers.0." in t.name]
    adapted = adapt(model, targets, 2)
    layers = {
        key.removeprefix("base_model.model."): m for key, m in adapted.named_modules() if isinstance(m, LoraLayer)
    }
    by_parameter: dict[str, Any] = {}
    layer: Any
    for key, layer in layers.items():
        if hasattr(layer, "parameter_name"):
            by_parameter[f"{key.replace('.base_layer', '')}.{layer.parameter_name}"] = layer
    for target in targets:
        layer = by_parameter[target.name] if target.kind == "parameter" else layers[target.name]
        own = [
            p
            for part in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
            for p in getattr(layer, part).parameters()
        ]
        assert sum(p.numel() for p in own) == target.cost(2), target
        if target.kind != "embedding":
            assert (layer.out_features, layer.in_features) == target.shape, target


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "opt"])
def test_dora_cost_is_what_peft_trains(name: str) -> None:
    model = real(name)
    targets = find_targets(model)
    assert {"linear", "embedding"} <= {t.kind for t in targets} or name == "gpt2"
    assert trainable(adapt(model, targets, 3, dora=True)) == sum(t.cost(3, dora=True) for t in targets)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "opt"])
def test_all_linear_is_within_peft_s_all_linear(name: str) -> None:
    ours = {t.name for t in placement.select(find_targets(real(name)), "all-linear")}
    adapted = get_peft_model(real(name), LoraConfig(r=2, target_modules="all-linear"))
    theirs = {key.removeprefix("base_model.model.") for key, m in adapted.named_modules() if isinstance(m, LoraLayer)}
    assert ours
    assert ours <= theirs
    # What only peft takes lies outside the blocks.
    assert all(".0." not in key and ".1." not in key for key in theirs - ours)


def test_every_target_of_a_forward_pass_is_called() -> None:
    """An adapter on a module that is never called would train nothing: T5's `shared` is such a module."""
    model = real("t5")
    called: set[str] = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    ids = torch.tensor([[3, 4, 5]])
    model(input_ids=ids, labels=ids)
    names = {t.name for t in find_targets(model)}
    assert "shared" not in names
    assert names <= called


def test_order_is_that_of_named_modules() -> None:
    model = real("mixtral")
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    places = [order[t.name if t.kind != "parameter" else t.name.rpartition(".")[0]] for t in find_targets(model)]
    assert places == sorted(places)


def test_meta_and_real_models_agree_and_nothing_is_changed() -> None:
    model = real("mixtral")
    before = {name: (p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    model.train()
    targets = find_targets(model)
    assert model.training
    after = dict(model.named_parameters())
    assert all(torch.equal(p, after[name]) and grad == after[name].requires_grad for name, (grad, p) in before.items())
    with torch.device("meta"):
        assert find_targets(MODELS["mixtral"][0].from_config(MIXTRAL)) == targets
    assert [Target.from_dict(t.to_dict()) for t in targets] == targets


def test_albert_shares_its_layers() -> None:
    with torch.device("meta"):
        model = tf.AutoModel.from_config(tf.AlbertConfig(**{**SIZES, "num_hidden_layers": 12}, embedding_size=16))
    inside = [t for t in find_targets(model) if t.depth is not None]
    assert len(inside) == 6
    assert {t.depth for t in inside} == {0}


def test_expert_tensors_are_transposed_only_where_the_module_says_so() -> None:
    plain = {t.name: t for t in find_targets(real("mixtral"))}["model.layers.1.mlp.experts.down_proj"]
    turned = {t.name: t for t in find_targets(real("gpt-oss"))}["model.layers.1.mlp.experts.down_proj"]
    assert plain.shape == turned.shape == (32, 48)
    assert plain.experts == turned.experts == 4
    assert plain.cost(5) == 5 * (32 + 48) * 4


def test_gpt2_shapes_are_out_in() -> None:
    target = {t.name: t for t in find_targets(real("gpt2"))}["transformer.h.1.mlp.c_fc"]
    assert (target.kind, target.shape) == ("conv1d", (128, 32))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Linear(4, 6)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.ones(3, 4, 4))


class Unknown(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 4)
        self.stages = nn.ModuleList(Block() for _ in range(depth))
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(2))


def test_unknown_architecture_has_depth_by_structure_and_no_guessed_role() -> None:
    targets = {t.name: t for t in find_targets(Unknown())}
    assert targets["stem"].depth is None
    assert targets["heads.1"].depth is None  # a list of bare linears is not a list of blocks
    assert targets["stages.2.alpha"].depth == 2
    assert targets["stages.2.experts.1.0"].depth == 2  # the block's index, not the expert's
    assert {t.role for t in targets.values()} == {"other"}
    assert not any("scale" in name or "norm" in name for name in targets)
    assert len(targets) == 1 + 3 * 4 + 2


def test_a_single_block_still_has_a_depth() -> None:
    assert {t.name: t.depth for t in find_targets(Unknown(1))}["stages.0.alpha"] == 0


def test_one_module_under_two_names_appears_once() -> None:
    model = nn.Module()
    model.first = nn.Linear(3, 3)
    model.second = model.first
    assert [t.name for t in find_targets(model)] == ["first"]


class QuantisedLinear(nn.Module):
    """Like a packed 4-bit layer: the weight's own shape says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 8, 6
        self.weight = nn.Parameter(torch.zeros(24, 1, dtype=torch.uint8), requires_grad=False)


def test_quantised_linear_reports_its_logical_shape() -> None:
    model = nn.Module()
    model.layer = QuantisedLinear()
    (target,) = find_targets(model)
    assert (target.kind, target.shape) == ("linear", (6, 8))


def test_multihead_attention_s_output_is_not_a_target() -> None:
    """torch reads its weight without calling it, so an adapter there would never act."""
    model = nn.Module()
    model.layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert [t.name for t in find_targets(model)] == ["layer.linear1", "layer.linear2"]


def test_convolutions_norms_and_learnt_tokens_are_not_targets() -> None:
    with torch.device("meta"):
        config = tf.ViTConfig(**{k: v for k, v in SIZES.items() if k != "vocab_size"}, image_size=32, patch_size=16)
        model = tf.AutoModel.from_config(config, add_pooling_layer=False)
    assert {t.depth for t in find_targets(model)} == {0, 1}


def small(auto: str, config) -> list[Target]:
    with torch.device("meta"):
        return find_targets(getattr(tf, auto).from_config(config))


def test_parallel_lists_are_halves_of_the_same_blocks() -> None:
    targets = small("AutoModel", tf.XLMConfig(vocab_size=61, emb_dim=32, n_layers=3, n_heads=4))
    assert {t.depth for t in targets if "attentions." in t.name} == {0, 1, 2}
    assert {t.depth for t in targets if "ffns." in t.name} == {0, 1, 2}
    assert {t.stack for t in targets} == {""}


def test_encoder_decoder_of_two_berts() -> None:
    both = tf.EncoderDecoderConfig.from_encoder_decoder_configs(tf.BertConfig(**SIZES), tf.BertConfig(**SIZES))
    targets = small("AutoModelForSeq2SeqLM", both)
    blocks = {(t.stack, t.depth) for t in targets if t.depth is not None}
    assert blocks == {("encoder", 0), ("encoder", 1), ("decoder", 0), ("decoder", 1)}
    assert {t.stack for t in targets if t.cross_attention} == {"decoder"}
    assert {t.name for t in targets if t.role == "head"} == {
        "decoder.cls.predictions.transform.dense",
        "decoder.cls.predictions.decoder",
    }


def test_a_linear_router_is_reached_as_a_parameter() -> None:
    """Llama 4's router is a Linear that returns a tuple, which peft's linear wrapper cannot add to."""
    config = tf.Llama4TextConfig(
        **SIZES, intermediate_size_mlp=48, num_key_value_heads=2, num_local_experts=4, head_dim=8
    )
    kinds = {t.name: (t.kind, t.role) for t in small("AutoModelForCausalLM", config)}
    assert kinds["model.layers.0.feed_forward.router.weight"] == ("parameter", "other")
    assert "model.layers.0.feed_forward.router" not in kinds


@pytest.mark.parametrize("unwrapped", [False, True])
def test_adapted_models_are_refused(unwrapped: bool) -> None:
    adapted = get_peft_model(real("llama"), LoraConfig(target_modules=["q_proj"]))
    model: Any = adapted.base_model.model if unwrapped else adapted
    with pytest.raises(UserError, match=r"already carries adapter layers .*q_proj'\); give the base model"):
        find_targets(model)


def test_nothing_to_adapt_is_refused() -> None:
    with pytest.raises(UserError, match=r"^Sequential has no matrix that LoRA can adapt"):
        find_targets(nn.Sequential(nn.LayerNorm(3)))


@pytest.mark.parametrize("top", [nn.Linear(2, 2), Conv1D(2, 2)])
def test_the_top_level_itself_cannot_be_adapted(top: nn.Module) -> None:
    with pytest.raises(UserError, match="give a model that has one below its top level"):
        find_targets(top)


def test_a_name_is_not_a_model() -> None:
    with pytest.raises(UserError, match="not in str; load the model first"):
        find_targets("gpt2")  # type: ignore[arg-type]


@pytest.mark.parametrize("module", ["tailora.targets", "tailora.placement"])
def test_importing_is_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
