"""Which way round a parameter lies: targets are ``[out, in]``, their parameters not always."""

from __future__ import annotations

from torch import Tensor, nn

from tailora.targets import Target


def oriented(target: Target, owner: nn.Module, stacked: Tensor) -> Tensor:
    """Return a parameter, or its gradient, as ``[experts, out, in]``.

    Fused experts of most models lie so, those of GPT-OSS the other way round.  The shape tells which, and where a
    matrix is square the module's own word (``is_transposed``).

    Args:
        target: Whose parameter it is.
        owner: The module that holds it.
        stacked: ``[experts, a, b]`` in the parameter's own layout, or ``[a, b]``.

    Returns:
        A view, with an axis of experts in front.
    """
    stacked = stacked[None] if stacked.ndim == 2 else stacked
    outputs, inputs = target.shape
    square = outputs == inputs and target.kind == "parameter" and bool(getattr(owner, "is_transposed", False))
    if target.kind == "conv1d" or square or tuple(stacked.shape[1:]) != target.shape:
        return stacked.transpose(1, 2)
    return stacked
