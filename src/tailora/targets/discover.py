"""Find a model's targets from its module tree: names, classes and shapes, never a weight."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tailora.errors import UserError
from tailora.targets.roles import block_role, is_cross_attention, outer_role, stack_label
from tailora.targets.target import Kind, Target

_ROUTER_CLASS = re.compile(r"Router$|Gate$|Gating$", re.IGNORECASE)
_EXPERT_CLASS = re.compile(r"Expert|MoE", re.IGNORECASE)
# Expert modules also hold biases and, when quantised, scales: no matrices to adapt.
_NOT_A_WEIGHT = re.compile(r"bias|scale|zero|block")
# What quantised linear layers call their weight: bitsandbytes, EETQ | GPTQ, AWQ | HQQ.
_LINEAR_WEIGHTS = frozenset({"weight", "qweight", "W_q"})


_READ_UNCALLED = {
    "WavLMAttention": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "MambaMixer": ("dt_proj",),  # of Mamba, FalconMamba and Jamba
}
"""Ends of class names, and their layers that are never called: the weights go into functions."""


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A weight matrix before anything is known about its place."""

    name: str
    kind: Kind
    shape: tuple[int, int]
    experts: int = 1
    router: bool = False

    @property
    def path(self) -> str:
        """The name that rules look at: without the ``weight`` that a lone parameter may be called."""
        return self.name.removesuffix(".weight") if self.kind == "parameter" else self.name


@dataclass(slots=True)
class _BlockList:
    """A list of repeated blocks, the trunk of a tower."""

    parts: list[str]
    length: int
    matrices_per_block: int
    stack: str = ""
    offset: int = 0

    @property
    def tower(self) -> list[str]:
        return self.parts[:-1]


@dataclass(slots=True)
class _Layout:
    """Where a model's blocks and towers are."""

    blocks: dict[str, _BlockList] = field(default_factory=dict)
    towers: dict[str, str] = field(default_factory=dict)

    def locate(self, path: str) -> tuple[str, int | None, str]:
        """Return the stack, the depth, and the path below the block (the whole path outside the blocks)."""
        parts = path.split(".")
        for end in range(1, len(parts) - 1):
            found = self.blocks.get(".".join(parts[:end]))
            if found is not None:
                return found.stack, found.offset + int(parts[end]), ".".join(parts[end + 1 :])
        for end in range(len(parts) - 1, 0, -1):
            stack = self.towers.get(".".join(parts[:end]))
            if stack is not None:
                return stack, None, path
        return "", None, path


def find_targets(model: nn.Module) -> list[Target]:
    """Return every adaptable weight matrix of ``model``; see ``tailora.targets.find_targets``.

    Args:
        model: A base model without adapters.

    Returns:
        The targets in the order of ``named_modules()``.

    Raises:
        UserError: ``model`` is not a module, already carries adapter layers, or has nothing to adapt.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"targets can be found in a torch module only, not in {type(model).__name__}; load the model first"
        )
    modules = dict(model.named_modules())
    _refuse_adapted(model, modules)
    matrices = [matrix for name, module in modules.items() for matrix in _matrices(name, module, modules)]
    if not matrices:
        raise UserError(
            f"{type(model).__name__} has no matrix that LoRA can adapt (no linear layer, embedding or expert tensor); "
            "give a model that has one below its top level"
        )
    layout = _layout(modules, matrices)
    output = _output_embedding(model)
    return [_target(matrix, modules, layout, output) for matrix in matrices]


def _target(matrix: _Matrix, modules: dict[str, nn.Module], layout: _Layout, output: nn.Module | None) -> Target:
    """Give a matrix its role, depth and stack."""
    path = matrix.path
    stack, depth, below = layout.locate(path)
    if matrix.router:
        role = "other"
    elif depth is None:
        is_output = output is not None and modules.get(matrix.name) is output
        role = outer_role(path, embedding=matrix.kind == "embedding", output_embedding=is_output)
    elif matrix.kind == "embedding":
        role = "other"  # a table inside a block holds position biases
    else:
        owner = modules[path.rpartition(".")[0]]
        role = block_role(below, type(owner).__name__, _children(owner))
    return Target(
        name=matrix.name,
        role=role,
        depth=depth,
        shape=matrix.shape,
        kind=matrix.kind,
        experts=matrix.experts,
        stack=stack,
        cross_attention=depth is not None and is_cross_attention(below),
    )


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()} | {name for name, _ in module.named_parameters(recurse=False)}


def _refuse_adapted(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Raise if peft has been here.  Looked up, not imported: without peft loaded there can be no adapter."""
    peft, tuners = sys.modules.get("peft"), sys.modules.get("peft.tuners.tuners_utils")
    if peft is None or tuners is None:
        return
    adapted = [name for name, module in modules.items() if isinstance(module, tuners.BaseTunerLayer)]
    if adapted or isinstance(model, peft.PeftModel):
        where = f" (the first one is {adapted[0]!r})" if adapted else ""
        raise UserError(
            f"{type(model).__name__} already carries adapter layers{where}; give the base model, as it was before "
            "get_peft_model or as peft_model.unload() returns it"
        )


def _output_embedding(model: nn.Module) -> nn.Module | None:
    """Return the module that the model calls its output embedding."""
    getter = getattr(model, "get_output_embeddings", None)
    if getter is None:
        return None
    try:
        return getter()
    except (AttributeError, NotImplementedError):
        return None  # some multi-modal classes inherit the method without having a head


def _matrices(name: str, module: nn.Module, modules: dict[str, nn.Module]) -> Iterator[_Matrix]:
    """Yield what LoRA can adapt of one module, without looking into its children."""
    if not name:
        return  # peft replaces modules in their parent, so the top level itself cannot be adapted
    kind = _module_kind(name, module, modules)
    if kind == "embedding":
        table: Any = module
        yield _Matrix(name, kind, (int(table.num_embeddings), int(table.embedding_dim)))
    elif kind == "conv1d":
        inputs, outputs = module.weight.shape  # type: ignore[union-attr]
        yield _Matrix(name, kind, (int(outputs), int(inputs)))
    elif kind == "linear":
        linear: Any = module
        yield _Matrix(name, kind, (int(linear.out_features), int(linear.in_features)))
    else:
        yield from _parameter_matrices(name, module)


def _module_kind(name: str, module: nn.Module, modules: dict[str, nn.Module]) -> Kind | None:
    """Return the kind of a module that is one matrix, ``None`` for every other module."""
    if isinstance(module, nn.Embedding):
        return None if _is_tied_holder(name, module, modules) else "embedding"
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    if conv1d is not None and isinstance(module, conv1d):
        return "conv1d"
    owner = modules.get(name.rpartition(".")[0])
    if isinstance(owner, nn.MultiheadAttention) or _read_uncalled(name, owner):
        return None  # its forward reads the weight and never calls the layer, so an adapter would be dead
    if _ROUTER_CLASS.search(type(module).__name__):
        return None  # reached as a parameter: a router returns scores and indices, which peft's linear cannot wrap
    if isinstance(module, nn.Linear):
        return "linear"
    sized = all(isinstance(getattr(module, side, None), int) for side in ("in_features", "out_features"))
    tensors = {key for key, _ in module.named_parameters(recurse=False)}
    tensors |= {key for key, _ in module.named_buffers(recurse=False)}
    return "linear" if sized and tensors & _LINEAR_WEIGHTS else None


def _read_uncalled(name: str, owner: nn.Module | None) -> bool:
    """Tell whether a model of transformers reads a layer's weight without calling the layer."""
    layers = next((layers for known, layers in _READ_UNCALLED.items() if type(owner).__name__.endswith(known)), ())
    return name.rpartition(".")[2] in layers


def _is_tied_holder(name: str, module: nn.Embedding, modules: dict[str, nn.Module]) -> bool:
    """Tell whether an embedding only lends its weight to towers beside it.

    T5's and BART's ``shared`` is never called: the towers call their own ``embed_tokens``, tied to it.  An adapter on
    the holder would train nothing.
    """
    parent = name.rpartition(".")[0]
    prefix, depth = f"{parent}." if parent else "", name.count(".")
    return any(
        isinstance(other, nn.Embedding) and other.weight is module.weight
        for other_name, other in modules.items()
        if other is not module and other_name.startswith(prefix) and other_name.count(".") > depth
    )


def _parameter_matrices(name: str, module: nn.Module) -> Iterator[_Matrix]:
    """Yield the matrices that a module holds as bare parameters: stacked experts (3-D) and routers (2-D)."""
    class_name = type(module).__name__
    transposed = bool(getattr(module, "is_transposed", False))
    for key, parameter in module.named_parameters(recurse=False):
        shape = tuple(int(size) for size in parameter.shape)
        if len(shape) == 2 and key == "weight" and _ROUTER_CLASS.search(class_name):
            yield _Matrix(f"{name}.{key}", "parameter", (shape[0], shape[1]), router=True)
        elif len(shape) == 3 and not _NOT_A_WEIGHT.search(key):
            if not _EXPERT_CLASS.search(class_name) and getattr(module, "num_experts", None) != shape[0]:
                continue  # XLNet's head-split projections and learnt tokens are 3-D too
            # peft's reading, so that the shape is the adapter's: (experts, out, in) unless the module says that it is
            # transposed.  Llama 4's experts are transposed without saying so; their cost is the same either way.
            outputs, inputs = (shape[2], shape[1]) if transposed else (shape[1], shape[2])
            yield _Matrix(f"{name}.{key}", "parameter", (outputs, inputs), experts=shape[0])


def _layout(modules: dict[str, nn.Module], matrices: Sequence[_Matrix]) -> _Layout:
    """Find the lists of blocks, name their towers and number their blocks."""
    lists = _block_lists(modules, matrices)
    towers = [block_list.tower for block_list in lists]
    for block_list in lists:
        block_list.stack = _stack(block_list.tower, towers)
    lists = _number(lists)
    if len({block_list.stack for block_list in lists}) == 1:
        for block_list in lists:
            block_list.stack = ""
    layout = _Layout({".".join(block_list.parts): block_list for block_list in lists})
    for block_list in lists:
        others = [other.tower for other in lists if other.stack != block_list.stack]
        if others:
            layout.towers[".".join(_unique_prefix(block_list.tower, others))] = block_list.stack
    return layout


def _block_lists(modules: dict[str, nn.Module], matrices: Sequence[_Matrix]) -> list[_BlockList]:
    """Return the outermost module lists whose members repeat a class and hold matrices."""
    counts: dict[str, Counter[str]] = {}
    for matrix in matrices:
        if matrix.kind == "embedding":
            continue
        parts = matrix.path.split(".")
        for end in range(1, len(parts) - 1):  # strictly below a member: a list of bare linears is no list of blocks
            path = ".".join(parts[:end])
            module = modules.get(path)
            if isinstance(module, nn.ModuleList) and _repeats(module):
                counts.setdefault(path, Counter())[parts[end]] += 1
                break
    return [
        _BlockList(path.split("."), len(modules[path]), max(members.values()))  # type: ignore[arg-type]
        for path, members in counts.items()
    ]


def _repeats(module: nn.ModuleList) -> bool:
    # Hybrid models mix two or three classes in one list, so it is enough that one of them repeats.
    return len(module) == 1 or max(Counter(type(member) for member in module).values()) > 1


def _stack(tower: list[str], towers: Sequence[list[str]]) -> str:
    """Name a tower among the others."""
    others = [other for other in towers if other != tower]
    if not others:
        return ""
    prefix = _unique_prefix(tower, others)
    surrounds = any(other[: len(tower)] == tower for other in others)
    return stack_label(prefix) or ("" if surrounds else re.sub(r"_(model|tower)$", "", prefix[-1]))


def _unique_prefix(path: list[str], others: Sequence[list[str]]) -> list[str]:
    """Return the shortest beginning of ``path`` that none of ``others`` begins with."""
    for end in range(1, len(path)):
        if not any(other[:end] == path[:end] for other in others):
            return path[:end]
    return path


def _number(lists: Sequence[_BlockList]) -> list[_BlockList]:
    """Number the blocks of each stack and return the lists that hold them.

    Lists of one length with one parent are halves of the same blocks (XLM keeps its attentions and its feed-forwards
    in two lists); other lists of a stack follow each other (Mllama's local and global vision layers), unless their
    members are much smaller than the blocks: those are appendages (Qwen3-VL's deep-stack mergers), not layers.
    """
    groups: dict[tuple[str, str, int], list[_BlockList]] = {}
    for block_list in lists:
        groups.setdefault((block_list.stack, ".".join(block_list.tower), block_list.length), []).append(block_list)
    sizes = {key: sum(half.matrices_per_block for half in group) for key, group in groups.items()}
    ends = Counter[str]()
    kept: list[_BlockList] = []
    for key, group in groups.items():
        stack, _, length = key
        if 2 * sizes[key] <= max(size for other, size in sizes.items() if other[0] == stack):
            continue
        for half in group:
            half.offset = ends[stack]
        ends[stack] += length
        kept += group
    return kept
