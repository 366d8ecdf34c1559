"""The model in memory as lm-eval wants it."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tailora.evaluation import evaluating

if TYPE_CHECKING:
    from tailora.progress import Progress


@contextlib.contextmanager
def lent(model: Any, tokenizer: Any, *, batch_size: int, progress: Progress | None = None) -> Iterator[Any]:
    """Lend a causal language model to lm-eval; its modes and its weights are as before afterwards.

    Args:
        model: The model, adapted or not, on its device.
        tokenizer: Its tokenizer; lm-eval gets a copy, because it sets a padding token.
        batch_size: Sequences per forward pass.
        progress: Called as ``progress("harness", sequences done, requests)``.

    Yields:
        lm-eval's model, an ``HFLM``.
    """
    from lm_eval.models import huggingface

    # Its decorator hides the class from type checkers.
    base: Any = huggingface.HFLM

    class Adapted(base):
        """Tells how far it is."""

        _done = _total = 0

        def _began(self, requests: Any) -> None:
            self._done, self._total = 0, len(requests)

        def _advanced(self, sequences: int) -> None:
            # Requests that share a forward pass are fewer sequences than requests.
            self._done = min(self._done + sequences, self._total)
            if progress:
                progress("harness", self._done, self._total)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self._began(requests)
            return super().loglikelihood(requests, disable_tqdm)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self._began(requests)
            return super().loglikelihood_rolling(requests, disable_tqdm)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self._began(requests)
            return super().generate_until(requests, disable_tqdm)

        def _model_call(self, inps: Any, *arguments: Any, **named: Any) -> Any:
            self._advanced(len(inps))
            return super()._model_call(inps, *arguments, **named)

        def _model_generate(self, context: Any, *arguments: Any, **named: Any) -> Any:
            self._advanced(len(context))
            return super()._model_generate(context, *arguments, **named)

    with evaluating(model):
        # lm-eval ties the weights of whatever it is given; an adapted embedding or head must stay as it was trained.
        model.tie_weights = lambda *_, **__: None
        # It warns of every model that it has not loaded itself.
        logger = logging.getLogger("lm_eval.models.huggingface")
        logger.disabled = True
        try:
            wrapped = Adapted(
                pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, backend="causal"
            )
        finally:
            del model.tie_weights
            logger.disabled = False
        yield wrapped
