"""A run's folder: its name, its status, and whether what lies in it is this run's own."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailora.artifacts import canonical_json, write_json
from tailora.budget import Budget
from tailora.config import NOT_IN_HASH, RunConfig, is_recipe_file
from tailora.errors import UserError

if TYPE_CHECKING:
    from tailora.plans import Plan


def run_folder(config: RunConfig) -> Path:
    """Return the folder of a run, whether or not it exists.

    Args:
        config: The run's configuration.

    Returns:
        ``<output>/<recipe>-s<seed>-<first 12 digits of the hash>``.
    """
    name = Path(config.recipe).stem if is_recipe_file(config.recipe) else config.recipe
    return Path(config.output) / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-s{config.seed}-{config.hash[:12]}"


def is_done(config: RunConfig) -> bool:
    """Tell whether a run has finished: its folder's status says so, for this very configuration."""
    try:
        status = stored(run_folder(config) / "status.json")
    except UserError:
        return False
    return status is not None and status.get("status") == "done" and status.get("hash") == config.hash


def write_status(folder: Path, config: RunConfig, status: str, error: str | None) -> None:
    """Write ``status.json``.

    Args:
        folder: The run's folder.
        config: Its configuration.
        status: ``done``, ``failed`` or ``interrupted``.
        error: One sentence about what went wrong.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(folder / "status.json", {"status": status, "error": error, "hash": config.hash, "finished": now})


def stored(path: Path) -> dict[str, Any] | None:
    """Read a JSON object of a run folder.

    Args:
        path: The file.

    Returns:
        The object; ``None`` where there is no file.

    Raises:
        UserError: The file holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    # A number of a million digits and a million brackets are errors of their own kind.
    except (ValueError, RecursionError):
        value = None
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror}); check its rights") from None
    if not isinstance(value, dict):
        raise UserError(f"{str(path)!r} is damaged: it holds no JSON object; {_start_again(path)}")
    return value


def check_folder(folder: Path, config: RunConfig, recipe: str) -> None:
    """Refuse a folder whose files were changed by hand or belong to another run, before anything is computed.

    Args:
        folder: The run's folder.
        config: The run's configuration.
        recipe: The recipe's name.

    Raises:
        UserError: A file is damaged, changed or another run's.
    """
    if (status := stored(folder / "status.json")) is not None and status.get("hash") != config.hash:
        raise UserError(
            f"{str(folder / 'status.json')!r} belongs to a run with hash {str(status.get('hash'))[:12]!r}, not "
            f"{config.hash[:12]!r}; {_start_again(folder / 'status.json')}"
        )
    if (theirs := stored(folder / "config.json")) is not None:
        mine = json.loads(canonical_json(config.to_dict() | {"recipe": recipe}))
        if difference := _difference(_identity(theirs), _identity(mine)):
            raise UserError(
                f"{str(folder / 'config.json')!r} is another run's or was changed: {difference}; "
                f"{_start_again(folder / 'config.json')}"
            )
    if (folder / "plan.json").exists():
        load_plan(folder, config, recipe)


def load_plan(folder: Path, config: RunConfig, recipe: str) -> Plan:
    """Load a run's stored plan.

    Args:
        folder: The run's folder.
        config: The run's configuration.
        recipe: The recipe's name.

    Returns:
        The plan.

    Raises:
        UserError: It is damaged, changed or another run's.
    """
    from tailora.plans import Plan

    path = folder / "plan.json"
    stored(path)
    try:
        plan = Plan.load(path)
    except UserError as error:
        raise UserError(f"{error}, or {_start_again(path)}") from None
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is damaged ({type(error).__name__}); {_start_again(path)}") from None
    facts: dict[str, Any] = {"recipe": plan.recipe.name, "budget": plan.budget}
    wanted: dict[str, Any] = {"recipe": recipe, "budget": Budget.parse(config.budget).text}
    for key in ("placement", "seed"):
        facts[key], wanted[key] = plan.provenance.get(key), getattr(config, key)
    if plan.budget == "as written":  # ranks written down by hand have no budget
        del wanted["budget"]
    for key, value in wanted.items():
        if facts[key] != value:
            raise UserError(
                f"{str(path)!r} was made for {key}={facts[key]!r} and this run has {key}={value!r}; "
                f"{_start_again(path)}"
            )
    return plan


def clean(folder: Path) -> None:
    """Remove what a killed process left half-written; only the holder of the folder's lock may do so."""
    for path in folder.glob(".*"):
        if path.name.startswith(".adapter-"):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.endswith(".tmp"):
            with contextlib.suppress(OSError):
                path.unlink()


def _start_again(path: Path) -> str:
    return f"remove the folder {str(path.parent)!r} to start the run again"


def _identity(values: dict[str, Any]) -> dict[str, Any]:
    """Return what must agree: everything but places and names, whose contents the folder's hash already holds."""
    result = {key: value for key, value in values.items() if key not in ("output", "model", "label")}
    places = {
        "task": ("name", "train", "evaluation"),
        "training": NOT_IN_HASH,
        "harness": ("include_path", "data_root"),
    }
    for section, left_out in places.items():
        inner = result.get(section)
        if isinstance(inner, dict):
            result[section] = {key: value for key, value in inner.items() if key not in left_out}
    return result


def _difference(theirs: Any, mine: Any, key: str = "") -> str:
    """Name the first difference, or nothing."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for name in [*mine, *(name for name in theirs if name not in mine)]:
            inner = f"{key}.{name}" if key else name
            if name not in theirs or name not in mine:
                return f"{inner!a} is only {'here' if name in mine else 'there'}"
            if found := _difference(theirs[name], mine[name], inner):
                return found
        return ""
    # 1 and True, 1 and 1.0 are equal to Python and not to the hash.
    same = type(theirs) is type(mine) and theirs == mine
    return "" if same else f"{key}={_short(theirs)} there and {_short(mine)} here"


def _short(value: Any) -> str:
    return ascii(value) if len(ascii(value)) < 60 else f"{ascii(value)[:57]}..."
