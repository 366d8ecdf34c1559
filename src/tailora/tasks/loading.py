"""Loading models and tokenizers, with a sentence for everything that can be wrong with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tailora.config import RunConfig
from tailora.errors import ConfigError, untrusted_code
from tailora.requirements import check_quantization
from tailora.surroundings import transformers_hushed
from tailora.tasks.base import LoadedModel
from tailora.tasks.quantizing import HEADS, modules_to_skip, quantized_arguments, settle

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "vocab.bpe")


def load_model(config: RunConfig, auto_class: Any, **arguments: Any) -> LoadedModel:
    """Load a model in float32, or quantised, with its tokenizer, from safetensors only.

    Args:
        config: The run's configuration.
        auto_class: One of transformers' ``AutoModelFor...``.
        **arguments: Passed on to ``from_pretrained``.

    Returns:
        The model and tokenizer; the global random state is left as it was.

    Raises:
        ConfigError: No such model, no safetensors, or it does not fit the task.
    """
    loaded = load_weights(config, auto_class, **arguments)
    # No loading report: a new head is what we asked for.
    with transformers_hushed():
        tokenizer = load_tokenizer(config.model, **_hub_arguments(config))
    if tokenizer.pad_token is None:
        raise ConfigError(f"the tokenizer of {config.model!r} has neither a padding nor an end token; add one to it")
    if loaded.model.config.get_text_config().pad_token_id is None:
        loaded.model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return replace(loaded, tokenizer=tokenizer)


def load_weights(config: RunConfig, auto_class: Any, **arguments: Any) -> LoadedModel:
    """Load a model in float32, or quantised, from safetensors only, and say which weights are new; see ``load_model``.

    Args:
        config: The run's configuration.
        auto_class: One of transformers' ``AutoModelFor...``.
        **arguments: Passed on to ``from_pretrained``.

    Returns:
        The model without a tokenizer.

    Raises:
        ConfigError: No such model, no safetensors, or it does not fit the task.
    """
    check_folder(config.model)
    check_quantization(config)
    model, modules = _load(config, auto_class, arguments | quantized_arguments(config))
    if config.quantization is not None:
        # Which modules are new is only known now; a new one must train, which packed weights cannot.
        if skip := modules_to_skip(model, modules, config.quantization.skip_modules):
            del model
            model, modules = _load(config, auto_class, arguments | quantized_arguments(config, skip))
        settle(model)
    top = tuple(dict.fromkeys(name.split(".")[0] for name in modules))
    return LoadedModel(model, None, top, modules)


def _load(config: RunConfig, auto_class: Any, arguments: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """Return the model and the names of its modules whose weights are new."""
    import torch
    from safetensors import SafetensorError

    with torch.random.fork_rng(), transformers_hushed():
        torch.manual_seed(config.seed)
        try:
            model, report = auto_class.from_pretrained(
                config.model,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **_hub_arguments(config),
                **arguments,
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            if (untrusted := untrusted_code(config.model, error)) is not None:
                raise untrusted from None
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"model {config.model!r} cannot be loaded: {reason}; check the id or folder and the network"
            ) from None
    missing = sorted(set(report["missing_keys"]) | {_key(entry) for entry in report.get("mismatched_keys", ())})
    return model, tuple(dict.fromkeys(name.rpartition(".")[0] for name in missing))


def with_head(config: RunConfig, loaded: LoadedModel) -> LoadedModel:
    """Return the loaded model with the head among the modules that train fully.

    The head always trains, also where the checkpoint brings one of the right size.  A new pooler inside the encoder is
    named by its own path: training its whole parent would train the encoder.

    Args:
        config: The run's configuration, for messages.
        loaded: A model with a head.

    Returns:
        The same model and tokenizer.

    Raises:
        ConfigError: The model has no head that can be trained.
    """
    heads = [name for name in HEADS if hasattr(loaded.model, name)]
    modules = tuple(dict.fromkeys((*loaded.new_modules, *heads)))
    if not modules:
        kind = type(loaded.model).__name__
        raise ConfigError(f"model {config.model!r} ({kind}) has no classification head that can be trained")
    units: list[str] = []
    for name in modules:
        inside = [weight for weight in loaded.new_weights if weight.split(".")[0] == name]
        units += inside if name == loaded.model.base_model_prefix else [name]
    return replace(loaded, new_modules=tuple(dict.fromkeys(units)))


def class_arguments(names: tuple[str, ...]) -> dict[str, Any]:
    """Return what ``from_pretrained`` needs for a head with one output per class."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        "ignore_mismatched_sizes": True,
    }


def load_tokenizer(source: str, **arguments: Any) -> Any:
    """Load a tokenizer that pads on the right with a padding token.

    Args:
        source: Hub id or folder.
        **arguments: Passed on to ``from_pretrained``.

    Returns:
        The tokenizer.

    Raises:
        ConfigError: There is none.
    """
    from transformers import AutoTokenizer

    folder = Path(source)
    # transformers makes up an empty tokenizer for a known architecture, which would read every text as unknown words.
    if folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ConfigError(f"model folder {source!r} has no tokenizer; add its files, such as tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if (untrusted := untrusted_code(source, error)) is not None:
            raise untrusted from None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"model {source!r} has no usable tokenizer: {reason}; add its tokenizer files") from None
    # Padding on the right keeps positions equal to those of the unpadded text for every kind of position encoding.
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def check_folder(model: str) -> None:
    """Refuse a model folder that is missing or holds pickled weights only.

    Args:
        model: Hub id or folder; a hub id passes.

    Raises:
        ConfigError: The folder cannot be used.
    """
    path = Path(model)
    if path.is_file():
        raise ConfigError(f"model {model!r} is a file; give the folder it lies in")
    if not path.exists():
        if path.is_absolute() or model[0] in ".~":
            raise ConfigError(f"model folder {model!r} does not exist; check the path or give a hub id")
        return
    if not (path / "config.json").is_file():
        raise ConfigError(f"model folder {model!r} has no config.json; give the folder that save_pretrained wrote")
    if not any(path.glob("*.safetensors")):
        pickled = next((file.name for file in sorted(path.iterdir()) if file.suffix in {".bin", ".pt", ".pth"}), None)
        found = f"only the pickle {pickled}" if pickled else "no weights"
        raise ConfigError(
            f"model folder {model!r} holds {found}, but weights are read from safetensors alone (a pickle can run "
            "code); save the model with save_pretrained"
        )


def _hub_arguments(config: RunConfig) -> dict[str, Any]:
    common: dict[str, Any] = {"revision": config.revision} if config.revision else {}
    return common | {"trust_remote_code": config.trust_remote_code}


def _key(entry: Any) -> str:
    return entry if isinstance(entry, str) else str(entry[0])
