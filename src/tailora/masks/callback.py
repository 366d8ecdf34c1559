"""A mask for people whose Trainer makes the optimizer itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from tailora.errors import UserError
from tailora.masks.flat import lay_out
from tailora.masks.gradients import GradientMask
from tailora.masks.optimizer import MaskedOptimizer

if TYPE_CHECKING:
    from tailora.masks.mask import FisherMask


class Guard:
    """Keeps the entries that are not kept as they are, whatever optimizer steps them.

    Their gradients are silenced, and after every step their values are written back, since weight decay moves an entry
    that has no gradient.  The state of the optimizer stays dense, and a copy of the masked parameters is held.
    """

    def __init__(self, mask: FisherMask, model: Any, optimizer: torch.optim.Optimizer) -> None:
        """Hook parameters and optimizer.

        Args:
            mask: The mask.
            model: The model.
            optimizer: What steps its parameters.
        """
        parameters = mask.parameters(model)
        self._flats = lay_out((parameters[name], places) for name, places in mask.positions.items())
        self._frozen = [flat.values.clone() for flat in self._flats]
        self._mask = GradientMask(self._flats)
        self._handle = optimizer.register_step_post_hook(lambda *_: self.restore())

    def restore(self) -> None:
        """Write back what is not kept."""
        with torch.no_grad():
            for place, flat in enumerate(self._flats):
                flat.settle()
                frozen = self._frozen[place] = self._frozen[place].to(flat.values.device)
                kept = flat.gather()
                flat.values.copy_(frozen)
                flat.scatter(kept)

    def close(self) -> None:
        """Take the hooks away."""
        self._handle.remove()
        self._mask.close()


def make_callback(mask: FisherMask) -> Any:
    """Build the callback of a mask.

    Args:
        mask: The mask.

    Returns:
        A ``transformers.TrainerCallback``.
    """
    from transformers import TrainerCallback

    class MaskCallback(TrainerCallback):
        """Masks gradients and guards what is not kept, from the start of a training to its end."""

        def __init__(self) -> None:
            self.guard: Guard | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            self._close()
            inner: Any = parts.get("optimizer")
            while not isinstance(inner, MaskedOptimizer) and hasattr(inner, "optimizer"):
                inner = inner.optimizer
            if isinstance(inner, MaskedOptimizer):
                # It guards its own entries, and keeps the state small besides.
                return
            register: Callable[..., Any] | None = getattr(inner, "register_step_post_hook", None)
            if register is None or getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
                raise UserError(
                    f"the Trainer steps with {type(inner).__name__}, which the mask cannot guard; pass "
                    "optimizers=(mask.optimizer(torch.optim.AdamW, lr=...), None) to the Trainer instead"
                )
            self.guard = Guard(mask, parts["model"], inner)  # type: ignore[arg-type]

        def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            self._close()

        def _close(self) -> None:
            if self.guard is not None:
                self.guard.close()
            self.guard = None

    return MaskCallback()
