"""Optional packages that a configuration asks for, looked up before any work is done."""

from __future__ import annotations

from importlib.util import find_spec

from tailora.config import RunConfig
from tailora.errors import ConfigError


def check_packages(config: RunConfig) -> None:
    """Refuse trackers, quantised bases and optimizers whose package is not installed.

    Args:
        config: The run's configuration.

    Raises:
        ConfigError: A package is missing; the sentence names what to install.
    """
    training = config.training
    for name in training.report_to:
        # transformers also takes tensorboardX.
        modules = (name, "tensorboardX") if name == "tensorboard" else (name,)
        if not any(_is_there(module) for module in modules):
            package = name.replace("_", "-")
            raise ConfigError(
                f"training.report_to={name!r} needs the package {package!r}, which is not installed; run 'pip install "
                f"{package}', or leave the tracker out"
            )
    check_quantization(config)
    # paged_adamw_32bit and the 8-bit optimizers are all of bitsandbytes.
    if training.optim.endswith("bit") and not _is_there("bitsandbytes"):
        raise ConfigError(_missing(f"training.optim={training.optim}", "bitsandbytes"))


def check_quantization(config: RunConfig) -> None:
    """Refuse a quantised base whose package is not installed.

    Args:
        config: The run's configuration.

    Raises:
        ConfigError: The package is missing; the sentence names what to install.
    """
    wanted = config.quantization
    if wanted is not None and not _is_there(wanted.package):
        raise ConfigError(_missing(wanted.key, wanted.package))


def _missing(key: str, package: str) -> str:
    return (
        f"{key} needs the package {package!r}, which is not installed; run 'pip install tailora[quantized]', or leave "
        "it out"
    )


def _is_there(module: str) -> bool:
    return find_spec(module) is not None
