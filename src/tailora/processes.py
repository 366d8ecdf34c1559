"""Several processes that train or measure together under ``accelerate launch``: the first one decides and writes.

In a training every process measures nothing and writes nothing that the first one does, reads what it stored, and
trains its share; in ``tailora profile`` every process measures its share.  With one process every function here does
nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tailora.config_files import world_size
from tailora.errors import ProfileError


def join(*, use_cpu: bool) -> None:
    """Join the group of processes that the launcher started; return at once where there is one process.

    Args:
        use_cpu: Whether training stays on the CPU.
    """
    if world_size() > 1:
        from accelerate import PartialState

        PartialState(cpu=use_cpu)


def place() -> tuple[int, int]:
    """Return this process's number, from 0, and how many there are."""
    import os

    processes = world_size()
    return (0 if processes == 1 else int(os.environ.get("RANK", "0"))), processes


def is_main() -> bool:
    """Tell whether this process is the one that decides and writes."""
    return place()[0] == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        from torch import distributed

        distributed.barrier()


def from_main(value: Any) -> Any:
    """Return the first process's value in every process.

    Args:
        value: Something that pickles; what other processes give does not count.

    Returns:
        The first process's value.
    """
    if world_size() == 1:
        return value
    from torch import distributed

    holder = [value]
    distributed.broadcast_object_list(holder, src=0)
    return holder[0]


def from_all(value: Any) -> list[Any]:
    """Return every process's value in every process.

    Args:
        value: Something that pickles.

    Returns:
        The values by the number of their process.
    """
    if world_size() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def wait_for_all(asked: Callable[[], Any]) -> None:
    """Wait until every process is here, or this one is asked to stop, which a barrier could not hear.

    Args:
        asked: Tells whether this process is asked to stop; it must then not wait for the others again.

    Raises:
        ProfileError: Another process ended before it was here.
    """
    if world_size() == 1:
        return
    import torch
    from torch import distributed

    here = torch.zeros(1, device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    work: Any = distributed.all_reduce(here, async_op=True)
    while not (asked() or work.is_completed()):
        time.sleep(0.02)
    if asked():
        return
    try:
        work.wait()
    except RuntimeError:
        # Whoever stops the others stops this process too, perhaps a moment later.
        time.sleep(0.5)
        if not asked():
            raise ProfileError(
                f"another of the {world_size()} processes ended before the profile was measured; see what it said"
            ) from None


def anywhere(flag: bool) -> bool:
    """Tell whether ``flag`` is set in any process; all of them must ask.

    Args:
        flag: This process's flag.

    Returns:
        Whether at least one is set.
    """
    return any(from_all(flag))
