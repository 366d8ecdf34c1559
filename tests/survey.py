"""Thirty-one tiny architectures with batches of unequal lengths: what surveys of exactness run over."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from reference import gradients_slow as slow

tf: Any = transformers  # configurations take more keywords than their signatures say
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 61,
    "pad_token_id": 0,
}
LABELS: dict[str, Any] = {"num_labels": 3}
ROPE: dict[str, Any] = {**SIZES, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
MOE: dict[str, Any] = {**ROPE, "num_experts_per_tok": 2}
PICTURE: dict[str, Any] = {"image_size": 16, "patch_size": 8, **LABELS}
WIDE = {k: v for k, v in SIZES.items() if k not in ("vocab_size", "pad_token_id")}
TINY_BART = {
    "vocab_size": 61,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
TINY_T5 = {
    "vocab_size": 61,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
GPT = {"vocab_size": 61, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}

# name: what is built, its configuration, what kind of labels
ENCODERS = {
    "bert": ("BertForSequenceClassification", tf.BertConfig, {**SIZES, **LABELS}),
    "roberta": ("RobertaForSequenceClassification", tf.RobertaConfig, {**SIZES, **LABELS}),
    "distilbert": (
        "DistilBertForSequenceClassification",
        tf.DistilBertConfig,
        {"vocab_size": 61, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, **LABELS},
    ),
    "electra": ("ElectraForSequenceClassification", tf.ElectraConfig, {**SIZES, "embedding_size": 8, **LABELS}),
    "albert": ("AlbertForSequenceClassification", tf.AlbertConfig, {**SIZES, "embedding_size": 8, **LABELS}),
    "deberta": (
        "DebertaForSequenceClassification",
        tf.DebertaConfig,
        {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], **LABELS},
    ),
    "deberta-v2": (
        "DebertaV2ForSequenceClassification",
        tf.DebertaV2Config,
        {**SIZES, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"], **LABELS},
    ),
    "mpnet": ("MPNetForSequenceClassification", tf.MPNetConfig, {**SIZES, **LABELS}),
    "modernbert": (
        "ModernBertForSequenceClassification",
        tf.ModernBertConfig,
        {**SIZES, "global_attn_every_n_layers": 1, "reference_compile": False, **LABELS},
    ),
    "xlnet": (
        "XLNetForSequenceClassification",
        tf.XLNetConfig,
        {"vocab_size": 61, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "pad_token_id": 0, **LABELS},
    ),
    "convbert": ("ConvBertForSequenceClassification", tf.ConvBertConfig, {**SIZES, "embedding_size": 16, **LABELS}),
}
DECODERS = {
    "gpt2": ("GPT2LMHeadModel", tf.GPT2Config, GPT),
    "gpt-neo": (
        "GPTNeoForCausalLM",
        tf.GPTNeoConfig,
        {
            "vocab_size": 61,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 24,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
        },
    ),
    "gptj": ("GPTJForCausalLM", tf.GPTJConfig, {**GPT, "rotary_dim": 4}),
    "gpt-neox": ("GPTNeoXForCausalLM", tf.GPTNeoXConfig, {**SIZES, "max_position_embeddings": 64}),
    "opt": (
        "OPTForCausalLM",
        tf.OPTConfig,
        {
            **{k: v for k, v in SIZES.items() if k != "intermediate_size"},
            "ffn_dim": 24,
            "word_embed_proj_dim": 16,
            "max_position_embeddings": 64,
        },
    ),
    "bloom": ("BloomForCausalLM", tf.BloomConfig, {"vocab_size": 61, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "falcon": ("FalconForCausalLM", tf.FalconConfig, {**SIZES, "num_ln_in_parallel_attn": 1}),
    "llama": ("LlamaForCausalLM", tf.LlamaConfig, ROPE),
    "qwen3": ("Qwen3ForCausalLM", tf.Qwen3Config, ROPE),
    "gemma2": ("Gemma2ForCausalLM", tf.Gemma2Config, ROPE),
    "phi3": ("Phi3ForCausalLM", tf.Phi3Config, ROPE),
    "mixtral": ("MixtralForCausalLM", tf.MixtralConfig, {**MOE, "num_local_experts": 3}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", tf.Qwen3MoeConfig, {**MOE, "num_experts": 3, "moe_intermediate_size": 12}),
    "mamba": ("MambaForCausalLM", tf.MambaConfig, {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2}),
}
BOTH = {
    "t5": ("T5ForConditionalGeneration", tf.T5Config, TINY_T5),
    "bart": ("BartForConditionalGeneration", tf.BartConfig, TINY_BART),
}
VISION = {
    "vit": ("ViTForImageClassification", tf.ViTConfig, {**WIDE, **PICTURE}),
    "deit": ("DeiTForImageClassification", tf.DeiTConfig, {**WIDE, **PICTURE}),
    "swin": (
        "SwinForImageClassification",
        tf.SwinConfig,
        {
            "image_size": 16,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [2, 2],
            "num_heads": [2, 2],
            "window_size": 4,
            **LABELS,
        },
    ),
    "dinov2": ("Dinov2ForImageClassification", tf.Dinov2Config, {**WIDE, **PICTURE}),
}
FAMILIES = {"encoder": ENCODERS, "decoder": DECODERS, "both": BOTH, "vision": VISION}
CASES = {name: (family, *entry) for family, entries in FAMILIES.items() for name, entry in entries.items()}
LOSS = {
    "encoder": slow.classification,
    "vision": slow.classification,
    "decoder": slow.causal_lm,
    "both": slow.unshifted,
}


def build(name):
    """Return one of the tiny architectures in float64."""
    _, class_name, config_class, options = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = config_class(**options)
        config._attn_implementation = "eager"
        # The grouped matrix product that transformers prefers has no float64 form.
        config._experts_implementation = "eager"
        return getattr(tf, class_name)(config).double().eval()


def batches_of(family):
    """Return two batches, the texts of unequal lengths."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for size in (4, 3):
        labels = torch.randint(0, 3, (size,), generator=generator)
        if family == "vision":
            pictures = torch.randn(size, 3, 16, 16, generator=generator, dtype=torch.float64)
            made.append({"pixel_values": pictures, "labels": labels})
            continue
        ids = torch.randint(3, 61, (size, 8), generator=generator)
        mask = (torch.arange(8)[None] < torch.tensor([8, 5, 7, 6])[:size, None]).long()
        batch = {"input_ids": ids * mask, "attention_mask": mask}
        if family == "decoder":
            labels = torch.where(mask.bool(), ids, -100)
        elif family == "both":
            labels = torch.randint(3, 61, (size, 5), generator=generator)
            labels[0, 3:] = -100
        made.append({**batch, "labels": labels})
    return made
