"""The mean calibration loss as a function of all targets' weights: its gradient and its Gauss-Newton matrix."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from tailora.errors import ProfileError, UserError
from tailora.signals.batching import count_examples
from tailora.signals.elementwise.model import labels_matter
from tailora.signals.examples import example_of, for_model, on_device
from tailora.signals.losses import Loss, choose_loss, counted_examples
from tailora.signals.newton.conjugate import Vector
from tailora.signals.newton.factors import Moments, Watch
from tailora.signals.newton.logits import LogitsLoss, draw
from tailora.signals.observations import wide
from tailora.targets import Target

Batch = Mapping[str, Any]


class Objective:
    """The mean loss over the calibration examples, whose batches are gone through once for each product.

    Weights stand in the layout of their parameters; nothing of the model is changed.

    Attributes:
        names: Names of the parameters.
        weights: Their values, sharing memory with the model.
        examples: Examples that count.
        mean_loss: Over them, in nats.
        loss_name: Name of the loss.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        batches: Sequence[Batch],
        loss: str | Loss,
        seed: int,
        numbers: Sequence[int] | None = None,
    ) -> None:
        """Look the weights up.

        Args:
            model: The model, frozen and in evaluation mode.
            targets: Linear targets.
            batches: The calibration batches.
            loss: ``auto``, a name, or a callable.
            seed: Of what is drawn for the outputs' second moments.
            numbers: The batches' numbers among all of them, for the sentence about one whose loss is not finite.
        """
        self.model, self.targets, self.batches, self.seed = model, targets, batches, seed
        self.names = [f"{target.name}.weight" for target in targets]
        self.weights = [model.get_parameter(name).detach() for name in self.names]
        self.examples, self.mean_loss, self.loss_name = 0, 0.0, ""
        self._numbers = range(len(batches)) if numbers is None else numbers
        self._loss, self._function, self._labels = loss, None, True
        self._length = sum(float(wide(weight).norm()) ** 2 for weight in self.weights) ** 0.5

    def begin(self, tell: Callable[[], None], moments: Moments | None = None) -> Vector:
        """Take the gradient of the mean loss, and the moments for K-FAC where they are wanted.

        Args:
            tell: Called when a batch is done.
            moments: What the moments are added to.

        Returns:
            The gradient in at least float32.

        Raises:
            ProfileError: A loss is not finite, or reaches no target.
            UserError: The loss or the batches cannot be used.
        """
        total = self._zeros()
        reached = False
        generators: dict[torch.device, torch.Generator] = {}
        with Watch(self.model, () if moments is None else self.targets) as watch:
            for number, given in enumerate(self.batches):
                batch, rows = on_device(given, self.model), count_examples(for_model(given))
                leaves = [weight.detach().requires_grad_() for weight in self.weights]
                watch.clear()
                with _sentences(self.model):
                    outputs = self._outputs(batch, leaves)
                function = self._choose(outputs, batch)
                logits = getattr(outputs, "logits", None)
                if not isinstance(logits, Tensor):
                    raise UserError(
                        f"{type(self.model).__name__} returns no logits, from which 'newton_spectrum' takes the loss's "
                        "curvature; leave that signal out"
                    )
                here = LogitsLoss(self.loss_name, function, logits, batch)
                self._check(here, self._numbers[number], rows)
                counted = self._counted(here.losses, batch)
                self.mean_loss += float(here.losses[counted].double().sum())
                self.examples += int(counted.sum())
                if not logits.requires_grad:
                    continue
                device = logits.device
                if device not in generators:
                    generators[device] = torch.Generator(device).manual_seed(self.seed)
                with _sentences(self.model):
                    if moments is not None:
                        drawn = draw(self.loss_name, function, here, batch, generators[device])
                        moments.add(watch, logits, drawn.to(logits.dtype), batch, rows)
                    reached |= self._pull(total, logits, leaves, here.gradient)
                tell()
        if not reached or not self.examples:
            raise ProfileError("the loss reaches none of the targets; do the labels belong to this model?")
        self.mean_loss /= self.examples
        return [matrix / self.examples for matrix in total]

    def product(self, vector: Vector, tell: Callable[[], None]) -> Vector:
        """Return the Gauss-Newton matrix ``1/N sum J^T H_L J`` over all targets together times a vector.

        J's product comes from forward-mode differentiation, and the same pass leaves the graph for its transpose
        (Pearlmutter 1994; Schraudolph 2002).

        Args:
            vector: One matrix per target, in the parameters' layout.
            tell: As for ``begin``.

        Returns:
            The same shapes, in at least float32.
        """
        scale = self._scale(vector)
        if not scale > 0:
            return [matrix * scale for matrix in vector]
        total = self._zeros()
        assert self._function is not None
        for given in self.batches:
            batch = on_device(given, self.model)
            leaves = [weight.detach().requires_grad_() for weight in self.weights]
            with _sentences(self.model):
                with forward_ad.dual_level():
                    outputs = self._outputs(batch, self._duals(leaves, vector, scale))
                    primal, tangent = forward_ad.unpack_dual(outputs.logits)
                if tangent is not None and primal.requires_grad:
                    here = LogitsLoss(self.loss_name, self._function, primal, batch)
                    pushed = here.product(tangent.detach().to(here.logits.dtype))
                    self._pull(total, primal, leaves, pushed)
            tell()
        return [matrix / (scale * self.examples) for matrix in total]

    def curvature(self, vector: Vector, tell: Callable[[], None]) -> float:
        """Return the quadratic form of the Gauss-Newton matrix, for which a forward pass is enough.

        Args:
            vector: One matrix per target, in the parameters' layout.
            tell: As for ``begin``.

        Returns:
            ``<D, H D>`` in nats.
        """
        total = 0.0
        scale = self._scale(vector)
        if not scale:
            return 0.0
        assert self._function is not None
        for given in self.batches:
            batch = on_device(given, self.model)
            with _sentences(self.model), torch.no_grad(), forward_ad.dual_level():
                primal, tangent = forward_ad.unpack_dual(
                    self._outputs(batch, self._duals(self.weights, vector, scale)).logits
                )
            if tangent is not None:
                here = LogitsLoss(self.loss_name, self._function, primal, batch)
                moved = tangent.detach().to(here.logits.dtype)
                total += float((moved.double() * here.product(moved).double()).sum())
            tell()
        return total / (scale**2 * self.examples)

    def _scale(self, vector: Vector) -> float:
        """Return what makes a vector as long as the weights, zero for none, not a number for one without length.

        Tangents of the weights' own size neither overflow nor vanish in half precision; a power of two is exact.
        """
        length = sum(float(matrix.norm()) ** 2 for matrix in vector) ** 0.5
        if not 0 < length < float("inf"):
            return float("nan") if length else 0.0
        return 2.0 ** round(math.log2(max(self._length, 1e-30) / length))

    @staticmethod
    def _duals(weights: Sequence[Tensor], vector: Vector, scale: float) -> list[Tensor]:
        pairs = zip(weights, vector, strict=True)
        return [forward_ad.make_dual(weight, (matrix * scale).to(weight.dtype)) for weight, matrix in pairs]

    def _outputs(self, batch: Batch, weights: Sequence[Tensor]) -> Any:
        """Run the model with other weights, without labels once they are known to make nothing but its own loss."""
        given = for_model(batch)
        if not self._labels:
            del given["labels"]
        # A weight that another module shares is another weight there: an adapter on one does not move the other.
        # Fused attention has no forward-mode derivative; its plain form has.
        with sdpa_kernel(SDPBackend.MATH):
            values = dict(zip(self.names, weights, strict=True))
            return functional_call(self.model, values, kwargs=given, tie_weights=False)

    def _choose(self, outputs: Any, batch: dict[str, Any]) -> Loss:
        """Decide on the loss at the first batch, and whether the model needs its labels."""
        if self._function is None:
            self.loss_name, self._function = choose_loss(self._loss, self.model, outputs, batch)
            if not callable(self._loss):
                with contextlib.suppress(Exception), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                    one = for_model(example_of(batch, 0, 1))
                    self._labels = labels_matter(self.model, one, self.model(**one))
        return self._function

    def _counted(self, losses: Tensor, batch: Batch) -> Tensor:
        """Return which examples have a label at all; a callable counts all of its own."""
        if callable(self._loss):
            return torch.ones_like(losses, dtype=torch.bool)
        return counted_examples(self.loss_name, batch, losses)

    def _check(self, here: LogitsLoss, number: int, rows: int) -> None:
        losses = here.losses
        if losses.ndim != 1 or not len(losses) or rows % len(losses):
            raise UserError(
                f"loss {self.loss_name!r} returned {list(losses.shape)}, not one value per example [{rows}]"
            )
        finite = torch.isfinite(losses)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0])
            raise ProfileError(
                f"the loss of example {first} in calibration batch number {number} is not finite; look at that "
                "example, or profile in float32"
            )

    def _pull(self, total: Vector, logits: Tensor, leaves: Sequence[Tensor], cotangent: Tensor) -> bool:
        """Add ``J^T c``; return whether it reached any target."""
        found = torch.autograd.grad(logits, leaves, cotangent.to(logits.dtype), allow_unused=True)
        for matrix, gradient in zip(total, found, strict=True):
            if gradient is not None:
                matrix += gradient
        return any(gradient is not None for gradient in found)

    def _zeros(self) -> Vector:
        return [torch.zeros_like(wide(weight)) for weight in self.weights]


@contextlib.contextmanager
def _sentences(model: nn.Module) -> Iterator[None]:
    """Say in one sentence that a model's operations cannot be differentiated as needed."""
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        text = str(error)
        if not any(mark in text for mark in ("forward AD", "forward-mode", "jvp", "inplace operation")):
            raise
        reason = " ".join(text.split())[:160]
        raise ProfileError(
            f"{type(model).__name__} cannot be differentiated forward ({reason}); load it with "
            "attn_implementation='sdpa' or 'eager', or leave 'newton_spectrum' out"
        ) from None
