"""The kinds of adapter a plan can size: what a rank costs on a target, and where the kind can go at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tailora.registry import Registry
from tailora.targets import Target


@dataclass(frozen=True, slots=True)
class AdapterKind:
    """A kind of adapter.

    A plan's rank is the kind's own size: LoRA's and LoHa's rank, a bottleneck's width, 1 for an IA3 vector.

    Attributes:
        cost: Trainable parameters of a size, at least 1, on a target; every size after the first costs the same.
        most: The largest size that adds anything.
        fits: Whether the kind can be put on a target.
        marks: Parts of a parameter's name that make it this adapter's.
        sized: Whether there is a size to choose; without one a target has the whole adapter or none.
    """

    cost: Callable[[Target, int], int]
    most: Callable[[Target], int]
    fits: Callable[[Target], bool]
    marks: tuple[str, ...]
    sized: bool = True


def _max_rank(target: Target) -> int:
    return target.max_rank


def _is_matrix(target: Target) -> bool:
    """Tell a matrix with a module of its own from an embedding and from a bare tensor."""
    return target.kind in ("linear", "conv1d")


def _loha(target: Target, rank: int) -> int:
    return 2 * rank * sum(target.shape)


def _weights(target: Target, rank: int) -> int:
    return rank * target.shape[0] * target.shape[1]


def _ia3(target: Target, rank: int) -> int:
    """Count the vector: on the input of a down projection, on the output elsewhere."""
    return rank * target.shape[1 if target.role == "ffn.down" else 0]


def _bottleneck(target: Target, size: int) -> int:
    width = target.shape[0]
    return 2 * width * size + size + width


ADAPTER_KINDS: Registry[AdapterKind] = Registry("kind of adapter")
_LORA_MARKS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
ADAPTER_KINDS.add(
    "lora",
    AdapterKind(lambda target, rank: target.cost(rank), _max_rank, lambda target: True, _LORA_MARKS),
    summary="low-rank update B A",
    citation="Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685",
)
ADAPTER_KINDS.add(
    "dora",
    AdapterKind(
        lambda target, rank: target.cost(rank, dora=True),
        _max_rank,
        # A magnitude does not exist for tensors without a module: peft refuses it.
        lambda target: target.kind != "parameter",
        (*_LORA_MARKS, "lora_magnitude_vector"),
    ),
    summary="LoRA with a magnitude per output",
    citation="Liu et al. 2024, DoRA: Weight-Decomposed Low-Rank Adaptation, arXiv 2402.09353",
)
ADAPTER_KINDS.add(
    "loha",
    # peft's LyCORIS layers know nn.Linear, and not GPT-2's transposed one.
    AdapterKind(_loha, _max_rank, lambda target: target.kind == "linear", ("hada_w1_", "hada_w2_")),
    summary="Hadamard product of two low-rank updates",
    citation="Hyeon-Woo et al. 2022, FedPara: Low-Rank Hadamard Product, arXiv 2108.06098",
)
ADAPTER_KINDS.add(
    "ia3",
    AdapterKind(_ia3, lambda target: 1, _is_matrix, ("ia3_l",), sized=False),
    summary="a vector that rescales activations",
    citation="Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper, arXiv 2205.05638",
)
ADAPTER_KINDS.add(
    "bottleneck",
    # Widths above the layer's own would only repeat directions.
    AdapterKind(
        _bottleneck,
        lambda target: target.shape[0],
        _is_matrix,
        ("bottleneck_down", "bottleneck_up", "bottleneck_norm"),
    ),
    summary="a small feed-forward behind a layer (Houlsby, Pfeiffer)",
    citation="Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP, arXiv 1902.00751",
)
ADAPTER_KINDS.add(
    "weights",
    AdapterKind(_weights, lambda target: 1, _is_matrix, (), sized=False),
    summary="no adapter: the base weights themselves, for a mask to choose from",
    citation="Sung et al. 2021, Training Neural Networks with Fixed Sparse Masks, arXiv 2111.09839",
)

_UNPLANNED = ("unipelt_",)  # kinds that train here and have no size a plan could choose
ADAPTER_MARKS = tuple(dict.fromkeys([*(mark for entry in ADAPTER_KINDS for mark in entry.value.marks), *_UNPLANNED]))
"""Parts of a parameter's name that make it an adapter's; everything else that trains is a task head."""
