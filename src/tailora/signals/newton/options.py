"""How long the conjugate gradients go on, what is held out of them, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailora.errors import UserError

ITERATIONS = 16
"""Iterations of conjugate gradients unless ``newton_iterations`` says otherwise; stopping early is what regularises."""
HELD_OUT = 0.125
"""Share of the batches that are not solved for unless ``newton_held_out`` says otherwise."""
OPTION = "newton_iterations"
_HELD_OUT_OPTION = "newton_held_out"
_MOST = 10_000


def iterations_of(options: Mapping[str, Any]) -> int:
    """Return how many iterations are asked for.

    Args:
        options: Of a profile; ``newton_iterations`` is read.

    Returns:
        A number of at least 1.

    Raises:
        UserError: It is no such number.
    """
    asked = options.get(OPTION, ITERATIONS)
    if isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= _MOST:
        raise UserError(f"option {OPTION}={asked!r} must be a whole number from 1 to {_MOST:,}, such as {ITERATIONS}")
    return asked


def held_out_of(options: Mapping[str, Any]) -> float:
    """Return which share of the batches is held out.

    Args:
        options: Of a profile; ``newton_held_out`` is read.

    Returns:
        From 0, for none, to a half.

    Raises:
        UserError: It is no such share.
    """
    asked = options.get(_HELD_OUT_OPTION, HELD_OUT)
    if isinstance(asked, bool) or not isinstance(asked, int | float) or not 0 <= asked <= 0.5:
        raise UserError(f"option {_HELD_OUT_OPTION}={asked!r} must be a share from 0 to 0.5, such as {HELD_OUT}")
    return float(asked)


def passes(iterations: int = ITERATIONS) -> float:
    """Return what ``newton_spectrum`` costs, in forward and backward passes over the calibration tokens.

    A forward pass counts a third, a backward pass two thirds (one for the layers' inputs and one for their weights),
    each about one product with every weight matrix.  At first there are a forward pass, a backward pass for the
    gradient, one through the layers alone for the outputs' second moments, and the second moments themselves, each
    worth a third at a square matrix.  Each iteration takes a forward pass that carries a tangent, which doubles it,
    and a backward pass.  Held-out batches take no more than that and are counted alike.  The decompositions of single
    matrices and everything at the logits are not counted.

    Args:
        iterations: Of conjugate gradients.

    Returns:
        Passes over every calibration token.
    """
    first = 1 / 3 + 2 / 3 + 1 / 3 + 2 * 1 / 3
    return first + iterations * (2 / 3 + 2 / 3)
