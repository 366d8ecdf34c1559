"""What a matrix does, told from the names that transformers models use.

A matrix inside a transformer block is judged by the dotted path below the block.  The nearest enclosing component that
is an attention or a feed-forward module says which half of the table applies (where no component says so, the class
name of the owner does); the end of the path says the role.  What no rule names is ``other``: roles are never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Part = Literal["attention", "ffn", "block"]

_ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)
_FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|expert|moe|densereludense|^ff$", re.IGNORECASE)
_ATTENTION_CLASS = re.compile(r"Attention")
_FEED_FORWARD_CLASS = re.compile(r"MLP|FFN|FeedForward|Experts?(?![a-z])|DenseActDense|DenseGatedActDense")
_CROSS_ATTENTION = re.compile(r"cross_?att|encoder_attn|encdecattention", re.IGNORECASE)
_RELATIVE_POSITION = re.compile(r"(^|\.)rel(ative)?_", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table.

    Attributes:
        part: Which part of the block the rule speaks about; ``block`` is a matrix held by the block itself.
        ends: Regular expression for the last components of the path.
        role: The role it gives.
        beside: A sibling that must exist for the names to mean this; empty when the name is enough.
    """

    part: Part
    ends: str
    role: str
    beside: str = ""

    def matches(self, part: Part, path: str, siblings: Collection[str]) -> bool:
        """Tell whether the rule speaks about this matrix.

        Args:
            part: The part of the block the matrix is in.
            path: Its dotted path below the block.
            siblings: Names of the modules and parameters its owner holds.

        Returns:
            Whether ``role`` applies.
        """
        if part != self.part or (self.beside and self.beside not in siblings):
            return False
        return re.search(rf"(?:^|\.)(?:{self.ends})$", path) is not None


# Most specific first; the first rule that matches decides.
RULES = (
    # A matrix that makes more than one of query, key and value counts as fused.
    # BLOOM, Falcon, GPT-NeoX | ViT-likes, Qwen2-VL vision | Phi3, CodeGen | ModernBERT, MPT | DeBERTa | GPT-2, BigCode
    Rule("attention", r"query_key_value|qkv|qkv_proj|Wqkv|in_proj|c_attn", "attention.qkv"),
    # DeepSeek's latent key-value pair | models with a fused key-value projection | Qwen3-Next's linear attention
    Rule("attention", r"kv_a_proj_with_mqa|kv_a_proj|kv_b_proj|kv_proj|kv|key_value|in_proj_qkvz?", "attention.qkv"),
    # DeepSeek's latent query pair
    Rule("attention", r"q_a_proj|q_b_proj", "attention.query"),
    # Llama and most decoders, OPT, BART, CLIP, Whisper | BERT family (Longformer: _global) | DeBERTa-v2 | DistilBERT |
    # T5, MPNet | GPT-2's cross-attention | original Llama code | Funnel
    Rule("attention", r"q_proj|query(_global)?|query_proj|q_lin|q|q_attn|wq|q_head", "attention.query"),
    Rule("attention", r"k_proj|key(_global)?|key_proj|k_lin|k|wk|k_head", "attention.key"),
    Rule("attention", r"v_proj|value(_global)?|value_proj|v_lin|v|wv|v_head", "attention.value"),
    # Llama and most decoders | OPT, BART, CLIP, GPT-J, Whisper | DistilBERT | GPT-2 | BERT family | Phi, GPT-NeoX,
    # BLOOM, Falcon, ALBERT | ViT-likes, BLIP, InternVL | LED | Funnel | T5, MPNet | ModernBERT | original Llama code
    Rule(
        "attention",
        r"o_proj|out_proj|out_lin|c_proj|output\.dense|dense|proj|projection|projection_layer|output|post_proj|o|Wo|wo",
        "attention.output",
    ),
    # Gated feed-forwards. Llama and most decoders | T5 v1.1, whose first wi goes through the activation | EXAONE
    Rule("ffn", r"gate_proj|wi_0|c_fc_0", "ffn.gate"),
    # Original Llama and Mixtral code: only the complete triple w1, w2, w3 means gate, down, up
    Rule("ffn", r"w1", "ffn.gate", beside="w3"),
    Rule("ffn", r"w2", "ffn.down", beside="w3"),
    Rule("ffn", r"w3", "ffn.up", beside="w1"),
    # Llama | gate and up in one: Phi3, GLM, fused experts, ModernBERT | T5 v1.0 | T5 v1.1 | EXAONE
    Rule("ffn", r"up_proj|gate_up_proj|Wi|wi|wi_1|c_fc_1", "ffn.up"),
    # Phi, ViT, CLIP | Qwen3-VL vision | DistilBERT | GPT-2, StarCoder2 | GPT-J, CodeGen | GPT-NeoX, BLOOM, Falcon |
    # XLNet, Funnel | Wav2Vec2 | Granite-MoE
    Rule("ffn", r"fc1|linear_fc1|lin1|c_fc|fc_in|dense_h_to_4h|(layer|linear)_1", "ffn.up"),
    Rule("ffn", r"intermediate_dense|input_linear", "ffn.up"),
    # The same architectures, on the way back
    Rule("ffn", r"down_proj|Wo|wo|c_proj|fc2|linear_fc2|lin2|fc_out|dense_4h_to_h|(layer|linear)_2", "ffn.down"),
    Rule("ffn", r"output_dense|output_linear", "ffn.down"),
    # Held by the block itself. BERT, RoBERTa, DeBERTa, ELECTRA, MPNet (BLIP-2's Q-Former: _query)
    Rule("block", r"intermediate(_query)?\.dense", "ffn.up"),
    Rule("block", r"output(_query)?\.dense", "ffn.down"),
    # OPT, BART, Pegasus, Whisper
    Rule("block", r"fc1", "ffn.up", beside="fc2"),
    Rule("block", r"fc2", "ffn.down", beside="fc1"),
    # ALBERT
    Rule("block", r"ffn", "ffn.up", beside="ffn_output"),
    Rule("block", r"ffn_output", "ffn.down", beside="ffn"),
)

# Outside the blocks: components that only a task head has.
_HEAD = re.compile(
    r"(^|\.)(lm_head|generator_lm_head|embed_out|proj_out"  # language-model heads
    r"|cls|predictions|lm_predictions|vocab_transform|vocab_projector|sop_classifier|discriminator_predictions"
    r"|score|classifier|pre_classifier|classification_head|logits_proj|qa_outputs|v_head)(\.|$)"
    r"|^head(\.|$)"  # ModernBERT; deeper down, SigLIP calls its pooling `head`
)

# Innermost component first; a text encoder is text, hence the order.
_STACKS = (
    ("vision", re.compile(r"vision|visual|image|^vit$")),
    ("text", re.compile(r"text|language|^lm$|^llm$")),
    ("audio", re.compile(r"audio|speech")),
    ("encoder", re.compile(r"encoder")),
    ("decoder", re.compile(r"decoder")),
)


def part_of(path: str, owner_class: str) -> Part:
    """Return which part of a block a matrix belongs to.

    Args:
        path: Dotted path below the block.
        owner_class: Class name of the module that holds the matrix.

    Returns:
        ``attention``, ``ffn``, or ``block`` when neither the path nor the class tells.
    """
    for component in reversed(path.split(".")[:-1]):
        if _ATTENTION.search(component):
            return "attention"
        if _FEED_FORWARD.search(component):
            return "ffn"
    if _ATTENTION_CLASS.search(owner_class):
        return "attention"
    return "ffn" if _FEED_FORWARD_CLASS.search(owner_class) else "block"


def block_role(path: str, owner_class: str, siblings: Collection[str] = ()) -> str:
    """Return the role of a matrix inside a transformer block.

    Args:
        path: Dotted path below the block, such as ``self_attn.q_proj``.
        owner_class: Class name of the module that holds the matrix.
        siblings: Names of the modules and parameters the owner holds.

    Returns:
        One of ``ROLES``; ``other`` when no rule names the matrix.
    """
    part = part_of(path, owner_class)
    return next((rule.role for rule in RULES if rule.matches(part, path, siblings)), "other")


def outer_role(path: str, *, embedding: bool, output_embedding: bool = False) -> str:
    """Return the role of a matrix outside the blocks.

    Args:
        path: Full dotted path in the model.
        embedding: Whether it is an embedding table.
        output_embedding: Whether the model calls it its output embedding.

    Returns:
        ``head``, ``embedding`` or ``other``.
    """
    if output_embedding:
        return "head"
    if embedding:
        # A table of relative-position biases is not a token, position or type embedding.
        return "other" if _RELATIVE_POSITION.search(path) else "embedding"
    return "head" if _HEAD.search(path) else "other"


def is_cross_attention(path: str) -> bool:
    """Tell whether a path below a block lies in an attention over another tower's states.

    Args:
        path: Dotted path below the block.

    Returns:
        Whether a component says cross-attention.
    """
    return _CROSS_ATTENTION.search(path) is not None


def stack_label(components: Collection[str]) -> str:
    """Return the common name of a tower.

    Args:
        components: The components of its path, outermost first.

    Returns:
        ``vision``, ``text``, ``audio``, ``encoder`` or ``decoder``; empty when no component says which.
    """
    for component in reversed(list(components)):
        for label, pattern in _STACKS:
            if pattern.search(component):
                return label
    return ""
