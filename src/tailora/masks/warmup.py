"""A few ordinary steps before scoring, so that no factor's Fisher is zero for want of the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tailora.errors import TrainingError, UserError
from tailora.signals.elementwise.model import choose_loss_of
from tailora.signals.examples import on_device
from tailora.signals.losses import Loss


@contextlib.contextmanager
def rewound(model: nn.Module, parameters: Sequence[nn.Parameter], *, rewind: bool) -> Iterator[None]:
    """Put values and buffers back afterwards, or only where the work fails.

    Args:
        model: The model.
        parameters: Those that train.
        rewind: Whether to put them back after success, too.

    Yields:
        Nothing.
    """
    kept = [(tensor, tensor.detach().clone()) for tensor in [*parameters, *model.buffers()]]
    done = False
    try:
        yield
        done = True
    finally:
        if rewind or not done:
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)


def warm_up(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Sequence[Mapping[str, Any]],
    *,
    steps: int,
    learning_rate: float,
    loss: str | Loss = "auto",
    seed: int = 0,
) -> list[float]:
    """Train with AdamW, one batch a step, from the first batch on and around again.

    Modes, gradients and the random state are as before afterwards; the parameters are not.

    Args:
        model: The model; in training mode meanwhile, with dropout drawn from ``seed``.
        parameters: What trains.
        batches: Dicts that the model is called with.
        steps: How many steps.
        learning_rate: AdamW's; no weight decay, gradients clipped to a norm of 1.
        loss: The model's own where it returns one; else as for the elementwise Fisher.
        seed: For dropout.

    Returns:
        The loss of every step.

    Raises:
        TrainingError: A loss is no finite number.
        UserError: There are no batches.
    """
    if not batches:
        raise UserError("there are no calibration batches; give at least one batch with labels")
    training = {module: module.training for module in model.modules()}
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    losses: list[float] = []
    devices = sorted({p.device for p in parameters if p.device.type == "cuda"}, key=str)
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            model.train()
            optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
            for step in range(steps):
                value = batch_loss(model, on_device(batches[step % len(batches)], model), loss)
                losses.append(float(value.detach()))
                if not torch.isfinite(value):
                    raise TrainingError(
                        f"the loss became {losses[-1]} at warm-up step {step + 1}; lower warmup_lr={learning_rate:g}"
                    )
                value.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()
        finally:
            for module, flag in training.items():
                module.training = flag
            for parameter, gradient in gradients:
                parameter.grad = gradient
    return losses


def batch_loss(model: nn.Module, batch: Mapping[str, Any], loss: str | Loss) -> Tensor:
    """Return the loss of a batch: the model's own where it returns one.

    Args:
        model: The model, called with the batch.
        batch: Labels included.
        loss: A callable from outputs and batch to one loss per example, or what ``profile`` takes.

    Returns:
        The mean.
    """
    outputs = model(**batch)
    if callable(loss):
        return loss(outputs, batch).mean()
    own = getattr(outputs, "loss", None)
    if isinstance(own, Tensor):
        return own
    return choose_loss_of(model, loss, outputs, batch)[1](outputs, batch).mean()
