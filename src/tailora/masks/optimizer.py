"""An optimizer whose state exists for the kept entries only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tailora.errors import UserError
from tailora.masks.flat import Flat, lay_out
from tailora.masks.gradients import GradientMask

MARK = "tailora_mask"
"""Where a state dict says which mask it belongs to."""


@dataclass(frozen=True)
class Group:
    """Parameters that share their options.

    Attributes:
        parameters: The parameters.
        positions: For each, its kept entries (int32); ``None`` where all of them train in full.
        options: What the inner optimizer is told about them besides its defaults.
    """

    parameters: Sequence[nn.Parameter]
    positions: Sequence[Tensor] | None
    options: Mapping[str, Any]


class MaskedOptimizer(torch.optim.Optimizer):
    """Steps any elementwise torch optimizer on the kept entries, gathered into one vector per device and dtype.

    To the outside it holds the model's own parameters (``param_groups``), so schedulers, gradient scalers, clipping,
    accelerate and the Trainer see what they expect; ``state`` and ``state_dict`` hold the vectors' state, which is as
    long as the mask has kept entries.  Entries that are not kept are never written to: no step, no weight decay and no
    momentum reaches them.

    A parameter without a gradient counts with a gradient of zero while another masked one has a gradient (a dense
    optimizer would leave its weight decay and momentum out, too).

    Attributes:
        inner: The optimizer that steps the vectors and the parameters that train in full.
    """

    def __init__(
        self,
        cls: Callable[..., torch.optim.Optimizer],
        groups: Sequence[Group],
        mark: str,
        **options: Any,
    ) -> None:
        """Lay out the parameters, hook their gradients and make the inner optimizer.

        Args:
            cls: An optimizer class whose step treats every entry on its own, such as ``AdamW`` or ``SGD``.
            groups: The parameters.
            mark: Which mask this is; a state dict of another one is refused.
            **options: What ``cls`` is told: ``lr``, ``weight_decay``, ``fused`` and the like.
        """
        self._mark = mark
        self._flats: list[list[Flat]] = []
        self._vectors: list[list[nn.Parameter]] = []
        inner_groups: list[dict[str, Any]] = []
        for group in groups:
            if group.positions is None:
                self._flats.append([])
                self._vectors.append([])
                inner_groups.append({"params": list(group.parameters), **group.options})
                continue
            flats = lay_out(zip(group.parameters, group.positions, strict=True))
            vectors = [nn.Parameter(flat.gather()) for flat in flats]
            self._flats.append(flats)
            self._vectors.append(vectors)
            # A group needs a vector, even where nothing in it is kept.
            inner_groups.append({"params": vectors, **group.options})
        self.inner = cls(inner_groups, **options)
        self._building = True
        super().__init__([{"params": list(group.parameters)} for group in groups], dict(self.inner.defaults))
        self._building = False
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            outer.update({key: value for key, value in inner.items() if key != "params"})
        self.state = self.inner.state
        self._mask = GradientMask([flat for flats in self._flats for flat in flats])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters that train in full.

        Args:
            param_group: As for any torch optimizer.
        """
        super().add_param_group(param_group)
        if not self._building:
            added = self.param_groups[-1]
            self.inner.add_param_group({**added, "params": list(added["params"])})
            added.update({key: value for key, value in self.inner.param_groups[-1].items() if key != "params"})
            self._flats.append([])
            self._vectors.append([])

    def close(self) -> None:
        """Take the hooks off the parameters; gradients arrive in full again."""
        self._mask.close()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step.

        Args:
            closure: Computes the gradients anew and returns the loss, for optimizers that ask for it.

        Returns:
            What the inner optimizer returns: the closure's loss, or ``None``.
        """
        self._sync()
        if closure is None:
            self._gather()
            loss = self.inner.step()
        else:

            def again() -> Any:
                self._scatter()
                with torch.enable_grad():
                    found = closure()
                self._gather()
                return found

            self._gather()
            loss = self.inner.step(again)
        self._scatter()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the kept entries and the options of every group.

        Returns:
            A dict that ``torch.save`` writes and ``torch.load(weights_only=True)`` reads.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        self._sync(settle=False)
        found: Any = {**self.inner.state_dict(), MARK: self._mark}
        for hook in self._optimizer_state_dict_post_hooks.values():
            found = hook(self, found) or found
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state.

        Args:
            state_dict: What ``state_dict`` of an optimizer with the same mask returned.

        Raises:
            UserError: It was made with another mask, or without any.
        """
        if state_dict.get(MARK) != self._mark:
            which = "of another mask" if MARK in state_dict else "without a mask"
            raise UserError(
                f"the optimizer state was saved {which} and cannot be continued with this one; load the mask that was "
                "saved beside it, or start afresh"
            )
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        self._sync()
        self.inner.load_state_dict({key: value for key, value in state_dict.items() if key != MARK})
        self.state = self.inner.state
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            outer.update({key: value for key, value in inner.items() if key != "params"})
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def sizes(self) -> dict[str, int]:
        """Return the memory that the mask and the optimizer take.

        Returns:
            Bytes: ``state`` (moments and the like of kept entries and of what trains in full), ``bookkeeping`` (the
            kept positions) and ``vectors`` (the gathered values and gradients).
        """
        tensors = [value for state in self.inner.state.values() for value in state.values()]
        flats = [flat for flats in self._flats for flat in flats]
        vectors = [vector for vectors in self._vectors for vector in vectors]
        return {
            "state": sum(_bytes(value) for value in tensors if isinstance(value, Tensor)),
            "bookkeeping": sum(_bytes(flat.kept) for flat in flats),
            "vectors": sum(_bytes(v) + (0 if v.grad is None else _bytes(v.grad)) for v in vectors),
        }

    def _sync(self, *, settle: bool = True) -> None:
        """Hand the options of every group to the inner optimizer, and follow parameters that were moved."""
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({key: value for key, value in outer.items() if key != "params"})
        if not settle:
            return
        moved = False
        for flats, vectors in zip(self._flats, self._vectors, strict=True):
            for flat, vector in zip(flats, vectors, strict=True):
                if flat.settle() and (vector.device, vector.dtype) != (flat.values.device, flat.values.dtype):
                    moved = True
                    vector.grad = None
                    vector.data = flat.gather()
        if moved:
            # Loading knows which parts of the state go where a parameter lies.
            self.inner.load_state_dict(self.inner.state_dict())
            self.state = self.inner.state

    def _gather(self) -> None:
        """Fetch values and gradients of the kept entries: whoever changed them since the last step did so rightly."""
        with torch.no_grad():
            for flats, vectors in zip(self._flats, self._vectors, strict=True):
                for flat, vector in zip(flats, vectors, strict=True):
                    flat.gather(out=vector.data)
                    into = torch.empty_like(vector) if vector.grad is None else vector.grad
                    vector.grad = into if flat.gather_gradients(into) else None

    def _scatter(self) -> None:
        """Write the kept entries back."""
        with torch.no_grad():
            for flats, vectors in zip(self._flats, self._vectors, strict=True):
                for flat, vector in zip(flats, vectors, strict=True):
                    flat.scatter(vector.data)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
