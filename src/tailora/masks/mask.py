"""The mask itself: which entries train."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tailora.errors import PlanMismatchError, UserError
from tailora.masks import storage
from tailora.masks.candidates import bare_model
from tailora.masks.frozen import changed, frozen_marks
from tailora.masks.optimizer import Group, MaskedOptimizer


class FisherMask:
    """Which entries of a model's parameters train; the others stay as they are, bit for bit.

    Attributes:
        positions: Parameter name to its kept entries: int32, sorted, numbered in the parameter's own order.
        shapes: Parameter name to shape.
        meta: How the mask was made (JSON-ready): ``examples``, ``loss``, ``kind``, ``reduction``, ``selection``,
            ``zero``, ``warmup``, ``seed``, ``head`` and more; see the manual.
    """

    def __init__(
        self,
        positions: Mapping[str, Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        meta: Mapping[str, Any],
        model: nn.Module | None = None,
    ) -> None:
        """Hold a mask.

        Args:
            positions: Parameter name to kept entries.
            shapes: Parameter name to shape.
            meta: How the mask was made.
            model: The model it is for; held weakly.
        """
        self.positions = {name: place.cpu().int() for name, place in positions.items()}
        self.shapes = {name: tuple(shapes[name]) for name in self.positions}
        self.meta = dict(meta)
        self._model: weakref.ref[nn.Module] | None = None if model is None else weakref.ref(bare_model(model))

    def __repr__(self) -> str:
        """Return one line for people."""
        share = self.kept / self.total
        return f"FisherMask({self.kept:,} of {self.total:,} entries kept, {share:.2%}; head {self.head:,})"

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model behind when the mask is copied to another process."""
        return {**self.__dict__, "_model": None}

    @property
    def kept(self) -> int:
        """Number of kept entries."""
        return sum(len(places) for places in self.positions.values())

    @property
    def total(self) -> int:
        """Number of candidate entries."""
        return sum(_numel(shape) for shape in self.shapes.values())

    @property
    def head(self) -> int:
        """Number of parameters of the task head, which all train."""
        return int(self.meta.get("head", 0))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameter name to bool tensor of its shape, true where it trains; made anew at each access."""
        return {
            name: torch.zeros(_numel(shape), dtype=torch.bool)
            .index_fill_(0, self.positions[name].long(), True)
            .view(shape)
            for name, shape in self.shapes.items()
        }

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of names, shapes and kept entries."""
        digest = hashlib.sha256()
        for name, places in self.positions.items():
            digest.update(f"{name}{list(self.shapes[name])}{len(places)}".encode())
            digest.update(places.numpy().tobytes())
        return digest.hexdigest()

    def parameters(self, model: nn.Module | None = None) -> dict[str, nn.Parameter]:
        """Return the model's parameters that the mask is for.

        Args:
            model: The model; the one the mask was made for or applied to by default.

        Returns:
            Name to parameter.

        Raises:
            PlanMismatchError: The model lacks one, it has another shape, or it is frozen.
            UserError: No model is known.
        """
        known = dict(self._bound(model).named_parameters())
        for name, shape in self.shapes.items():
            if name not in known:
                raise PlanMismatchError(
                    f"the mask is for {name!r}, which this model lacks; give the model it was made for"
                )
            if tuple(known[name].shape) != shape:
                raise PlanMismatchError(
                    f"the mask's {name!r} has the shape {list(shape)} and the model's {list(known[name].shape)}; give "
                    "the model it was made for"
                )
            if not known[name].requires_grad:
                raise PlanMismatchError(f"{name!r} is frozen and the mask trains part of it; unfreeze it")
        return {name: known[name] for name in self.shapes}

    def apply(self, model: nn.Module, *, check: bool = True) -> FisherMask:
        """Take this model as the one to train.

        A mask belongs to the very values it was scored at: what it does not keep must be what it was then.

        Args:
            model: The model.
            check: Whether to compare the values that the mask freezes with those it was made with.

        Returns:
            The mask itself.

        Raises:
            PlanMismatchError: The model has other parameters, or other values of the frozen entries.
        """
        parameters = self.parameters(model)
        other = changed(parameters, self.positions, self.meta.get("frozen", {})) if check else None
        if other is not None:
            raise PlanMismatchError(
                f"{other!r} has other values than when the mask was made, so the mask belongs to another adapter; make "
                "the adapter with the same seed (or load it), or pass check=False"
            )
        self._model = weakref.ref(bare_model(model))
        return self

    def optimizer(
        self,
        cls: Callable[..., torch.optim.Optimizer],
        *,
        model: nn.Module | None = None,
        head: Mapping[str, Any] | None = None,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> MaskedOptimizer:
        """Make an optimizer whose state exists for the kept entries only.

        The task head, and whatever else trains outside the mask, trains in full in groups of its own.

        Args:
            cls: An optimizer class whose step treats every entry on its own: ``AdamW`` (also ``fused=True``), ``SGD``.
                Adafactor works and keeps one number per kept entry, since a vector has nothing to factor.
            model: The model; the one the mask was made for or applied to by default.
            head: Options of the group that trains in full, such as ``{"lr": 1e-3}``.
            groups: Name pattern to options, such as ``{"*lora_B*": {"lr": 1e-3}}``; the first match counts.
            **options: What ``cls`` is told.

        Returns:
            The optimizer.

        Raises:
            UserError: A pattern matches nothing, or no model is known.
        """
        masked = self.parameters(model)
        dense = {
            name: parameter
            for name, parameter in self._bound(model).named_parameters()
            if parameter.requires_grad and name not in masked
        }
        patterns = {**(groups or {}), "*": {}}
        made: list[Group] = []
        for pattern, extra in patterns.items():
            ours = [name for name in masked if fnmatchcase(name, pattern)]
            theirs = [name for name in dense if fnmatchcase(name, pattern)]
            if pattern != "*" and not ours and not theirs:
                raise UserError(f"groups= pattern {pattern!r} matches no parameter that trains; check it")
            if ours:
                places = [self.positions[name] for name in ours]
                made.append(Group([masked.pop(name) for name in ours], places, extra))
            if theirs:
                rest = {**extra, **(head or {})} if pattern == "*" else extra
                made.append(Group([dense.pop(name) for name in theirs], None, rest))
        return MaskedOptimizer(cls, made, self.hash, **options)

    def callback(self) -> Any:
        """Make a callback for a Trainer that makes its optimizer itself.

        It silences the gradients of what is not kept and undoes what weight decay does to it.  The optimizer's state
        stays dense; ``optimizer`` is the small one.

        Returns:
            A ``transformers.TrainerCallback``.
        """
        from tailora.masks.callback import make_callback

        return make_callback(self)

    def save(self, path: str | Path) -> Path:
        """Write the mask.

        Args:
            path: A folder, or a file that ends in ``.safetensors``.

        Returns:
            The file.
        """
        return storage.write(path, storage.MASK_FILE, self.positions, self.shapes, self.meta, {})

    @classmethod
    def load(cls, path: str | Path) -> FisherMask:
        """Read a mask; ``apply`` names its model.

        Args:
            path: The folder or file.

        Returns:
            The mask.

        Raises:
            UserError: There is no mask, or the file is not whole.
        """
        positions, shapes, meta, _ = storage.read(path, storage.MASK_FILE)
        return cls(positions, shapes, meta)

    def save_compact(self, path: str | Path, *, model: nn.Module | None = None) -> Path:
        """Write what training changed and nothing else: the kept entries and the task head.

        Args:
            path: A folder, or a file that ends in ``.safetensors``.
            model: The model; the one the mask was made for or applied to by default.

        Returns:
            The file; about ``kept x (value + index)`` bytes, or ``kept x value`` and a bit per candidate entry.

        Raises:
            PlanMismatchError: Something that the mask freezes has changed, so the file could not bring it back.
        """
        return storage.write_compact(self, self._bound(model), path)

    @classmethod
    def load_compact(cls, model: nn.Module, path: str | Path) -> FisherMask:
        """Put the kept entries and the task head of a compact file into a model.

        Where the other entries of a parameter were all zero, they are set to zero; elsewhere the model must have the
        very values that were there, which it has when its adapter was made with the same seed.

        Args:
            model: The model with a fresh adapter; it has the file's exact values afterwards.
            path: The folder or file.

        Returns:
            The mask, for this model.

        Raises:
            PlanMismatchError: The model has other parameters, or other values; it is left as it was.
            UserError: There is no such file, or it is not whole.
        """
        positions, shapes, meta, tensors = storage.read(path, storage.COMPACT_FILE)
        mask = cls(positions, shapes, meta)
        storage.restore_compact(mask, bare_model(model), tensors)
        return mask.apply(model)

    def freeze(self, model: nn.Module | None = None) -> None:
        """Take the model's present values as those that the mask freezes, for ``apply`` and the compact file.

        Args:
            model: The model; the one the mask was made for or applied to by default.
        """
        self.meta["frozen"] = frozen_marks(self.parameters(model), self.positions)

    def _bound(self, model: nn.Module | None) -> nn.Module:
        """Return the model to work on."""
        if model is not None:
            return bare_model(model)
        found = None if self._model is None else self._model()
        if found is None:
            raise UserError("the mask does not know its model; call mask.apply(model) first, or pass model=")
        return found


def _numel(shape: tuple[int, ...]) -> int:
    """Return how many entries a shape has."""
    return torch.Size(shape).numel()
