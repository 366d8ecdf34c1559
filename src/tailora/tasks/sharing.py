"""What the runs of one process share: base models, tokenised data and profiles, each loaded once."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from tailora.artifacts import content_hash
from tailora.config import RunConfig
from tailora.config_files import fingerprint_path
from tailora.early_stopping import check_metric
from tailora.tasks.base import LoadedModel, Splits
from tailora.tasks.calibration import Prepared, known_scores, prepare

if TYPE_CHECKING:
    from tailora.profiles import Profile


class Shared:
    """Models, data and profiles that were needed before and may be needed again.

    Nothing in it is written to: runs copy the base model, and examples and profiles are only read.  Files enter the
    keys by their content, so data that changes between two runs is read again.

    Attributes:
        profiles: Profiles by their key; see ``cached_profile``.
    """

    def __init__(self, keep: int = 2):
        """Start empty.

        Args:
            keep: How many models, and how many data sets of each, are kept at once: those used last.
        """
        self.profiles: dict[str, Profile] = {}
        self._keep = keep
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()
        self._prepared: OrderedDict[str, Prepared] = OrderedDict()

    def prepare(self, config: RunConfig) -> Prepared:
        """Return a run's data and model, read and tokenised; see ``tasks.calibration.prepare``.

        Args:
            config: The run's configuration.

        Returns:
            What runs start from, shared with the runs of the same model and data.

        Raises:
            UserError: The data or the model cannot be used.
        """
        model, task = _model_facts(config), _task_facts(config)
        key = content_hash([model, task])
        found = self._prepared.get(key)
        if found is None:

            def key_of(splits: Splits) -> str:
                return content_hash([model, config.task.kind, _classes(splits)])

            found = prepare(config, known=lambda splits: self._models.get(key_of(splits)))
            _remember(self._models, key_of(found.splits), found.base, self._keep)
            if config.task.streaming:
                return found  # a stream is no data set: it belongs to the run that reads it
            _remember(self._prepared, key, found, self._keep**2)
        elif config.training.validates:
            check_metric(config.training, known_scores(config, found.splits.labels))
        self._prepared.move_to_end(key)
        return found


def _model_facts(config: RunConfig) -> dict[str, Any]:
    """Return what the loaded model depends on, but for the classes."""
    return {
        "model": fingerprint_path(config.model),
        "name": config.model,
        "revision": config.revision,
        "trusted": config.trust_remote_code,
        "quantization": config.quantization and config.quantization.model_dump(mode="json"),
        "use_cpu": config.training.use_cpu,
    }


def _task_facts(config: RunConfig) -> dict[str, Any]:
    """Return what the examples depend on besides the tokenizer."""
    task = config.task
    facts = task.model_dump(mode="json", exclude={"name"})
    contents = [fingerprint_path(place, pictures=True) for place in (task.train, task.evaluation) if place]
    return facts | {"contents": contents}


def _classes(splits: Splits) -> list[Any] | None:
    return None if splits.labels is None else list(splits.labels.names)


def _remember(kept: OrderedDict[str, Any], key: str, value: Any, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
