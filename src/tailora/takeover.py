"""Going on with another adapter in the middle of a schedule: same data, same learning rates, new optimizer state."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from tailora.errors import UserError


def pilot_steps(share: float, steps: int) -> int:
    """Return the steps of a pilot.

    Args:
        share: Its share of the training.
        steps: Steps of the training.

    Returns:
        At least one step, and at least one fewer than the training has.

    Raises:
        UserError: The training has a single step.
    """
    if steps < 2:
        raise UserError(f"a pilot needs at least 2 training steps and there is {steps}; train for longer")
    return min(steps - 1, max(1, round(share * steps)))


def take_over(trainer: Any, source: Path, folder: Path) -> Path:
    """Write the checkpoint from which a trainer goes on where another adapter's training stopped.

    Step number, data order and random states are those of the stopped training, the learning rate is the trainer's own
    schedule at that step, the weights are its model's, and its optimizer knows nothing yet.

    Args:
        trainer: The trainer that goes on; it is as before afterwards.
        source: The last checkpoint of the stopped training.
        folder: Where checkpoints belong.

    Returns:
        The checkpoint, written under another name and renamed.
    """
    import torch

    state = json.loads((source / "trainer_state.json").read_text(encoding="utf-8"))
    step = int(state["global_step"])
    given = trainer.optimizer
    trainer.create_optimizer_and_scheduler(num_training_steps=int(state["max_steps"]))
    with warnings.catch_warnings():
        # Schedulers expect an optimizer's step between their own.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        for _ in range(step):
            trainer.lr_scheduler.step()
    temporary = folder / f".checkpoint-{step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    trainer.model.save_pretrained(temporary)
    torch.save(trainer.optimizer.state_dict(), temporary / "optimizer.pt")
    torch.save(trainer.lr_scheduler.state_dict(), temporary / "scheduler.pt")
    for path in source.glob("rng_state*.pth"):
        shutil.copy(path, temporary / path.name)
    shutil.copy(source / "trainer_state.json", temporary / "trainer_state.json")
    trainer.optimizer, trainer.lr_scheduler = given, None
    whole = folder / f"checkpoint-{step}"
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(whole)
    temporary.rename(whole)
    return whole
