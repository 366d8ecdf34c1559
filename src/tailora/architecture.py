"""A model's skeleton from its configuration alone: shapes without weights, for inspection and planning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tailora.errors import UserError, untrusted_code

if TYPE_CHECKING:
    from torch import nn


def load_architecture(model: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> nn.Module:
    """Build a model on the meta device.

    Args:
        model: A folder with ``config.json``, that file itself, or a hub id.
        revision: Hub revision.
        trust_remote_code: Whether code of the model's repository may run.

    Returns:
        The model of the configuration's own architecture (``AutoModel`` where it names none), without weights.

    Raises:
        UserError: There is no such model or no configuration in it.
    """
    import torch
    import transformers

    name = str(model)
    path = Path(name)
    if path.exists() and path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"folder {name!r} holds no config.json; give a model folder, its config.json or a hub id")
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"model {name!r} does not exist; give a model folder, its config.json or a hub id")
    try:
        config = transformers.AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if (untrusted := untrusted_code(name, error)) is not None:
            raise untrusted from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model {name!r} has no configuration that can be read ({reason}); check the folder or id"
        ) from None
    names = getattr(config, "architectures", None) or []
    architecture = getattr(transformers, names[0], None) if names else None
    try:
        with torch.device("meta"):
            if architecture is not None:
                return architecture(config)
            return transformers.AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model {name!r} cannot be built without its weights ({reason})") from None
