"""Adapter folders: written whole, scored again, pushed to the hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailora.config import RunConfig, make_config
from tailora.errors import PlanMismatchError, TailoraError, UserError
from tailora.evaluation import Evaluation
from tailora.failures import is_out_of_memory, memory_advice
from tailora.harness import check_fit, check_harness, measure
from tailora.progress import Progress
from tailora.run_folders import stored
from tailora.stopping import Interrupted
from tailora.tasks.calibration import Prepared, device_of, prepare


def evaluate_adapter(
    adapter: str | Path,
    config: RunConfig | None = None,
    *,
    harness: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a saved adapter.

    Args:
        adapter: A run's folder, the ``adapter`` folder inside one, or any peft adapter folder.
        config: Base model and task; those of the run the adapter lies in when left out.
        harness: Keys of the section ``harness`` to change.  Other ``tasks`` begin a new section, which keeps only the
            places of the task files and their data.
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        What ``scores.json`` holds.

    Raises:
        UserError: There is no adapter, or no configuration, or the two do not fit.
    """
    from peft import PeftModel

    import tailora.bottleneck  # noqa: F401 - makes such adapters known to peft

    path = Path(adapter)
    if not (path / "adapter_config.json").is_file() and (path / "adapter" / "adapter_config.json").is_file():
        path = path / "adapter"
    if not (path / "adapter_config.json").is_file():
        raise UserError(f"{str(adapter)!r} holds no adapter_config.json; give an adapter folder or a run folder")
    if config is None:
        place = path.parent / "config.json"
        values = stored(place)
        if values is None:
            raise UserError(f"adapter {str(adapter)!r} lies in no run folder; give the task with a configuration")
        config = make_config(values, where=str(place))
    if harness:
        config = _with_harness(config, harness)
    check_harness(config)
    prepared = prepare(config)
    check_fit(config, prepared.base.model, prepared.base.tokenizer)
    _check_base(path, str(adapter), prepared.base.model, config.model)
    if progress:
        progress("evaluate", 0, 1)
    try:
        model = PeftModel.from_pretrained(prepared.base.model, str(path))
    # Whatever peft stumbles over, be it a damaged file or another model's adapter, lies in that folder.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise PlanMismatchError(
            f"adapter {str(adapter)!r} is damaged or does not fit model {config.model!r} ({one_line(error):.300}); "
            "give an adapter with its own base"
        ) from None
    with memory_advice(config, "evaluate"):
        scored = score(config, prepared, model.to(device_of(config)))
        if config.harness:
            scored = measure(config, model, prepared.base.tokenizer, progress=progress).joined(scored)
    if progress:
        progress("evaluate", 1, 1)
    return scored.scores()


def _with_harness(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return the configuration with keys of its section ``harness`` changed."""
    section = config.harness.model_dump() if config.harness else {}
    if "tasks" in changes:
        section = {key: section.get(key) for key in ("include_path", "data_root")}
    return make_config(config.to_dict() | {"harness": {**section, **changes}}, where="harness")


def _check_base(folder: Path, adapter: str, base: Any, model: str) -> None:
    """Refuse another model's adapter by the first matrix that it adapts and this model lacks."""
    values = stored(folder / "adapter_config.json")
    wanted = values.get("target_modules") if isinstance(values, dict) else None
    if not isinstance(wanted, list):
        return  # peft reads more forms than a list of names, and says itself what is wrong with a file
    names = [name for name, _ in base.named_modules()]
    names += [name for name, _ in base.named_parameters()]
    for target in sorted(str(name) for name in wanted):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise PlanMismatchError(
                f"adapter {adapter!r} adapts {target!r}, which model {model!r} lacks: it was trained on another model; "
                "give it with its own base"
            )


def score(config: RunConfig, prepared: Prepared, model: Any) -> Evaluation:
    """Evaluate a model on the evaluation examples.

    Args:
        config: The run's configuration.
        prepared: Its data.
        model: The model.

    Returns:
        The scores.
    """
    return prepared.task.evaluate(
        model,
        prepared.base.tokenizer,
        prepared.evaluation,
        batch_size=config.training.per_device_eval_batch_size,
        labels=prepared.splits.labels,
    )


def save_adapter(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the stock peft adapter with its tokenizer to a temporary folder, then rename it.

    Args:
        model: The peft model.
        tokenizer: Its tokenizer.
        folder: Where to; replaced if there.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".adapter-") as temporary:
        inner = Path(temporary) / "adapter"
        model.save_pretrained(inner)
        tokenizer.save_pretrained(inner)
        if folder.exists():
            shutil.rmtree(folder)
        inner.rename(folder)


def push_adapter(config: RunConfig, prepared: Prepared, folder: Path) -> None:
    """Push a saved adapter and its tokenizer to the hub.

    Args:
        config: The run's configuration, which names the repository.
        prepared: Its base model.
        folder: The adapter's folder.

    Raises:
        TailoraError: The hub refused, or cannot be reached; the adapter stays where it is.
    """
    from peft import PeftModel
    from transformers import AutoTokenizer

    training, name = config.training, str(config.training.hub_model_id)
    model = PeftModel.from_pretrained(prepared.base.fresh(config.seed).model, str(folder))
    try:
        for part in (model, AutoTokenizer.from_pretrained(folder)):
            part.push_to_hub(name, private=training.hub_private_repo)
    except Exception as error:
        raise TailoraError(
            f"pushing to training.hub_model_id={name!r} failed ({one_line(error):.300}); the adapter "
            f"is in {str(folder)!r}; log in with 'hf auth login' and run the same command again"
        ) from error


def one_line(error: BaseException) -> str:
    """Return an error's text on one line, with its kind unless it is a sentence of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, TailoraError | Interrupted) else f"{type(error).__name__}: {text}"
