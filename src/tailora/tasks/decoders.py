"""Whether a model can predict the next token at all: an encoder sees it."""

from __future__ import annotations

from typing import Any

from tailora.config import RunConfig
from tailora.errors import ConfigError
from tailora.surroundings import transformers_hushed


def check_decoder(config: RunConfig) -> None:
    """Refuse an encoder where a causal language model is needed, before its weights are read.

    transformers gives encoders such as BERT a causal head as well, newly initialised, and leaves their attention as it
    is: every token sees those that it would have to predict.

    Args:
        config: The run's configuration.

    Raises:
        ConfigError: The model is of a type with a head for masked tokens, and its configuration calls it no decoder.
    """
    found = _model_config(config)
    if found is None:
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = type(found)
    # Of an encoder-decoder the causal head uses the decoder.  XLM calls its switch "causal".
    decoder = any(getattr(found, name, False) for name in ("is_encoder_decoder", "is_decoder", "causal"))
    if decoder or kind not in MODEL_FOR_MASKED_LM_MAPPING:
        return
    switch = "causal" if hasattr(found, "causal") else "is_decoder"
    way = f", or set {switch}: true in its config.json if it was trained as a decoder"
    raise ConfigError(
        f"task.kind={config.task.kind!r} needs a causal language model, but {config.model!r} is an encoder "
        f"({found.model_type}), whose tokens see those that they would predict; use the task kind text-classification "
        f"(tailora profile: --task text-classification){way if kind in MODEL_FOR_CAUSAL_LM_MAPPING else ''}"
    )


def _model_config(config: RunConfig) -> Any:
    """Return the model's configuration; ``None`` where it cannot be read, which loading then says in its own words."""
    from transformers import AutoConfig

    hub = {"revision": config.revision} if config.revision else {}
    try:
        with transformers_hushed():
            return AutoConfig.from_pretrained(config.model, trust_remote_code=config.trust_remote_code, **hub)
    except Exception:
        return None
