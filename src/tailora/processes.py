"""Several processes that train together under ``accelerate launch``: the first one decides and writes.

Every process measures nothing and writes nothing that the first one does, reads what it stored, and trains its share.
With one process every function here does nothing.
"""

from __future__ import annotations

from typing import Any

from tailora.config_files import world_size


def join(*, use_cpu: bool) -> None:
    """Join the group of processes that the launcher started; return at once where there is one process.

    Args:
        use_cpu: Whether training stays on the CPU.
    """
    if world_size() > 1:
        from accelerate import PartialState

        PartialState(cpu=use_cpu)


def is_main() -> bool:
    """Tell whether this process is the one that decides and writes."""
    import os

    return world_size() == 1 or os.environ.get("RANK", "0") == "0"


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


def anywhere(flag: bool) -> bool:
    """Tell whether ``flag`` is set in any process; all of them must ask.

    Args:
        flag: This process's flag.

    Returns:
        Whether at least one is set.
    """
    if world_size() == 1:
        return flag
    from torch import distributed

    flags: list[Any] = [None] * world_size()
    distributed.all_gather_object(flags, flag)
    return any(flags)
