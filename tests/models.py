"""Tiny models of real architectures with random weights, and batches for them."""

from __future__ import annotations

import torch
import transformers as tf

COMMON = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def _llama(**kw):
    config = tf.LlamaConfig(
        **COMMON, intermediate_size=24, num_key_value_heads=1, head_dim=8, max_position_embeddings=64, **kw
    )
    return tf.LlamaForCausalLM(config)


def _gpt2():
    return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=61, n_embd=16, n_layer=2, n_head=2, n_positions=64))


def _bert():
    return tf.BertForSequenceClassification(
        tf.BertConfig(**COMMON, intermediate_size=24, max_position_embeddings=64, num_labels=3)
    )


def _t5():
    config = tf.T5Config(
        vocab_size=61, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    return tf.T5ForConditionalGeneration(config)


def _mixtral():
    config = tf.MixtralConfig(
        **COMMON,
        intermediate_size=24,
        num_key_value_heads=1,
        num_local_experts=3,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    # The grouped matrix product that transformers prefers has no float64 form.
    config._experts_implementation = "eager"
    return tf.MixtralForCausalLM(config)


def _opt():
    config = tf.OPTConfig(
        vocab_size=61,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
    )
    return tf.OPTForCausalLM(config)


def _albert():
    config = tf.AlbertConfig(**COMMON, embedding_size=8, intermediate_size=24, max_position_embeddings=64, num_labels=3)
    return tf.AlbertForSequenceClassification(config)


def _deberta():
    config = tf.DebertaV2Config(
        **COMMON,
        intermediate_size=24,
        max_position_embeddings=64,
        relative_attention=True,
        position_buckets=8,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        num_labels=3,
    )
    return tf.DebertaV2ForSequenceClassification(config)


def _vit():
    config = tf.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=12,
        patch_size=4,
        num_labels=3,
    )
    return tf.ViTForImageClassification(config)


BUILDERS = {
    "llama": (_llama, "causal-lm"),
    "gpt2": (_gpt2, "causal-lm"),
    "bert": (_bert, "classification"),
    "t5": (_t5, "token"),
    "mixtral": (_mixtral, "causal-lm"),
    "opt": (_opt, "causal-lm"),
    "albert": (_albert, "classification"),
    "deberta": (_deberta, "classification"),
    "vit": (_vit, "classification"),
}
FIVE = ("llama", "gpt2", "bert", "t5", "mixtral")
TASK_TYPES = {"causal-lm": "CAUSAL_LM", "classification": "SEQ_CLS", "token": "SEQ_2_SEQ_LM"}


def build(name, seed=0, dtype=torch.float32, scale=4.0):
    """Return a tiny model in evaluation mode; weights are scaled up so that gradients are not tiny."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BUILDERS[name][0]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(scale)
    return model.to(dtype).eval()


def batches(name, sizes=(4, 3), length=9, seed=1):
    """Return batches with ragged right padding and labels, no two rows alike."""
    kind = BUILDERS[name][1]
    generator = torch.Generator().manual_seed(seed)
    made = []
    for size in sizes:
        ids = torch.randint(3, 61, (size, length), generator=generator)
        mask = torch.ones_like(ids)
        for row in range(size):
            mask[row, length - (row % 3) * 2 :] = 0 if row % 3 else 1
        ids = ids * mask
        batch = {"input_ids": ids, "attention_mask": mask}
        if name == "vit":
            batch = {"pixel_values": torch.randn(size, 3, 12, 12, generator=generator)}
        if kind == "classification":
            batch["labels"] = torch.randint(0, 3, (size,), generator=generator)
        elif kind == "token":
            labels = torch.randint(3, 61, (size, 5), generator=generator)
            labels[0, 3:] = -100
            batch["labels"] = labels
        else:
            batch["labels"] = torch.where(mask.bool(), ids, -100)
        made.append(batch)
    return made
