"""The loss of one example, made explicit: what the Fisher and the gradients are gradients of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailora.errors import ProfileError, UserError, unknown_name

IGNORED_LABEL = -100

Loss = Callable[[Any, Mapping[str, Any]], Tensor]
"""From the model's outputs and the batch to one loss per example, ``[n_examples]``."""


def causal_lm_loss(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """Return each sequence's mean negative log-likelihood over its own tokens.

    Args:
        outputs: Model outputs with ``logits [n, length, vocabulary]``.
        batch: With ``labels [n, length]``, -100 where a token does not count; shifted here.

    Returns:
        Nats per token, ``[n]``; 0 for an example without any counted token.
    """
    # Shifted labels rather than logits: those stay one piece of memory, which no copy is made of.
    return _token_means(outputs.logits, F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL))


def token_loss(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """Return each sequence's mean cross-entropy over its own labelled tokens, not shifted.

    For token classification, masked language models and the decoder of sequence-to-sequence models.

    Args:
        outputs: Model outputs with ``logits [n, length, classes]``.
        batch: With ``labels [n, length]``, -100 where a token does not count.

    Returns:
        Nats per token, ``[n]``; 0 for an example without any counted token.
    """
    return _token_means(outputs.logits, batch["labels"])


def causal_lm_sum(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """Return each sequence's negative log-likelihood, summed over its own tokens: long examples weigh more.

    Args:
        outputs: Model outputs with ``logits [n, length, vocabulary]``.
        batch: With ``labels [n, length]``, -100 where a token does not count; shifted here.

    Returns:
        Nats, ``[n]``.
    """
    return causal_lm_loss(outputs, batch) * _tokens("causal-lm", batch)


def token_sum(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """Return each sequence's cross-entropy, summed over its own labelled tokens, not shifted.

    Args:
        outputs: Model outputs with ``logits [n, length, classes]``.
        batch: With ``labels [n, length]``, -100 where a token does not count.

    Returns:
        Nats, ``[n]``.
    """
    return token_loss(outputs, batch) * _tokens("token", batch)


def classification_loss(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """Return each example's cross-entropy.

    Args:
        outputs: Model outputs with ``logits [n, classes]``.
        batch: With ``labels [n]``.

    Returns:
        Nats, ``[n]``.
    """
    return F.cross_entropy(_wide(outputs.logits), batch["labels"], reduction="none")


def regression_loss(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """Return each example's squared error (mean over its outputs).

    Args:
        outputs: Model outputs with ``logits [n, k]``.
        batch: With ``labels [n]`` or ``[n, k]``.

    Returns:
        ``[n]``.
    """
    logits = _wide(outputs.logits)
    labels = batch["labels"].to(logits.dtype).reshape(logits.shape)
    return ((logits - labels) ** 2).reshape(len(logits), -1).mean(dim=1)


LOSSES: dict[str, Loss] = {
    "causal-lm": causal_lm_loss,
    "causal-lm-sum": causal_lm_sum,
    "token": token_loss,
    "token-sum": token_sum,
    "classification": classification_loss,
    "regression": regression_loss,
}


def counted_examples(kind: str, batch: Mapping[str, Any], losses: Tensor) -> Tensor:
    """Return which examples have any label at all.

    Args:
        kind: Name of the loss.
        batch: The batch.
        losses: Losses ``[n]``.

    Returns:
        bool ``[n]``; an example without labels has no gradient and must not dilute a mean over examples.
    """
    if kind.startswith(("causal-lm", "token")):
        return _tokens(kind, batch) > 0
    return torch.ones(len(losses), dtype=torch.bool, device=losses.device)


def choose_loss(loss: str | Loss, model: nn.Module, outputs: Any, batch: Mapping[str, Any]) -> tuple[str, Loss]:
    """Decide which per-example loss applies and check it against the model's own.

    Args:
        loss: ``auto``, a name of ``LOSSES``, or a callable.
        model: The model, whose class tells causal language models apart.
        outputs: Its outputs on the first batch.
        batch: The first batch.

    Returns:
        The loss's name and function.

    Raises:
        UserError: The batch has no labels, or ``auto`` cannot decide.
        ProfileError: The model computes another loss than the one chosen.
    """
    if callable(loss):
        return getattr(loss, "__name__", "custom"), loss
    if batch.get("labels") is None:
        raise UserError("calibration batches must hold 'labels', or loss= must be a callable that needs none")
    name = _decide(model, outputs, batch) if loss == "auto" else loss
    if name not in LOSSES:
        raise unknown_name("loss", name, [*LOSSES, "auto"])
    _compare(name, model, outputs, batch)
    return name, LOSSES[name]


def _decide(model: nn.Module, outputs: Any, batch: Mapping[str, Any]) -> str:
    """Choose by the shapes of logits and labels, the model's class and, where it computes one, the model's own loss."""
    logits, labels = getattr(outputs, "logits", None), batch["labels"]
    if logits is None:
        raise UserError(f"{type(model).__name__} returns no logits; pass loss= a callable that returns [n_examples]")
    if logits.ndim == 2 and labels.ndim == 1:
        return "regression" if logits.shape[1] == 1 or labels.is_floating_point() else "classification"
    if logits.ndim == 3 and labels.ndim == 2 and not labels.is_floating_point():
        likely, other = ("causal-lm", "token") if _is_causal_lm(model) else ("token", "causal-lm")
        # Vision-language models and wrapped classes are in no table; their own loss tells whether labels are shifted.
        return other if _difference(likely, outputs, batch) and not _difference(other, outputs, batch) else likely
    raise UserError(
        f"no loss is known for logits {list(logits.shape)} and labels {list(labels.shape)} of {type(model).__name__}; "
        "pass loss= a callable that returns [n_examples]"
    )


def _is_causal_lm(model: nn.Module) -> bool:
    """Tell by transformers' own table whether the labels of a class are shifted."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = type(model).__name__
    known = {one for value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for one in _names(value)}
    return name in known and not getattr(getattr(model, "config", None), "is_encoder_decoder", False)


def _names(value: Any) -> tuple[str, ...]:
    """Return the class names of one table entry, which holds one or several."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _compare(name: str, model: nn.Module, outputs: Any, batch: Mapping[str, Any]) -> None:
    """Refuse to go on when the model's own batch loss is not the mean of the chosen one."""
    if found := _difference(name, outputs, batch):
        raise ProfileError(
            f"{type(model).__name__} computes the loss {found[0]:.6g} on the first batch and the {name!r} loss is "
            f"{found[1]:.6g}: it trains on something else; pass loss= a callable that returns its loss per example"
        )


def _difference(name: str, outputs: Any, batch: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the model's own batch loss and the mean of the named one where they differ."""
    theirs = getattr(outputs, "loss", None)
    if theirs is None:
        return None
    theirs = float(theirs.detach())
    with torch.no_grad():
        losses = LOSSES[name](outputs, batch).double()
        if name.startswith(("causal-lm", "token")):
            tokens = _tokens(name, batch).double()
            total = losses.sum() if name.endswith("-sum") else (losses * tokens).sum()
            ours = float(total / tokens.sum().clamp(min=1))
        else:
            ours = float(losses.mean())
    coarse = outputs.logits.dtype in (torch.float16, torch.bfloat16)
    return (theirs, ours) if abs(ours - theirs) > (5e-2 if coarse else 1e-3) * max(1.0, abs(ours)) else None


def _tokens(kind: str, batch: Mapping[str, Any]) -> Tensor:
    """Return how many tokens of each example count, ``[n]``."""
    labels = batch["labels"][:, 1:] if kind.startswith("causal-lm") else batch["labels"]
    return (labels != IGNORED_LABEL).reshape(len(labels), -1).sum(dim=1)


def _token_means(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of each row over its own counted tokens."""
    logits = _wide(logits)
    flat = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
    losses = flat.reshape(labels.shape)
    counts = (labels != IGNORED_LABEL).sum(dim=1)
    return losses.sum(dim=1) / counts.clamp(min=1)


def _wide(logits: Tensor) -> Tensor:
    """Return logits in at least float32, so that the log-softmax does not round."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
