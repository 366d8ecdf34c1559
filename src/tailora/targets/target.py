"""What one adaptable weight matrix is, and what a rank on it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

ROLES = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.qkv",
    "attention.output",
    "ffn.gate",
    "ffn.up",
    "ffn.down",
    "embedding",
    "head",
    "other",
)
"""The closed list of roles; a fused gate-and-up matrix counts as ``ffn.up``."""

Kind = Literal["linear", "conv1d", "embedding", "parameter"]


@dataclass(frozen=True, slots=True)
class Target:
    """One weight matrix that LoRA can adapt.

    Attributes:
        name: Full module name in the model, or full parameter name for a fused expert tensor.
        role: What the matrix does, one of ``ROLES``.
        depth: Index of its block within its stack, from 0; ``None`` outside the blocks.
        shape: ``(out, in)`` of one matrix; ``(vocabulary, width)`` for an embedding.
        kind: ``linear``, ``conv1d`` (GPT-2's transposed linear), ``embedding``, or ``parameter`` (a tensor without a
            module of its own, reached through peft's ``target_parameters``).
        experts: How many matrices are stacked in the tensor; 1 for an ordinary matrix.
        stack: Which tower it belongs to (``encoder``, ``decoder``, ``vision``, ``text``); empty when there is one.
        cross_attention: Whether it reads another tower's states.
    """

    name: str
    role: str
    depth: int | None
    shape: tuple[int, int]
    kind: Kind = "linear"
    experts: int = 1
    stack: str = ""
    cross_attention: bool = False

    def cost(self, rank: int, *, dora: bool = False) -> int:
        """Return the number of adapter parameters that ``rank`` trains on this target.

        LoRA stores ``A [rank, in]`` and ``B [out, rank]`` per matrix; DoRA adds one magnitude per output, and nothing
        at rank 0.

        Args:
            rank: The rank, 0 or more.
            dora: Whether the adapter is a DoRA.

        Returns:
            Trainable parameters.
        """
        outputs, inputs = self.shape
        total = rank * (outputs + inputs) * self.experts
        if dora and rank > 0:
            # peft's magnitude has one entry per output feature; an embedding's output is its width.
            total += self.experts * (inputs if self.kind == "embedding" else outputs)
        return total

    @property
    def max_rank(self) -> int:
        """The largest rank that adds anything: the smaller side of the matrix."""
        return min(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return {
            "name": self.name,
            "role": self.role,
            "depth": self.depth,
            "shape": list(self.shape),
            "kind": self.kind,
            "experts": self.experts,
            "stack": self.stack,
            "cross_attention": self.cross_attention,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Target:
        """Rebuild a target from ``to_dict``'s result."""
        outputs, inputs = data["shape"]
        return cls(
            name=data["name"],
            role=data["role"],
            depth=data["depth"],
            shape=(int(outputs), int(inputs)),
            kind=data.get("kind", "linear"),
            experts=int(data.get("experts", 1)),
            stack=data.get("stack", ""),
            cross_attention=bool(data.get("cross_attention", False)),
        )
