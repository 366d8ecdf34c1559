"""Streaming sketches of matrices too large to keep: a few random projections, from which leading directions return."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tailora.signals.fresh_factors import private_generator

DEFAULT_SKETCH = 128
"""Width of the range sketches; half as many singular values are read from them."""


@dataclass(frozen=True)
class TestMatrices:
    """The random projections of one shape: a range pair of width ``k`` and a core pair of width ``2k + 1``.

    Attributes:
        left: ``[k, out]``.
        right: ``[in, k]``.
        core_left: ``[s, out]``.
        core_right: ``[in, s]``.
    """

    __test__ = False  # the name is the literature's; pytest should not collect it

    left: Tensor
    right: Tensor
    core_left: Tensor
    core_right: Tensor

    @classmethod
    def draw(cls, name: str, shape: tuple[int, int], width: int, seed: int, like: Tensor) -> TestMatrices:
        """Draw the projections of one target.

        Args:
            name: The target's name, which with ``seed`` makes the generator.
            shape: ``(out, in)``.
            width: ``k``.
            seed: The seed.
            like: Gives the device and the dtype.

        Returns:
            Gaussian matrices, scaled so that they keep lengths on average.
        """
        outputs, inputs = shape
        core = 2 * width + 1
        generator = private_generator(seed, "sketch", name)

        def gauss(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float32).to(like.device, like.dtype)

        return cls(
            left=gauss(width, outputs) / outputs**0.5,
            right=gauss(inputs, width) / inputs**0.5,
            core_left=gauss(core, outputs) / outputs**0.5,
            core_right=gauss(inputs, core) / inputs**0.5,
        )


def sketch_pays(shape: tuple[int, int], width: int) -> bool:
    """Tell whether sketching a matrix costs less arithmetic (and memory) than summing it.

    Args:
        shape: ``(out, in)``.
        width: Width of the range sketches.

    Returns:
        Whether ``(out + in)(2 k + s) + s^2 < out in`` with ``s = 2 k + 1``.
    """
    outputs, inputs = shape
    core = 2 * width + 1
    return (outputs + inputs) * (2 * width + core) + core**2 < outputs * inputs


def add_product(sums: dict[str, Tensor], tests: TestMatrices, inputs: Tensor, gradients: Tensor) -> None:
    """Add the sketch of ``gradients^T inputs`` without forming it.

    Args:
        sums: ``rows`` ``[k, in]``, ``columns`` ``[out, k]`` and ``core`` ``[s, s]``; changed in place.
        tests: The projections.
        inputs: ``[positions, in]``.
        gradients: ``[positions, out]``.
    """
    sums["rows"].addmm_((gradients @ tests.left.T).T, inputs)
    # Seen from the side, as ``zeros`` lays it out: a tenth faster on a CPU.
    sums["columns"].T.addmm_((inputs @ tests.right).T, gradients)
    sums["core"].addmm_((gradients @ tests.core_left.T).T, inputs @ tests.core_right)


def zeros(tests: TestMatrices) -> dict[str, Tensor]:
    """Return empty sums for ``add_product``.

    Args:
        tests: The projections.

    Returns:
        The sums.
    """
    width, outputs = tests.left.shape
    inputs = tests.right.shape[0]
    core = tests.core_left.shape[0]
    new = tests.left.new_zeros
    return {"rows": new(width, inputs), "columns": new(width, outputs).T, "core": new(core, core)}


def factors(sums: dict[str, Tensor], tests: TestMatrices) -> tuple[Tensor, Tensor, Tensor]:
    """Return a low-rank approximation ``U diag(s) V^T`` of the sketched matrix.

    Tropp, Yurtsever, Udell and Cevher 2019 (arXiv 1902.08651), algorithm 4.5 with a core sketch: orthonormal bases of
    the range and the co-range, and the least-squares core between them.

    Args:
        sums: The sums.
        tests: The projections they were made with.

    Returns:
        ``U [out, k]``, singular values ``[k]`` in descending order, ``V [in, k]``, in float64 on the host.
    """
    host = {name: tensor.double().cpu() for name, tensor in sums.items()}
    left, right = tests.core_left.double().cpu(), tests.core_right.double().cpu()
    q, _ = torch.linalg.qr(host["columns"])
    p, _ = torch.linalg.qr(host["rows"].T)
    half = torch.linalg.lstsq(left @ q, host["core"]).solution
    core = torch.linalg.lstsq((p.T @ right).T, half.T).solution.T
    u, s, vh = torch.linalg.svd(core)
    return q @ u, s, p @ vh.T
