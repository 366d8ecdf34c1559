"""The base models of planted problems: random ones whose weights come from a private generator, or a saved one."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tailora.errors import UserError, unknown_name
from tailora.lab.spec import ARCHITECTURES, Shape

_EMBEDDING = 0.1
# At this size the attention written out is faster than the fused one.
_EAGER: dict[str, Any] = {"attn_implementation": "eager"}
_T5: dict[str, Any] = {"tie_word_embeddings": False, "decoder_start_token_id": 0}


def build_base(architecture: str, shape: Shape, generator: torch.Generator) -> nn.Module:
    """Make the base model.

    Args:
        architecture: One of ``ARCHITECTURES``, or the folder of a saved causal language model.
        shape: Size of a random model.
        generator: Where random weights come from; the global random state is left alone.

    Returns:
        A frozen model in evaluation mode, float32.

    Raises:
        UserError: There is no such architecture or folder.
    """
    if architecture in ARCHITECTURES:
        with torch.random.fork_rng(devices=[]):
            model = _BUILDERS[architecture](shape)
        _draw(model, shape, generator)
    else:
        model = _saved(architecture)
    return model.eval().requires_grad_(False)


def _saved(folder: str) -> nn.Module:
    """Load a saved causal language model."""
    if not (Path(folder) / "config.json").is_file():
        if "/" in folder or "\\" in folder:
            raise UserError(f"architecture {folder!r} holds no config.json; give the folder of a saved model")
        raise unknown_name("architecture (or model folder)", folder, ARCHITECTURES)
    from transformers import AutoModelForCausalLM

    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def _draw(model: nn.Module, shape: Shape, generator: torch.Generator) -> None:
    """Give every matrix new weights of a size that keeps all blocks alive; norms and biases stay as built."""
    from tailora.targets import find_targets

    targets = {target.name: target for target in find_targets(model)}
    inner = getattr(getattr(model, "config", None), "d_kv", None)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        target = targets.get(name.removesuffix(".weight"))
        if target is None or target.role == "embedding":
            scale = _EMBEDDING
        else:
            gain = shape.head_gain if target.role == "head" else shape.gain
            scale = gain / target.shape[1] ** 0.5
            # T5 does not divide attention scores by the root of the head's width; its query does.
            scale /= inner**0.5 if inner and target.role == "attention.query" else 1.0
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def _llama(shape: Shape) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        use_cache=False,
        **_EAGER,
    )
    return LlamaForCausalLM(config)


def _gpt2(shape: Shape) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_embd=shape.hidden,
        n_inner=shape.inner,
        n_layer=shape.layers,
        n_head=shape.heads,
        tie_word_embeddings=False,
        use_cache=False,
        **_EAGER,
        **_no_dropout("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    )
    return GPT2LMHeadModel(config)


def _bert(shape: Shape) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        tie_word_embeddings=False,
        **_EAGER,
        **_no_dropout("hidden_dropout_prob", "attention_probs_dropout_prob"),
    )
    return BertForMaskedLM(config)


def _t5(shape: Shape) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=shape.vocabulary,
        d_model=shape.hidden,
        d_ff=shape.inner,
        d_kv=shape.hidden // shape.heads,
        num_layers=shape.layers,
        num_heads=shape.heads,
        dropout_rate=0.0,
        pad_token_id=0,
        use_cache=False,
        **_T5,
    )
    return T5ForConditionalGeneration(config)


def _no_dropout(*names: str) -> dict[str, Any]:
    """Switch dropouts off: the students' comparison needs no other noise than the problem's own."""
    return dict.fromkeys(names, 0.0)


_BUILDERS = {"llama": _llama, "gpt2": _gpt2, "bert": _bert, "t5": _t5}
