"""What must be known of a model before its examples can be told apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tailora.signals.losses import Loss, choose_loss


def base_of(model: nn.Module) -> nn.Module:
    """Return the model below a peft wrapper, whose class tells what its labels mean.

    Args:
        model: A peft model or any other.

    Returns:
        The base model, or the model itself.
    """
    get = getattr(model, "get_base_model", None)
    return get() if callable(get) else model  # type: ignore[return-value]


def choose_loss_of(model: nn.Module, loss: str | Loss, outputs: Any, batch: Mapping[str, Any]) -> tuple[str, Loss]:
    """Decide which per-example loss applies to a model, adapted or not.

    Args:
        model: The model.
        loss: ``auto``, a name, or a callable.
        outputs: Its outputs on the first batch.
        batch: The first batch, its labels as long as the logits.

    Returns:
        The loss's name and function.
    """
    return choose_loss(loss, base_of(model), outputs, batch)


def virtual_tokens(model: nn.Module, outputs: Any, batch: Mapping[str, Any]) -> int:
    """Return by how many virtual tokens prompt tuning lengthens the logits.

    Args:
        model: The model.
        outputs: Its outputs.
        batch: The batch.

    Returns:
        0 for everything but prompt learning on token logits.
    """
    config = getattr(model, "active_peft_config", None)
    logits, labels = getattr(outputs, "logits", None), batch.get("labels")
    if not getattr(config, "is_prompt_learning", False) or not isinstance(logits, Tensor):
        return 0
    if not isinstance(labels, Tensor) or logits.ndim != 3 or labels.ndim != 2:
        return 0
    return max(logits.shape[1] - labels.shape[1], 0)


def labels_matter(model: nn.Module, batch: Mapping[str, Any], outputs: Any) -> bool:
    """Tell whether a model's logits depend on the labels it is given.

    They do where labels make the decoder's input; elsewhere they only make the model compute a loss that is not
    used, at the price of a second softmax over the vocabulary.

    Args:
        model: The model.
        batch: Some examples.
        outputs: The model's outputs on them.

    Returns:
        Whether labels must be given.
    """
    bare = {key: value for key, value in batch.items() if key != "labels"}
    if len(bare) == len(batch) or not bare:
        return True
    try:
        without = getattr(model(**bare), "logits", None)
    except Exception:
        # A model that cannot be called without labels needs them.
        return True
    given = getattr(outputs, "logits", None)
    if not isinstance(given, Tensor) or not isinstance(without, Tensor) or given.shape != without.shape:
        return True
    # Not a number is unlike itself: such logits say nothing, and labels are then kept.
    return not torch.equal(given, without)


@contextlib.contextmanager
def live_inputs(model: nn.Module) -> Iterator[None]:
    """Let the embeddings' output require a gradient while reentrant checkpointing is on, which else cuts the graph.

    Args:
        model: The model.

    Yields:
        Nothing; the hook is gone afterwards.
    """
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    get = getattr(model, "get_input_embeddings", None)
    table = None
    if checkpointed and callable(get):
        with contextlib.suppress(NotImplementedError, AttributeError):
            table = get()
    if not isinstance(table, nn.Module):
        yield
        return

    def need(module: nn.Module, args: Any, output: Any) -> Any:
        return output.requires_grad_(True) if isinstance(output, Tensor) and output.is_leaf else output

    handle = table.register_forward_hook(need)
    try:
        yield
    finally:
        handle.remove()
