"""How a prefix enters attention, and how the layers of a block learn which tokens are real.

An attention module asks its configuration by which function it shall compute.  A view of that configuration, held by
the module in its place, answers with the function below, which adds the prefix and calls the function that the model
is set to.  Masks and everything else are made by the model as before, and the setting may change at any time.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tailora.errors import TailoraError, UserError

NAME = "tailora_unipelt"
IMPLEMENTATIONS = ("eager", "sdpa")
"""What attention must be computed by for a prefix to enter it."""


class Share:
    """What the layers of one block hand to each other during a forward pass.

    Attributes:
        real: Which tokens are no padding, bool ``[n, t]``; ``None`` where all are, or nobody knows.
        prefix: Keys and values ``[n, length, 2, width]`` and their gate ``[n, 1]`` or ``[n, t]``, from the query
            projection to the attention function.
    """

    def __init__(self) -> None:
        """Hold nothing."""
        self.real: Tensor | None = None
        self.prefix: tuple[Tensor, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a pass that is over."""
        return {"real": None, "prefix": None}


class ConfigView:
    """A model's configuration as its attention modules see it.

    Attributes:
        base: The configuration itself.
        share: Of the block.
        handle: Removes the hook that reads masks.
    """

    def __init__(self, base: Any, share: Share, handle: Any) -> None:
        """See ``base`` with another attention function."""
        self.base, self.share, self.handle = base, share, handle

    @property
    def _attn_implementation(self) -> str:
        return NAME

    def __getattr__(self, name: str) -> Any:
        """Answer everything else as the configuration does."""
        if name == "base" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self.base, name)


class MaskReader:
    """A forward pre-hook of an attention module: notes which tokens are real.

    It stands inside what gradient checkpointing computes again, where a hook of the block would not.

    Args:
        share: Where it is noted.
        place: Position of the mask among the arguments.
    """

    def __init__(self, share: Share, place: int) -> None:
        """Read for one block."""
        self.share, self.place = share, place

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the mask of one call."""
        mask = kwargs.get("attention_mask", args[self.place] if len(args) > self.place else None)
        self.share.real = real_tokens(mask)


def own_config(attention: Any) -> Any:
    """Return the configuration of an attention module, also where the module holds a view of it.

    Args:
        attention: The attention module.

    Returns:
        The model's configuration.
    """
    return attention.config.base if isinstance(attention.config, ConfigView) else attention.config


def real_tokens(mask: Tensor | None) -> Tensor | None:
    """Return which tokens somebody may look at.

    Args:
        mask: ``None``, bool, or what is added to the scores; ``[n, heads or 1, queries, keys]``.

    Returns:
        Bool ``[n, keys]``, or ``None`` without a mask.
    """
    if mask is None or mask.ndim != 4:
        return None
    # transformers' masks add the least number of a dtype; -10000 is an older habit.
    seen = mask if mask.dtype == torch.bool else mask > -1e3
    return seen[:, 0].any(dim=-2)


def share_of(attention: Any) -> Share:
    """Return the share of a block, and make its attention module use it.

    Args:
        attention: The attention module; changed where this is the first call.

    Returns:
        The block's share.
    """
    if isinstance(attention.config, ConfigView):
        return attention.config.share
    share = Share()
    place = list(inspect.signature(attention.forward).parameters).index("attention_mask")
    handle = attention.register_forward_pre_hook(MaskReader(share, place), with_kwargs=True)
    attention.config = ConfigView(attention.config, share, handle)
    return share


def release(model: nn.Module) -> None:
    """Give attention modules their own configuration back.

    Args:
        model: The model; changed.
    """
    for module in model.modules():
        held: Any = getattr(module, "config", None)
        if isinstance(held, ConfigView):
            held.handle.remove()
            module.config = held.base  # type: ignore[assignment]


def unipelt_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Compute attention with the block's prefix, by the function that the model is set to.

    A gate that is one number per example multiplies the prefix's keys and values.  A gate per position g_t makes
    scores ``g_t q_t . K`` and additions ``p_t g_t V``: with queries ``[q_t, g_t q_t]``, keys ``[k, 0]`` for tokens and
    ``[0, K]`` for the prefix and values laid out alike, any attention function computes that.

    Args:
        module: The attention module.
        query: ``[n, heads, t, d]``.
        key: ``[n, key heads, s, d]``.
        value: ``[n, key heads, s, d]``.
        attention_mask: ``None``, bool or additive, ``[n, 1, t, s]``.
        **kwargs: Handed on.

    Returns:
        Outputs ``[n, t, heads, d]`` and, where the function returns them, probabilities with the prefix first.

    Raises:
        UserError: The model's attention function is none that a prefix can enter.
    """
    view: ConfigView = module.config
    name = own_config(module)._attn_implementation
    eager = inspect.unwrap(type(module).forward).__globals__["eager_attention_forward"]
    compute = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    offered, view.share.prefix = view.share.prefix, None
    if offered is None:
        return compute(module, query, key, value, attention_mask, **kwargs)
    if name not in IMPLEMENTATIONS:
        raise UserError(f"attention is computed by {name!r}; set_attn_implementation('sdpa') lets UniPELT's prefix in")
    both, gate = (tensor.to(key.dtype) for tensor in offered)
    length, width = both.shape[1], key.shape[-1]
    # One axis for keys and values, then [n, key heads, length, d] of each.
    prefix = both.reshape(*both.shape[:3], key.shape[1], width).permute(2, 0, 3, 1, 4)
    if kwargs.get("scaling") is None:
        kwargs["scaling"] = width**-0.5
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if attention_mask is None and name == "sdpa" and causal and query.shape[2] > 1:
        # What the function would do by itself: the first token sees the first key.
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()[
            None, None
        ]
    mask = _with_prefix(attention_mask, key.shape[2], length)
    if gate.shape[1] == 1:
        prefix = prefix * gate[None, :, :, None, None]
        keys, values = (torch.cat([mine, own], dim=2) for mine, own in zip(prefix, (key, value), strict=True))
        return compute(module, query, keys, values, mask, **kwargs)
    queries = torch.cat([query, query * gate[:, None, :, None]], dim=-1)
    zero, none = torch.zeros_like(prefix[0]), torch.zeros_like(key)
    keys, values = (
        torch.cat([torch.cat([zero, mine], dim=-1), torch.cat([own, none], dim=-1)], dim=2)
        for mine, own in zip(prefix, (key, value), strict=True)
    )
    output, probabilities = compute(module, queries, keys, values, mask, **kwargs)
    return output[..., :width] + output[..., width:] * gate[:, :, None, None], probabilities


def _with_prefix(mask: Tensor | None, keys: int, length: int) -> Tensor | None:
    """Let every query see the prefix, which stands first."""
    if mask is None:
        return None
    mask = mask[..., :keys]
    open_to_all = mask.new_full((*mask.shape[:-1], length), 1 if mask.dtype == torch.bool else 0)
    return torch.cat([open_to_all, mask], dim=-1)


def register_attention() -> None:
    """Make the function known to transformers; a second call changes nothing.

    Raises:
        TailoraError: Another package has a function of this name.
    """
    if NAME in ALL_ATTENTION_FUNCTIONS and ALL_ATTENTION_FUNCTIONS[NAME] is not unipelt_attention:
        raise TailoraError(f"transformers already has an attention function called {NAME!r}; load one of them only")
    ALL_ATTENTION_FUNCTIONS.register(NAME, unipelt_attention)
