"""Quantised bases: what ``from_pretrained`` is told, what stays as it is, and what must not change later."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from tailora.config import RunConfig
from tailora.packed import is_packed

HEADS = ("classifier", "score")
"""What transformers calls the heads that train in full."""


def quantized_arguments(config: RunConfig, skip: Iterable[str] = ()) -> dict[str, Any]:
    """Return what ``from_pretrained`` needs for the base that a configuration asks for.

    Args:
        config: The run's configuration.
        skip: Modules that stay as they are; where there are none, the library chooses (the output embedding).

    Returns:
        ``quantization_config`` and ``device_map``; nothing for a base in float32.
    """
    wanted = config.quantization
    if wanted is None:
        return {}
    from transformers import BitsAndBytesConfig, TorchAoConfig

    from tailora.tasks.calibration import device_of

    kept = [*wanted.skip_modules, *skip] or None
    if wanted.torchao:
        from torchao.quantization import Int8WeightOnlyConfig

        # torchao is asked about weights rather than modules, by the ends of their names.
        weights = kept and [*kept, *(f"{name}.weight" for name in kept)]
        quantization: Any = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=weights)
    else:
        # It warns at every product that float32 inputs are rounded, which is what 8 bits mean.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        quantization = BitsAndBytesConfig(
            load_in_4bit=wanted.load_in_4bit,
            load_in_8bit=wanted.load_in_8bit,
            llm_int8_threshold=wanted.llm_int8_threshold,
            llm_int8_skip_modules=kept,
            bnb_4bit_quant_type=wanted.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=wanted.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=wanted.bnb_4bit_compute_dtype,
        )
    # Otherwise bitsandbytes takes a GPU where there is one, also for a run that is to stay on the CPU.
    return {"quantization_config": quantization, "device_map": {"": device_of(config)}}


def modules_to_skip(model: Any, new: Iterable[str], skip: Iterable[str]) -> tuple[str, ...]:
    """Return what must not be quantised, where a first loading has quantised a head or the output embedding.

    Args:
        model: The loaded model.
        new: Names of its modules whose weights the checkpoint lacks.
        skip: What the user wants to stay as it is.

    Returns:
        Names for a second loading; empty where the first one will do.
    """
    output = model.get_output_embeddings()
    outputs = [name for name, module in model.named_modules() if output is not None and module is output]
    heads = tuple(dict.fromkeys((*new, *(name for name in HEADS if hasattr(model, name)), *outputs)))
    packed = [name for name in heads if any(is_packed(module) for module in model.get_submodule(name).modules())]
    if not packed:
        return ()
    from transformers.quantizers.base import get_keys_to_not_convert

    # A list of ours replaces the library's own.
    return tuple(dict.fromkeys((*get_keys_to_not_convert(model), *heads, *skip)))


def settle(model: Any) -> None:
    """Freeze a quantised model and keep its weights from being changed by their own forward pass.

    Args:
        model: The loaded model; changed in place.
    """
    import torch
    from peft import prepare_model_for_kbit_training

    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            # In evaluation mode some CPUs repack the weights, and the repacked ones have no gradient any more.
            module.support_avx512bf16_for_cpu = False
            # The first forward pass would cast the bias, and the model would no longer be the one it was.
            if isinstance(module.bias, torch.Tensor) and module.compute_dtype is not None:
                module.bias.data = module.bias.data.to(module.compute_dtype)
