"""Role, depth, stack, shape and kind of every matrix of one block, for every architecture we promise."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers

from tailora.targets import ROLES, Target, find_targets
from tailora.targets.roles import block_role, outer_role, part_of, stack_label

tf: Any = transformers  # configurations take more keywords than their signatures say
WIDTH, INNER, LAYERS, VOCAB = 32, 64, 2, 100
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}
BERT: dict[str, Any] = {**SIZES, "vocab_size": VOCAB}
LLAMA: dict[str, Any] = {**BERT, "num_key_value_heads": 2}
VISION: dict[str, Any] = {**SIZES, "image_size": 32, "patch_size": 16}
BART: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "vocab_size": VOCAB,
}
T5: dict[str, Any] = {
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": INNER,
    "num_layers": LAYERS,
    "num_heads": 4,
    "vocab_size": VOCAB,
}
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

Q, K, V, QKV, OUT = (f"attention.{name}" for name in ("query", "key", "value", "qkv", "output"))
GATE, UP, DOWN = "ffn.gate", "ffn.up", "ffn.down"


def attention(*names: str, prefix: str = "self_attn.", kv: int = WIDTH) -> dict[str, tuple]:
    """Expect four separate square-ish matrices, given in the order query, key, value, output."""
    q, k, v, o = (prefix + name for name in names)
    return {q: (Q, WIDTH, WIDTH), k: (K, kv, WIDTH), v: (V, kv, WIDTH), o: (OUT, WIDTH, WIDTH)}


def mlp(up: str, down: str, gate: str = "", inner: int = INNER) -> dict[str, tuple]:
    table = {up: (UP, inner, WIDTH), down: (DOWN, WIDTH, inner)}
    return {**table, gate: (GATE, inner, WIDTH)} if gate else table


STANDARD = ("q_proj", "k_proj", "v_proj", "o_proj")
OUT_PROJ = ("q_proj", "k_proj", "v_proj", "out_proj")
LLAMA_MLP = mlp("mlp.up_proj", "mlp.down_proj", "mlp.gate_proj")
LLAMA_ATTENTION = attention(*STANDARD, kv=16)
LLAMA_BLOCK = {**LLAMA_ATTENTION, **LLAMA_MLP}
TOKENS = {"model.embed_tokens": ("embedding", VOCAB, WIDTH)}
LM_HEAD = {"lm_head": ("head", VOCAB, WIDTH)}
BERT_BLOCK = {
    **attention("self.query", "self.key", "self.value", "output.dense", prefix="attention."),
    **mlp("intermediate.dense", "output.dense"),
}


def embeddings(prefix: str, *, words: str = "word_embeddings", width: int = WIDTH, types: int = 2) -> dict[str, tuple]:
    table = {
        f"{prefix}.{words}": ("embedding", VOCAB, width),
        f"{prefix}.position_embeddings": ("embedding", 512, width),
    }
    return {**table, f"{prefix}.token_type_embeddings": ("embedding", types, width)} if types else table


def square(role: str, *names: str) -> dict[str, tuple]:
    return dict.fromkeys(names, (role, WIDTH, WIDTH))


def experts(prefix: str, *, inner: int = INNER, count: int = 4) -> dict[str, tuple]:
    return {
        f"{prefix}.gate_up_proj": (UP, 2 * inner, WIDTH, "parameter", count),
        f"{prefix}.down_proj": (DOWN, WIDTH, inner, "parameter", count),
    }


def router(name: str) -> dict[str, tuple]:
    return {name: ("other", 4, WIDTH, "parameter", 1)}


@dataclass(frozen=True)
class Case:
    """What one architecture must look like.

    ``blocks`` maps (stack, block list) to the table of a block; a table entry is (role, out, in[, kind[, experts]]).
    ``only_first`` and ``only_last`` belong to one block of the list; ``outer`` lies outside the blocks.
    """

    auto: str
    config: Any
    blocks: dict[tuple[str, str], dict[str, tuple]]
    outer: dict[str, tuple] = field(default_factory=dict)
    only_first: dict[str, tuple] = field(default_factory=dict)
    only_last: dict[str, tuple] = field(default_factory=dict)
    outer_stacks: dict[str, str] = field(default_factory=dict)
    layers: int = LAYERS


def causal(config: Any, block: dict, blocks: str = "model.layers", outer: Any = None, **more: Any) -> Case:
    return Case("CausalLM", config, {("", blocks): block}, {**TOKENS, **LM_HEAD} if outer is None else outer, **more)


def conv1d(table: dict[str, tuple]) -> dict[str, tuple]:
    return {name: (*row, "conv1d") for name, row in table.items()}


GPT2: dict[str, Any] = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCAB, "n_positions": 64}
WTE = {"transformer.wte": ("embedding", VOCAB, WIDTH)}
WPE = {"transformer.wpe": ("embedding", 64, WIDTH)}
WORDS = {"transformer.word_embeddings": ("embedding", VOCAB, WIDTH)}
GPT2_BLOCK = conv1d(
    {
        "attn.c_attn": (QKV, 96, WIDTH),
        "attn.c_proj": (OUT, WIDTH, WIDTH),
        **mlp("mlp.c_fc", "mlp.c_proj", inner=128),
    }
)
GPT2_CROSS = conv1d(
    {
        "crossattention.c_attn": (QKV, 64, WIDTH),
        "crossattention.q_attn": (Q, WIDTH, WIDTH),
        "crossattention.c_proj": (OUT, WIDTH, WIDTH),
    }
)


def fused(prefix: str, rows: int = 96, inner: int = 128) -> dict[str, tuple]:
    return {
        f"{prefix}.query_key_value": (QKV, rows, WIDTH),
        f"{prefix}.dense": (OUT, WIDTH, WIDTH),
        **mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", inner=inner),
    }


def t5_attention(prefix: str) -> dict[str, tuple]:
    return attention("q", "k", "v", "o", prefix=prefix)


def t5_case(config: Any, first: str, gate: str = "") -> Case:
    def half(layer: int) -> dict[str, tuple]:
        dense = f"layer.{layer}.DenseReluDense."
        return mlp(dense + first, dense + "wo", dense + gate if gate else "")

    return Case(
        "Seq2SeqLM",
        config,
        {
            ("encoder", "encoder.block"): {**t5_attention("layer.0.SelfAttention."), **half(1)},
            ("decoder", "decoder.block"): {
                **t5_attention("layer.0.SelfAttention."),
                **t5_attention("layer.1.EncDecAttention."),
                **half(2),
            },
        },
        {
            "encoder.embed_tokens": ("embedding", VOCAB, WIDTH),
            "decoder.embed_tokens": ("embedding", VOCAB, WIDTH),
            **LM_HEAD,
        },
        only_first={"layer.0.SelfAttention.relative_attention_bias": ("other", 32, 4, "embedding")},
        outer_stacks={"encoder.embed_tokens": "encoder", "decoder.embed_tokens": "decoder"},
    )


def seq2seq_blocks(prefix: str) -> dict[tuple[str, str], dict[str, tuple]]:
    own = {**attention(*OUT_PROJ), **mlp("fc1", "fc2")}
    return {
        ("encoder", f"{prefix}encoder.layers"): own,
        ("decoder", f"{prefix}decoder.layers"): {**own, **attention(*OUT_PROJ, prefix="encoder_attn.")},
    }


TOWER_BLOCK = {**attention(*OUT_PROJ), **mlp("mlp.fc1", "mlp.fc2")}
CLASSIFIER = {"classifier": ("head", 2, WIDTH)}

CASES: dict[str, Case] = {
    "llama": causal(tf.LlamaConfig(**LLAMA), LLAMA_BLOCK),
    "mistral": causal(tf.MistralConfig(**LLAMA), LLAMA_BLOCK),
    "qwen2": causal(tf.Qwen2Config(**LLAMA), LLAMA_BLOCK),
    "qwen3": causal(tf.Qwen3Config(**LLAMA, head_dim=8), LLAMA_BLOCK),
    "gemma": causal(tf.GemmaConfig(**LLAMA, head_dim=8), LLAMA_BLOCK),
    "gemma2": causal(tf.Gemma2Config(**LLAMA, head_dim=8), LLAMA_BLOCK),
    "gemma3": causal(tf.Gemma3TextConfig(**LLAMA, head_dim=8), LLAMA_BLOCK),
    "stablelm": causal(tf.StableLmConfig(**LLAMA), LLAMA_BLOCK),
    "cohere": causal(tf.CohereConfig(**LLAMA), LLAMA_BLOCK),
    "olmo2": causal(tf.Olmo2Config(**LLAMA), LLAMA_BLOCK),
    "granite": causal(tf.GraniteConfig(**LLAMA), LLAMA_BLOCK),
    "smollm3": causal(tf.SmolLM3Config(**LLAMA, pad_token_id=0), LLAMA_BLOCK),
    "starcoder2": causal(tf.Starcoder2Config(**LLAMA), {**LLAMA_ATTENTION, **mlp("mlp.c_fc", "mlp.c_proj")}),
    "phi": causal(
        tf.PhiConfig(**BERT), {**attention("q_proj", "k_proj", "v_proj", "dense"), **mlp("mlp.fc1", "mlp.fc2")}
    ),
    "phi3": causal(
        tf.Phi3Config(**LLAMA, pad_token_id=0),
        {
            "self_attn.qkv_proj": (QKV, 64, WIDTH),
            "self_attn.o_proj": (OUT, WIDTH, WIDTH),
            "mlp.gate_up_proj": (UP, 2 * INNER, WIDTH),
            "mlp.down_proj": (DOWN, WIDTH, INNER),
        },
    ),
    "gpt2": causal(tf.GPT2Config(**GPT2), GPT2_BLOCK, "transformer.h", {**WTE, **WPE, **LM_HEAD}),
    "gpt2-cross": causal(
        tf.GPT2Config(**GPT2, add_cross_attention=True),
        {**GPT2_BLOCK, **GPT2_CROSS},
        "transformer.h",
        {**WTE, **WPE, **LM_HEAD},
    ),
    "gptj": causal(
        tf.GPTJConfig(**GPT2, rotary_dim=4),
        {**attention(*OUT_PROJ, prefix="attn."), **mlp("mlp.fc_in", "mlp.fc_out", inner=128)},
        "transformer.h",
        {**WTE, **LM_HEAD},
    ),
    "gpt-neox": causal(
        tf.GPTNeoXConfig(**BERT),
        fused("attention", inner=INNER),
        "gpt_neox.layers",
        {"gpt_neox.embed_in": ("embedding", VOCAB, WIDTH), **LM_HEAD},
    ),
    "opt": causal(
        tf.OPTConfig(
            hidden_size=WIDTH,
            ffn_dim=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            vocab_size=VOCAB,
            word_embed_proj_dim=16,
            max_position_embeddings=64,
        ),
        {**attention(*OUT_PROJ), **mlp("fc1", "fc2")},
        "model.decoder.layers",
        {
            "model.decoder.embed_tokens": ("embedding", VOCAB, 16),
            "model.decoder.embed_positions": ("embedding", 66, WIDTH),
            "model.decoder.project_in": ("other", WIDTH, 16),
            "model.decoder.project_out": ("other", 16, WIDTH),
            "lm_head": ("head", VOCAB, 16),
        },
    ),
    "bloom": causal(
        tf.BloomConfig(hidden_size=WIDTH, n_layer=LAYERS, n_head=4, vocab_size=VOCAB),
        fused("self_attention"),
        "transformer.h",
        {**WORDS, **LM_HEAD},
    ),
    "falcon": causal(
        tf.FalconConfig(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, vocab_size=VOCAB),
        fused("self_attention", rows=48),
        "transformer.h",
        {**WORDS, **LM_HEAD},
    ),
    "bert": Case(
        "SequenceClassification",
        tf.BertConfig(**BERT),
        {("", "bert.encoder.layer"): BERT_BLOCK},
        {**embeddings("bert.embeddings"), **square("other", "bert.pooler.dense"), **CLASSIFIER},
    ),
    "bert-mlm": Case(
        "MaskedLM",
        tf.BertConfig(**BERT),
        {("", "bert.encoder.layer"): BERT_BLOCK},
        {
            **embeddings("bert.embeddings"),
            **square("head", "cls.predictions.transform.dense"),
            "cls.predictions.decoder": ("head", VOCAB, WIDTH),
        },
    ),
    "bert-qa": Case(
        "QuestionAnswering",
        tf.BertConfig(**BERT),
        {("", "bert.encoder.layer"): BERT_BLOCK},
        {**embeddings("bert.embeddings"), "qa_outputs": ("head", 2, WIDTH)},
    ),
    "roberta": Case(
        "SequenceClassification",
        tf.RobertaConfig(**BERT),
        {("", "roberta.encoder.layer"): BERT_BLOCK},
        {
            **embeddings("roberta.embeddings"),
            **square("head", "classifier.dense"),
            "classifier.out_proj": ("head", 2, WIDTH),
        },
    ),
    "xlm-roberta": Case(
        "MaskedLM",
        tf.XLMRobertaConfig(**BERT),
        {("", "roberta.encoder.layer"): BERT_BLOCK},
        {
            **embeddings("roberta.embeddings"),
            **square("head", "lm_head.dense"),
            "lm_head.decoder": ("head", VOCAB, WIDTH),
        },
    ),
    "electra": Case(
        "SequenceClassification",
        tf.ElectraConfig(**BERT, embedding_size=16),
        {("", "electra.encoder.layer"): BERT_BLOCK},
        {
            **embeddings("electra.embeddings", width=16),
            "electra.embeddings_project": ("other", WIDTH, 16),
            **square("head", "classifier.dense"),
            "classifier.out_proj": ("head", 2, WIDTH),
        },
    ),
    "mpnet": Case(
        "MaskedLM",
        tf.MPNetConfig(**BERT),
        {
            ("", "mpnet.encoder.layer"): {
                **t5_attention("attention.attn."),
                **mlp("intermediate.dense", "output.dense"),
            }
        },
        {
            **embeddings("mpnet.embeddings", types=0),
            "mpnet.encoder.relative_attention_bias": ("other", 32, 4, "embedding"),
            **square("head", "lm_head.dense"),
            "lm_head.decoder": ("head", VOCAB, WIDTH),
        },
    ),
    "deberta-v2": Case(
        "SequenceClassification",
        tf.DebertaV2Config(
            **BERT, relative_attention=True, position_buckets=8, pos_att_type=["c2p", "p2c"], share_att_key=False
        ),
        {
            ("", "deberta.encoder.layer"): {
                **attention("self.query_proj", "self.key_proj", "self.value_proj", "output.dense", prefix="attention."),
                **square("other", "attention.self.pos_key_proj", "attention.self.pos_query_proj"),
                **mlp("intermediate.dense", "output.dense"),
            }
        },
        {
            **embeddings("deberta.embeddings", types=0),
            "deberta.encoder.rel_embeddings": ("other", 16, WIDTH, "embedding"),
            **square("other", "pooler.dense"),
            **CLASSIFIER,
        },
    ),
    "distilbert": Case(
        "SequenceClassification",
        tf.DistilBertConfig(dim=WIDTH, hidden_dim=INNER, n_layers=LAYERS, n_heads=4, vocab_size=VOCAB),
        {
            ("", "distilbert.transformer.layer"): {
                **attention("q_lin", "k_lin", "v_lin", "out_lin", prefix="attention."),
                **mlp("ffn.lin1", "ffn.lin2"),
            }
        },
        {**embeddings("distilbert.embeddings", types=0), **square("head", "pre_classifier"), **CLASSIFIER},
    ),
    "albert": Case(
        "SequenceClassification",
        tf.AlbertConfig(**{**BERT, "num_hidden_layers": 12}, embedding_size=16),
        {
            ("", "albert.encoder.albert_layer_groups"): {
                **attention("query", "key", "value", "dense", prefix="albert_layers.0.attention."),
                **mlp("albert_layers.0.ffn", "albert_layers.0.ffn_output"),
            }
        },
        {
            **embeddings("albert.embeddings", width=16),
            "albert.encoder.embedding_hidden_mapping_in": ("other", WIDTH, 16),
            **square("other", "albert.pooler"),
            **CLASSIFIER,
        },
        layers=1,
    ),
    "modernbert": Case(
        "SequenceClassification",
        tf.ModernBertConfig(**BERT, **SPECIAL, cls_token_id=1, sep_token_id=2),
        {
            ("", "model.layers"): {
                "attn.Wqkv": (QKV, 96, WIDTH),
                "attn.Wo": (OUT, WIDTH, WIDTH),
                "mlp.Wi": (UP, 2 * INNER, WIDTH),
                "mlp.Wo": (DOWN, WIDTH, INNER),
            }
        },
        {
            "model.embeddings.tok_embeddings": ("embedding", VOCAB, WIDTH),
            **square("head", "head.dense"),
            **CLASSIFIER,
        },
    ),
    "t5": t5_case(tf.T5Config(**T5), "wi"),
    "t5-v1.1": t5_case(tf.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False), "wi_1", "wi_0"),
    "bart": Case(
        "Seq2SeqLM",
        tf.BartConfig(**BART, max_position_embeddings=64),
        seq2seq_blocks("model."),
        {
            f"model.{side}.{name}": ("embedding", rows, WIDTH)
            for side in ("encoder", "decoder")
            for name, rows in (("embed_tokens", VOCAB), ("embed_positions", 66))
        }
        | LM_HEAD,
        outer_stacks={"model.encoder.embed_tokens": "encoder", "model.decoder.embed_positions": "decoder"},
    ),
    "whisper": Case(
        "SpeechSeq2Seq",
        tf.WhisperConfig(**BART, pad_token_id=0, max_source_positions=30, max_target_positions=20),
        seq2seq_blocks("model."),
        {
            "model.encoder.embed_positions": ("embedding", 30, WIDTH),
            "model.decoder.embed_tokens": ("embedding", VOCAB, WIDTH),
            "model.decoder.embed_positions": ("embedding", 20, WIDTH),
            "proj_out": ("head", VOCAB, WIDTH),
        },
    ),
    "vit": Case(
        "ImageClassification",
        tf.ViTConfig(**VISION),
        {("", "vit.layers"): {**attention(*STANDARD, prefix="attention."), **mlp("mlp.fc1", "mlp.fc2")}},
        CLASSIFIER,
    ),
    "clip": Case(
        "Model",
        tf.CLIPConfig(text_config=BERT, vision_config=VISION, projection_dim=24),
        {("text", "text_model.encoder.layers"): TOWER_BLOCK, ("vision", "vision_model.encoder.layers"): TOWER_BLOCK},
        {
            "text_model.embeddings.token_embedding": ("embedding", VOCAB, WIDTH),
            "text_model.embeddings.position_embedding": ("embedding", 77, WIDTH),
            "vision_model.embeddings.position_embedding": ("embedding", 5, WIDTH),
            "visual_projection": ("other", 24, WIDTH),
            "text_projection": ("other", 24, WIDTH),
        },
        outer_stacks={"text_model.embeddings.token_embedding": "text", "visual_projection": "", "text_projection": ""},
    ),
    "llava": Case(
        "ImageTextToText",
        tf.LlavaConfig(text_config=tf.LlamaConfig(**LLAMA), vision_config=tf.CLIPVisionConfig(**VISION)),
        {
            ("vision", "model.vision_tower.encoder.layers"): TOWER_BLOCK,
            ("text", "model.language_model.layers"): LLAMA_BLOCK,
        },
        {
            "model.vision_tower.embeddings.position_embedding": ("embedding", 5, WIDTH),
            **square("other", "model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"),
            "model.language_model.embed_tokens": ("embedding", VOCAB, WIDTH),
            **LM_HEAD,
        },
        outer_stacks={"model.language_model.embed_tokens": "text", "model.multi_modal_projector.linear_1": ""},
    ),
    "mixtral": causal(
        tf.MixtralConfig(**LLAMA, num_local_experts=4),
        {**LLAMA_ATTENTION, **router("mlp.gate.weight"), **experts("mlp.experts")},
    ),
    "qwen3-moe": causal(
        tf.Qwen3MoeConfig(**LLAMA, num_experts=4, moe_intermediate_size=16, head_dim=8, mlp_only_layers=[0]),
        LLAMA_ATTENTION,
        only_first=LLAMA_MLP,
        only_last={**router("mlp.gate.weight"), **experts("mlp.experts", inner=16)},
    ),
    # The expert tensors of gpt-oss are (experts, in, out).
    "gpt-oss": causal(
        tf.GptOssConfig(**LLAMA, num_local_experts=4, head_dim=8),
        {**LLAMA_ATTENTION, **router("mlp.router.weight"), **experts("mlp.experts")},
    ),
    "granite-moe": causal(
        tf.GraniteMoeConfig(**LLAMA, num_local_experts=4),
        {**LLAMA_ATTENTION, **router("block_sparse_moe.router.weight"), **experts("block_sparse_moe.experts")},
    ),
    "deepseek-v3": causal(
        tf.DeepseekV3Config(
            **{**LLAMA, "num_key_value_heads": 4},
            moe_intermediate_size=16,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=2,
            kv_lora_rank=8,
            q_lora_rank=8,
            qk_rope_head_dim=4,
            v_head_dim=8,
            qk_nope_head_dim=4,
            first_k_dense_replace=1,
        ),
        {
            "self_attn.q_a_proj": (Q, 8, WIDTH),
            "self_attn.q_b_proj": (Q, WIDTH, 8),
            "self_attn.kv_a_proj_with_mqa": (QKV, 12, WIDTH),
            "self_attn.kv_b_proj": (QKV, 48, 8),
            "self_attn.o_proj": (OUT, WIDTH, WIDTH),
        },
        only_first=LLAMA_MLP,
        only_last={
            **router("mlp.gate.weight"),
            **experts("mlp.experts", inner=16),
            **mlp(
                "mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj", "mlp.shared_experts.gate_proj", inner=16
            ),
        },
    ),
}


def build(case: Case) -> torch.nn.Module:
    with torch.device("meta"):
        return getattr(tf, "AutoModel" + ("" if case.auto == "Model" else f"For{case.auto}")).from_config(case.config)


def expected(case: Case, targets: list[Target]) -> dict[str, tuple]:
    """Return name -> (role, depth, shape, kind, experts, stack, cross) for every target of the model."""
    rows: dict[str, tuple] = {}

    def add(name: str, row: tuple, depth: int | None, stack: str | None) -> None:
        role, outputs, inputs, *rest = row
        kind = rest[0] if rest else ("embedding" if role == "embedding" else "linear")
        count = rest[1] if len(rest) > 1 else 1
        if stack is None:  # outside the blocks only the named ones are checked for their stack
            stack = case.outer_stacks.get(name, next((t.stack for t in targets if t.name == name), ""))
        cross = any(word in name for word in ("crossattention", "encoder_attn", "EncDecAttention"))
        rows[name] = (role, depth, (outputs, inputs), kind, count, stack, cross)

    for (stack, path), table in case.blocks.items():
        for depth in range(case.layers):
            extra = case.only_first if depth == 0 else case.only_last if depth == case.layers - 1 else {}
            for name, row in (table | extra).items():
                add(f"{path}.{depth}.{name}", row, depth, stack)
    for name, row in case.outer.items():
        add(name, row, None, None)
    return rows


@pytest.mark.parametrize("name", CASES)
def test_every_matrix_of_every_architecture(name: str) -> None:
    case = CASES[name]
    targets = find_targets(build(case))
    found = {t.name: (t.role, t.depth, t.shape, t.kind, t.experts, t.stack, t.cross_attention) for t in targets}
    assert found == expected(case, targets)
    assert len(found) == len(targets)
    assert all(t.role in ROLES for t in targets)


@pytest.mark.parametrize("name", CASES)
def test_blocks_of_one_stack_repeat(name: str) -> None:
    """A role found in one block is found in all of them, except what the case says differs."""
    case = CASES[name]
    per_block = Counter((t.stack, t.depth) for t in find_targets(build(case)) if t.depth is not None)
    assert {depth for _, depth in per_block} == set(range(case.layers))
    assert {stack for stack, _ in per_block} == {stack for stack, _ in case.blocks}


def test_rules_see_the_innermost_container() -> None:
    assert part_of("attention_block.mlp.c_proj", "Thing") == "ffn"
    assert part_of("mlp_block.attn.c_proj", "Thing") == "attention"
    assert block_role("attention_block.mlp.c_proj", "Thing") == "ffn.down"
    assert block_role("mlp_block.attn.c_proj", "Thing") == "attention.output"


def test_class_name_helps_where_the_path_is_silent() -> None:
    assert block_role("q_lin", "MultiHeadAttention") == "attention.query"
    assert block_role("lin1", "TransformerFFN") == "ffn.up"
    assert block_role("q_lin", "Block") == "other"


def test_ambiguous_names_need_their_sibling() -> None:
    assert block_role("feed_forward.w1", "FeedForward", {"w1", "w2", "w3"}) == "ffn.gate"
    assert block_role("feed_forward.w2", "FeedForward", {"w1", "w2", "w3"}) == "ffn.down"
    assert block_role("feed_forward.w3", "FeedForward", {"w1", "w2", "w3"}) == "ffn.up"
    assert block_role("feed_forward.w1", "FeedForward", {"w1", "w2"}) == "other"
    assert block_role("fc1", "Layer", {"fc1"}) == "other"


@pytest.mark.parametrize("path", ["mixer.in_proj", "mamba.out_proj", "layer", "attention.self.pos_q_proj", "mlp.gate"])
def test_unknown_names_are_not_guessed(path: str) -> None:
    assert block_role(path, "Block") == "other"


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("score", "head"),
        ("decoder.cls.predictions.decoder", "head"),
        ("discriminator_predictions.dense", "head"),
        ("classification_head.out_proj", "head"),
        ("text_model.head", "other"),
        ("bert.pooler.dense", "other"),
        ("scorer", "other"),
    ],
)
def test_heads_are_told_by_whole_components(path: str, role: str) -> None:
    assert outer_role(path, embedding=False) == role


@pytest.mark.parametrize(
    ("path", "label"),
    [
        (["model", "visual"], "vision"),
        (["model", "language_model", "encoder"], "encoder"),
        (["text_encoder"], "text"),
        (["model", "audio_tower"], "audio"),
        (["qformer"], ""),
    ],
)
def test_stack_labels(path: list[str], label: str) -> None:
    assert stack_label(path) == label
