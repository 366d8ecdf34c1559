"""Profiles: all signals of one model on one data set, measured in one pass, saved and reused."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tailora._version import __version__
from tailora.artifacts import canonical_json, json_text, read_json, write_together
from tailora.errors import PlanMismatchError, UserError
from tailora.placement import select
from tailora.targets import Target, find_targets

if TYPE_CHECKING:
    from torch import nn

    from tailora.signals.losses import Loss

FORMAT = "tailora-profile/1"
SUMS = "sums.safetensors"
"""The file of a profile's folder that holds its sums."""
REDUCTIONS = {
    "causal-lm": "mean over an example's own tokens",
    "token": "mean over an example's own tokens",
    "causal-lm-sum": "sum over an example's own tokens",
    "token-sum": "sum over an example's own tokens",
}
"""How the tokens of one example make its loss, by name of the loss."""


@dataclass(frozen=True)
class Profile:
    """Signals per target.

    Attributes:
        targets: What was measured, in the model's order.
        signals: Signal name to float64 array, first axis in target order; ``fisher`` is the trace per target
            ``[n_targets]``, ``gradient_spectrum`` singular values ``[n_targets, k]``.
        meta: How it was measured: model and data fingerprints, loss, reduction, examples, versions, seconds.
        sums: The tensors that the signals were read from, where they were kept; profiles that have them can be merged.
    """

    targets: tuple[Target, ...]
    signals: Mapping[str, np.ndarray]
    meta: Mapping[str, Any] = field(default_factory=dict)
    sums: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 over targets, signal values and what they were measured on (not how long it took)."""
        kept = {key: value for key, value in self.meta.items() if key not in ("seconds", "versions")}
        digest = hashlib.sha256(canonical_json([[t.to_dict() for t in self.targets], kept]).encode())
        for name in sorted(self.signals):
            values = np.ascontiguousarray(self.signals[name], dtype=np.float64)
            digest.update(canonical_json([name, list(values.shape)]).encode())
            digest.update(values.tobytes())
        return digest.hexdigest()

    def scalar(self, name: str) -> dict[str, float]:
        """Return one number per target, for figures.

        Args:
            name: A signal of this profile.

        Returns:
            Target name to value; of a spectrum, its energy (sum of squares).

        Raises:
            UserError: The profile does not hold the signal.
        """
        if name not in self.signals:
            raise UserError(f"the profile holds {', '.join(self.signals) or 'no signal'}, not {name!r}; profile again")
        values = np.asarray(self.signals[name], dtype=np.float64)
        values = values if values.ndim == 1 else (values.reshape(len(values), -1) ** 2).sum(axis=1)
        return {target.name: float(value) for target, value in zip(self.targets, values, strict=True)}

    def check(self, model: nn.Module) -> None:
        """Refuse a model that this profile was not measured on.

        Args:
            model: The model.

        Raises:
            PlanMismatchError: Its targets or weights differ.
        """
        from tailora.fingerprints import model_fingerprint

        theirs = {target.name: target for target in find_targets(model)}
        for mine in self.targets:
            if theirs.get(mine.name) != mine:
                raise PlanMismatchError(
                    f"the profile's target {mine.name!r} {list(mine.shape)} differs in this model; profile again"
                )
        if self.meta.get("model") != model_fingerprint(model):
            raise PlanMismatchError("the model's weights are not those the profile was measured on; profile again")

    def save(self, folder: str | Path) -> Path:
        """Write ``profile.safetensors`` and, last, ``profile.json``.

        Args:
            folder: Where to; made if missing.

        Returns:
            The folder.
        """
        from safetensors.numpy import save

        folder = Path(folder)
        mine = self.hash
        data = {
            "format": FORMAT,
            "hash": mine,
            "meta": dict(self.meta),
            "signals": {name: list(np.shape(values)) for name, values in self.signals.items()},
            "targets": [target.to_dict() for target in self.targets],
        }
        arrays = {name: np.ascontiguousarray(values, dtype=np.float64) for name, values in self.signals.items()}
        sums = None
        if self.sums is not None:
            from safetensors.torch import save as save_tensors

            sums = save_tensors(dict(self.sums), {"profile": mine})
        # The JSON comes last and holds the hash, so a folder cut off in between cannot be taken for a profile; sums of
        # an earlier profile in this folder go.
        files = {"profile.safetensors": save(arrays), SUMS: sums, "profile.json": json_text(data).encode()}
        write_together(folder, files)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Profile:
        """Read a saved profile and verify its hash.

        Args:
            folder: The folder ``save`` wrote.

        Returns:
            The profile.

        Raises:
            UserError: It is missing, no profile, or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(folder)
        if not (folder / "profile.json").is_file():
            raise UserError(
                f"{str(folder)!r} holds no profile (profile.json is missing); make one with 'tailora profile'"
            )
        data = read_json(folder / "profile.json", "profile")
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise UserError(f"{str(folder / 'profile.json')!r} is not a profile of format {FORMAT!r}; profile again")
        try:
            arrays = load_file(folder / "profile.safetensors")
            profile = cls(
                targets=tuple(Target.from_dict(entry) for entry in data["targets"]),
                signals={name: arrays[name] for name in data["signals"]},
                meta=data["meta"],
            )
            found = profile.hash
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"the profile in {str(folder)!r} is damaged ({error}); profile again") from None
        if found != data.get("hash"):
            raise UserError(f"the profile in {str(folder)!r} was changed after it was made; profile again")
        return profile


def profile(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]] = (),
    signals: Sequence[str] = ("fisher", "gradient_spectrum"),
    *,
    placement: str = "all-linear",
    targets: Sequence[Target] | None = None,
    loss: str | Loss = "auto",
    labels: str = "data",
    mode: str = "eval",
    check: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    until: float | None = None,
    on_nonfinite: str = "raise",
    pooling: str = "mean",
    options: Mapping[str, Any] | None = None,
    keep_sums: bool = False,
    all_processes: bool = True,
    resume: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Profile:
    """Measure signals in one pass over calibration batches; ``newton_spectrum`` takes several.

    The base model may be frozen or not, quantised or not, and needs no adapter; its state, random state, training mode
    and ``requires_grad`` flags are afterwards as before, also after an error.  The Fisher is the mean over *examples*
    of the squared gradient of each example's own loss.  Where whole batches would not be exact (flattened, shared or
    expert-routed inputs) examples are taken one at a time, and ``meta["one_by_one"]`` says why.  Under
    ``torch.distributed`` every process gives its share of the batches and gets the profile of all of them.

    ``adapter_output_norm`` alone is measured on a model *with* a LoRA, in a profile of its own: of the targets that
    carry one, under their names in the base model and with its fingerprint, so that the profile serves plans for it.

    Args:
        model: A transformers model, or any module whose outputs have ``logits``; for ``adapter_output_norm`` a peft
            model.
        batches: Dicts of tensors the model is called with, labels included; entries whose names begin with ``loss_``
            are for the loss alone.  May be left out for signals of the weights.
        signals: Names of registered signals.
        placement: Which targets to measure.
        targets: The targets themselves, instead of a placement.
        loss: ``auto`` (each example's mean over its own tokens; checked against the model's own loss), ``causal-lm``,
            ``token``, their sums ``causal-lm-sum`` and ``token-sum``, ``classification``, ``regression``, or a callable
            from outputs and batch to ``[n_examples]``.  A callable may return fewer values than the batch has rows: the
            rows of one example (a chosen and a rejected answer) then stand together.
        labels: ``data``, or ``model``: labels drawn from the model's predictions make ``fisher`` the true Fisher.
        mode: ``eval``, or ``train`` with the model's own dropout.
        check: Compare two examples of the first batch with their gradients taken alone.
        seed: For signals and labels that are drawn at random.
        batch_size: Regroup the rows by length into batches of this size and cut padding off: faster, and the same
            values.
        until: Stop before the batches end once the Fisher traces of the data's two halves rank the targets alike, as a
            Spearman correlation such as 0.95; needs the signal ``fisher``.
        on_nonfinite: ``raise``, or ``skip`` examples whose loss or gradient is not finite (named in ``meta``).
        pooling: How a block's hidden states become one vector an example, for ``intrinsic_dimension``: ``mean`` over
            real tokens, ``last`` or ``first`` real token.
        options: Further options of signals, such as ``{"sketch": 256}`` or ``{"newton_iterations": 16}``.
        keep_sums: Keep what the signals were read from, so that the profile can be merged with others of the model.
        all_processes: Under ``torch.distributed``, whether every process measures a share and all of them get the
            whole; else this process measures for itself.
        resume: A file to keep the sums of an unfinished pass in, and to continue from where it exists.
        progress: Called with the number of examples seen so far.

    Returns:
        The profile.

    Raises:
        UserError: An unknown signal or option, no batches, or batches without labels.
        ProfileError: A gradient is not finite or the loss is not the model's.
    """
    import torch

    from tailora.fingerprints import DataFingerprint, model_fingerprint
    from tailora.packed import count_weights
    from tailora.signals.adapted import adapted
    from tailora.signals.batching import checked, refuse_flattened, refuse_uneven, sort_by_length
    from tailora.signals.collect import Collecting, collect
    from tailora.signals.options import check_options

    if isinstance(signals, str):
        raise UserError(f"signals must be a list of names such as ({signals!r},), not one text")
    if not signals:
        raise UserError("signals is empty; name at least one, such as 'fisher'")
    given = {"labels": labels, "mode": mode, "on_nonfinite": on_nonfinite, "pooling": pooling}
    check_options(signals, until=until, resume=resume, keep_sums=keep_sums, options=options, **given)
    base, meta_of_adapter = model, {}
    if _of_adapters(signals):
        view = adapted(model, placement, targets)
        model, base, chosen = view.model, view.base, view.targets
        meta_of_adapter = {"adapter": {"names": list(view.names), "fingerprint": view.fingerprint}}
    else:
        chosen = tuple(select(find_targets(model), placement) if targets is None else targets)
    data = DataFingerprint()
    looks = any(target.stack == "vision" for target in chosen)
    config = getattr(model, "config", None)
    image_token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)

    def seen() -> Iterator[Mapping[str, Any]]:
        given = checked(batches)
        for batch in given if batch_size is None else sort_by_length(given, batch_size):
            refuse_uneven(batch, image_token)
            if looks:
                refuse_flattened(batch)
            data.update(batch)
            yield batch

    started = time.perf_counter()
    how = Collecting(
        loss=loss,
        labels=labels,
        mode="train" if mode == "train" else "eval",
        check=check,
        seed=seed,
        on_nonfinite=on_nonfinite,
        until=until,
        resume=None if resume is None else Path(resume),
        pooling=pooling,
        options=dict(options or {}),
        keep_sums=keep_sums,
        all_processes=all_processes,
        progress=progress,
    )
    found = collect(model, chosen, seen(), signals, how)
    meta = {
        "model": model_fingerprint(base),
        "model_class": type(base).__name__,
        "model_type": getattr(config, "model_type", None),
        "model_params": count_weights(base),
        "dtype": str(next(base.parameters()).dtype).removeprefix("torch."),
        "data": data.hexdigest(),
        "placement": placement if targets is None else "given",
        "examples": found.examples,
        "batches": found.batches,
        "loss": found.loss,
        "loss_reduction": REDUCTIONS.get(found.loss, "per example") if found.loss else "",
        "labels": labels,
        "pooling": pooling,
        "mean_loss": found.mean_loss,
        "mode": mode,
        "one_by_one": found.one_by_one,
        "skipped": list(found.skipped),
        "stability": found.stability,
        "calibration_curve": [list(point) for point in found.curve],
        "options": dict(options or {}),
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 3),
        "versions": {"tailora": __version__, "torch": torch.__version__, "numpy": np.__version__},
    }
    return Profile(chosen, found.signals, meta | dict(found.notes) | meta_of_adapter, found.sums)


def _of_adapters(signals: Sequence[str]) -> bool:
    """Tell whether the signals are read from a model with LoRA rather than from a base model."""
    from tailora.signals import SIGNALS

    kinds = {name: SIGNALS[name].adapter for name in signals}
    if len(set(kinds.values())) > 1:
        adapter, other = (next(name for name, kind in kinds.items() if kind == flag) for flag in (True, False))
        raise UserError(
            f"{adapter!r} is measured on a model with LoRA and {other!r} on the base model; measure them in two "
            "profiles"
        )
    return any(kinds.values())
