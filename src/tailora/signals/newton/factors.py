"""K-FAC's factors of every target: second moments of its inputs and of its output gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tailora.errors import ProfileError
from tailora.signals.examples import real_positions
from tailora.signals.observations import accumulator_dtype, wide
from tailora.targets import Target

DAMPING = 0.1
"""Added to the preconditioner's eigenvalues, relative to their mean."""
FLOOR = 1e-3
"""Added to the eigenvalues of a factor whose root is taken, relative to their mean."""


class Watch:
    """Hooks that keep every call's input and where its output lies in the graph.

    A place in the graph stays what it is when a model changes the output in place afterwards.

    Attributes:
        calls: Per target, pairs of input and edge of the current forward pass.
    """

    def __init__(self, model: nn.Module, targets: Sequence[Target]) -> None:
        """Look the modules up.

        Args:
            model: The model.
            targets: Linear targets.
        """
        self._modules = [model.get_submodule(target.name) for target in targets]
        self._handles: list[Any] = []
        self.calls: list[list[tuple[Tensor, Any]]] = [[] for _ in targets]

    def __enter__(self) -> Watch:
        """Register the hooks."""
        for index, module in enumerate(self._modules):
            self._handles.append(module.register_forward_hook(self._hook(index), with_kwargs=True))
        return self

    def __exit__(self, *error: object) -> None:
        """Remove them and forget what they kept."""
        for handle in self._handles:
            handle.remove()
        self.clear()

    def clear(self) -> None:
        """Forget the calls of the last pass."""
        for calls in self.calls:
            calls.clear()

    def _hook(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if output.requires_grad:
                given = args[0] if args else next(value for value in kwargs.values() if isinstance(value, Tensor))
                self.calls[index].append((given.detach(), torch.autograd.graph.get_gradient_edge(output)))

        return hook


class Moments:
    """Sums from which the factors are made.

    ``A`` is the mean of ``a a^T`` over the real positions, ``S`` the sum of ``g g^T`` over the positions of an example,
    averaged over the examples, ``g`` drawn with the loss's curvature as covariance: ``A (x) S`` then approximates the
    target's own block of the Gauss-Newton matrix of the mean loss (Martens and Grosse 2015, arXiv 1503.05671).

    Attributes:
        inputs: Sums of ``a a^T`` per target.
        outputs: Sums of ``g g^T`` per target.
        positions: How many ``a`` were added, per target.
    """

    def __init__(self, targets: Sequence[Target], weights: Sequence[Tensor]) -> None:
        """Start at zero.

        Args:
            targets: The targets.
            weights: Their weights, for dtype and device.
        """
        self.targets = targets

        def zeros(weight: Tensor, size: int) -> Tensor:
            return torch.zeros(size, size, dtype=accumulator_dtype(weight.dtype), device=weight.device)

        self.inputs = [zeros(w, target.shape[1]) for w, target in zip(weights, targets, strict=True)]
        self.outputs = [zeros(w, target.shape[0]) for w, target in zip(weights, targets, strict=True)]
        self.positions = [0] * len(targets)

    def add(self, watch: Watch, logits: Tensor, drawn: Tensor, batch: Mapping[str, Any], rows: int) -> None:
        """Take in a batch.

        Args:
            watch: With the calls of its forward pass.
            logits: What came of it, with the graph, which is kept.
            drawn: The gradient at the logits.
            batch: The batch.
            rows: Its rows.
        """
        edges = [edge for calls in watch.calls for _, edge in calls]
        if not edges:
            return
        found = iter(torch.autograd.grad(logits, edges, drawn, retain_graph=True, allow_unused=True))
        for index, calls in enumerate(watch.calls):
            for given, _ in calls:
                gradient = next(found)
                if gradient is None:
                    continue
                g = wide(gradient.detach()).reshape(-1, gradient.shape[-1])
                self.outputs[index].addmm_(g.T, g)
                a = wide(given).reshape(-1, given.shape[-1])
                real = None
                if len(a) % rows == 0:
                    real = real_positions(batch, self.targets[index], rows, len(a) // rows)
                if real is not None:
                    a = a[real.reshape(-1).to(a.device)]
                self.inputs[index].addmm_(a.T, a)
                self.positions[index] += len(a)

    def factors(self, examples: int) -> list[Factor]:
        """Return every target's factors.

        Args:
            examples: How many examples there were.

        Returns:
            The factors in the order of the targets.

        Raises:
            ProfileError: A moment is not finite.
        """
        found = []
        for index, target in enumerate(self.targets):
            a = self.inputs[index] / max(self.positions[index], 1)
            s = self.outputs[index] / max(examples, 1)
            if not bool(torch.isfinite(a).all() and torch.isfinite(s).all()):
                raise ProfileError(
                    f"the moments of {target.name!r} before iteration 1 of the Newton step are not finite; look at the "
                    "calibration examples, or profile in float32"
                )
            found.append(Factor(*_decomposed(a), *_decomposed(s)))
        return found


@dataclass(frozen=True)
class Factor:
    """The factors of one target by their eigenvalues and eigenvectors.

    Attributes:
        input_values: Eigenvalues of A, ``[in]``.
        input_vectors: Eigenvectors in columns.
        output_values: Eigenvalues of S, ``[out]``.
        output_vectors: Eigenvectors in columns.
    """

    input_values: Tensor
    input_vectors: Tensor
    output_values: Tensor
    output_vectors: Tensor

    def divided(self, matrix: Tensor) -> Tensor:
        """Return ``S^-1 M A^-1``, damped.

        Args:
            matrix: ``[out, in]``.

        Returns:
            ``[out, in]``; zero where no gradient reaches the target.
        """
        products = self.output_values[:, None] * self.input_values[None, :]
        mean = products.mean()
        if not float(mean) > 0:
            return torch.zeros_like(matrix)
        turned = self.output_vectors.T @ matrix @ self.input_vectors
        return self.output_vectors @ (turned / (products + DAMPING * mean)) @ self.input_vectors.T

    def weighed(self, matrix: Tensor) -> Tensor:
        """Return a matrix with the singular values of ``S^1/2 M A^1/2``.

        Args:
            matrix: ``[out, in]``.

        Returns:
            ``[out, in]``.
        """
        turned = self.output_vectors.T @ matrix @ self.input_vectors
        return _root(self.output_values)[:, None] * turned * _root(self.input_values)[None, :]

    @property
    def size(self) -> float:
        """The trace of the Gauss-Newton block that the factors stand for."""
        return float(self.input_values.sum() * self.output_values.sum())


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor]:
    # In the dtype of the sums: twice as fast as in float64, and what it rounds lies below the damping and the floor.
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp(min=0.0), vectors


def _root(values: Tensor) -> Tensor:
    return (values + FLOOR * values.mean()).sqrt()
