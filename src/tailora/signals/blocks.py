"""The modules that are a model's blocks, found from its targets' names and depths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tailora.errors import ProfileError, UserError
from tailora.targets import Target


@dataclass(frozen=True, slots=True)
class Block:
    """One block: the member of a module list that holds targets.

    Attributes:
        name: Full module name.
        stack: Which tower it belongs to, as its targets say.
        depth: Its index within the stack, as its targets say.
    """

    name: str
    stack: str
    depth: int


def find_blocks(model: nn.Module, targets: Sequence[Target]) -> tuple[Block, ...]:
    """Return the blocks that hold targets, in the model's order.

    A block is the member of the outermost module list on a target's path.  Targets without a depth lie outside of the
    blocks and are passed over.

    Args:
        model: The model.
        targets: Its targets.

    Returns:
        One entry per stack and depth.

    Raises:
        UserError: No target lies in a block.
        ProfileError: A target's block is no module of its own, or the targets of one depth are in several modules.
    """
    modules = dict(model.named_modules())
    found: dict[tuple[str, int], str] = {}
    for target in targets:
        if target.depth is None:
            continue
        name = _member(modules, target)
        held = found.setdefault((target.stack, target.depth), name)
        if held != name:
            raise ProfileError(
                f"depth {target.depth} of this model lies in two modules, {held!r} and {name!r}, so it has no input "
                "and output of its own; leave the signal 'intrinsic_dimension' out for it"
            )
    if not found:
        raise UserError(
            f"none of the {len(targets)} targets lies in a block, so there is no dimension to compare; widen the "
            "placement to matrices inside of the model's layers"
        )
    shared = sorted(name for name, uses in Counter(found.values()).items() if uses > 1)
    if shared:
        raise ProfileError(
            f"module {shared[0]!r} holds targets of several depths, so the ends of its blocks cannot be found; leave "
            "the signal 'intrinsic_dimension' out for this model"
        )
    order = {name: number for number, name in enumerate(modules)}
    blocks = [Block(name, stack, depth) for (stack, depth), name in found.items()]
    return tuple(sorted(blocks, key=lambda block: order[block.name]))


def _member(modules: dict[str, nn.Module], target: Target) -> str:
    """Return the name of the list member that a target lies in."""
    parts = target.name.split(".")
    for end in range(1, len(parts)):
        holder = modules.get(".".join(parts[:end]))
        # A list whose members are all of different classes holds towers or stages, not blocks.
        if isinstance(holder, nn.ModuleList) and (len(holder) == 1 or len({type(m) for m in holder}) < len(holder)):
            return ".".join(parts[: end + 1])
    raise ProfileError(
        f"target {target.name!r} lies in no module list, so its block cannot be found; leave it out of the placement"
    )
