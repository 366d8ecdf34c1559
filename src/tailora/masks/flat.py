"""Parameters and gradients as views of one buffer, so that the kept entries are reached with one call each."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from tailora.errors import TailoraError

LIMIT = 2**31 - 1
"""Entries are numbered in int32, so a buffer holds no more of them than that."""

# Not an attribute of the parameter: that would travel with the model into every pickle.
_OWNERS = WeakTensorKeyDictionary()


class Flat:
    """Some parameters of one device and dtype, laid end to end, and which of their entries are kept.

    The parameters keep their names, shapes and identity; only their memory moves.  Where somebody moves them again
    (``model.to(...)``), ``settle`` brings them back together.

    Attributes:
        parameters: The parameters.
        kept: Positions of the kept entries in the buffer, int32, sorted.
        closed: Whether a newer buffer holds the parameters.
        paused: Whether gradients arrive in full for now.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], positions: Sequence[Tensor]) -> None:
        """Lay out the parameters.

        Args:
            parameters: Parameters of one device and dtype.
            positions: For each, its kept entries.
        """
        self.parameters = list(parameters)
        sizes = [parameter.numel() for parameter in self.parameters]
        self._offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        self._total = sum(sizes)
        moved = [place.long() + offset for place, offset in zip(positions, self._offsets, strict=True)]
        self.kept = torch.cat(moved).int()
        self._values: Tensor | None = None
        self._pointers: list[int] = []
        self._gradients: Tensor | None = None
        self._views: list[Tensor] = []
        self.closed = False
        self.paused = False
        for parameter in self.parameters:
            known = _OWNERS.get(parameter)
            previous = None if known is None else known()
            if previous is not None:
                previous.closed = True
            _OWNERS[parameter] = weakref.ref(self)
        self.settle()

    @property
    def size(self) -> int:
        """Number of kept entries."""
        return len(self.kept)

    def settle(self) -> bool:
        """Bring the parameters together where they are not, and the kept positions to their device.

        Returns:
            Whether anything had to be moved.

        Raises:
            TailoraError: The parameters now lie on several devices, or another mask holds them.
        """
        if self.closed:
            raise TailoraError(
                "these parameters belong to a newer masked optimizer or callback; use that one, or make a new one"
            )
        if self._pointers == [parameter.data_ptr() for parameter in self.parameters]:
            return False
        kinds = {(parameter.device, parameter.dtype) for parameter in self.parameters}
        if len(kinds) > 1:
            raise TailoraError(
                "the masked parameters were spread over several devices or dtypes after their optimizer was made; make "
                "it after placing the model"
            )
        with torch.no_grad():
            values = torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])
        for parameter, offset in zip(self.parameters, self._offsets, strict=True):
            parameter.data = values[offset : offset + parameter.numel()].view(parameter.shape)
        self._values = values
        self._pointers = [parameter.data_ptr() for parameter in self.parameters]
        self.kept = self.kept.to(values.device)
        return True

    @property
    def values(self) -> Tensor:
        """The buffer of values, ``[n]``."""
        if self._values is None:
            raise AssertionError("a buffer is settled when it is made")
        return self._values

    @property
    def gradients(self) -> Tensor:
        """The buffer of gradients, ``[n]``, on the device and in the dtype of the parameters."""
        first = self.parameters[0]
        if self._gradients is None or self._gradients.device != first.device or self._gradients.dtype != first.dtype:
            self._gradients = torch.zeros(self._total, dtype=first.dtype, device=first.device)
            self._views = [
                self._gradients[offset : offset + parameter.numel()].view(parameter.shape)
                for parameter, offset in zip(self.parameters, self._offsets, strict=True)
            ]
        return self._gradients

    def take_gradient(self, index: int) -> None:
        """Move the gradient of one parameter into the buffer.

        Args:
            index: Which parameter.
        """
        parameter = self.parameters[index]
        gradient = parameter.grad
        if gradient is None or (self._views and gradient is self._views[index]):
            return
        self.gradients  # noqa: B018  (makes the views)
        view = self._views[index]
        with torch.no_grad():
            view.copy_(gradient.to_dense() if gradient.layout != torch.strided else gradient)
        parameter.grad = view

    def gather_gradients(self, out: Tensor) -> bool:
        """Write the gradients of the kept entries to ``out``.

        A parameter without a gradient counts with a gradient of zero, as long as another one has any.

        Args:
            out: ``[kept]``.

        Returns:
            Whether any parameter has a gradient.
        """
        buffer = self.gradients
        missing = []
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                missing.append(self._views[index])
            else:
                self.take_gradient(index)
        if len(missing) == len(self.parameters):
            return False
        for view in missing:
            view.zero_()
        torch.index_select(buffer, 0, self.kept, out=out)
        return True

    def silence(self) -> None:
        """Set the gradients of all entries that are not kept to zero."""
        buffer = self.gradients
        with torch.no_grad():
            kept = buffer.index_select(0, self.kept)
            # Zero, rather than multiply by a mask: what is not finite must vanish too.
            buffer.zero_()
            put(buffer, self.kept, kept)

    def gather(self, out: Tensor | None = None) -> Tensor:
        """Return the values of the kept entries.

        Args:
            out: Where to write them, ``[kept]``.

        Returns:
            ``[kept]``.
        """
        return torch.index_select(self.values, 0, self.kept, out=out)

    def scatter(self, values: Tensor) -> None:
        """Write the values of the kept entries, and of no other.

        Args:
            values: ``[kept]``.
        """
        put(self.values, self.kept, values)


@contextlib.contextmanager
def unmasked(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let the gradients of parameters arrive in full for a while, whatever mask is at work on them.

    Args:
        parameters: The parameters.

    Yields:
        Nothing.
    """
    known = [_OWNERS.get(parameter) for parameter in parameters]
    owners = {flat for flat in (reference() for reference in known if reference is not None) if flat is not None}
    for flat in owners:
        flat.paused = True
    try:
        yield
    finally:
        for flat in owners:
            flat.paused = False


def put(buffer: Tensor, places: Tensor, values: Tensor) -> None:
    """Write values to places of a buffer.

    Args:
        buffer: ``[n]``.
        places: Different positions, ``[k]``, int32.
        values: ``[k]``.
    """
    # Only int64 is quick everywhere; made in pieces that fit a cache it takes next to no memory and time.
    step = 1 << 16 if buffer.device.type == "cpu" else 1 << 22
    for start in range(0, len(places), step):
        buffer.index_copy_(0, places[start : start + step].long(), values[start : start + step])


def lay_out(parameters: Iterable[tuple[nn.Parameter, Tensor]]) -> list[Flat]:
    """Lay parameters out in as few buffers as their devices, dtypes and sizes allow.

    Args:
        parameters: Parameters and their kept entries; those without any kept entry count too, since their gradients
            must be silenced.

    Returns:
        The buffers.
    """
    groups: list[tuple[Any, int, list[nn.Parameter], list[Tensor]]] = []
    for parameter, positions in parameters:
        kind = (parameter.device, parameter.dtype)
        for place, group in enumerate(groups):
            if group[0] == kind and group[1] + parameter.numel() <= LIMIT:
                groups[place] = (kind, group[1] + parameter.numel(), [*group[2], parameter], [*group[3], positions])
                break
        else:
            groups.append((kind, parameter.numel(), [parameter], [positions]))
    return [Flat(group[2], group[3]) for group in groups]
