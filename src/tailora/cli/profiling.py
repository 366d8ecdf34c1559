"""``tailora profile``, ``merge`` and ``compare``: measure once, plan as often as you like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tailora.cli.output import out, print_json, say
from tailora.cli.showing import Json, Model, TrustCode
from tailora.errors import UserError
from tailora.progress import stage_bar

DEFAULT_SIGNALS = "fisher,gradient_spectrum"
NO_DATA = "none"


def profile(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the profile.")],
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="Training data: a file or a hub id; not for signals of the weights alone."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--task", help="text-classification or causal-lm.", show_default="causal-lm")
    ] = None,
    text: Annotated[str, typer.Option(help="Column of the text (a number where the file has no header).")] = "text",
    text_pair: Annotated[str | None, typer.Option(help="Column of a second text.")] = None,
    label: Annotated[str, typer.Option(help="Column of the class.")] = "label",
    header: Annotated[bool, typer.Option(help="Whether csv and tsv files start with column names.")] = True,
    max_length: Annotated[int, typer.Option(help="Longest sequence in tokens.")] = 128,
    examples: Annotated[int, typer.Option(help="Calibration examples.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Examples per pass.")] = 8,
    signals: Annotated[
        str, typer.Option(help="Signals to measure, joined by commas; 'all' for every one of a single pass.")
    ] = DEFAULT_SIGNALS,
    placement: Annotated[str, typer.Option("--placement", "-p", help="Targets to measure.")] = "all-linear",
    labels: Annotated[
        str, typer.Option(help="data, or model: labels drawn from its predictions, for the true Fisher.")
    ] = "data",
    pooling: Annotated[str, typer.Option(help="mean, last or first token, for intrinsic_dimension.")] = "mean",
    until: Annotated[
        float | None, typer.Option(help="Stop once the data's halves rank the targets alike, such as 0.95.")
    ] = None,
    on_nonfinite: Annotated[str, typer.Option(help="raise, or skip examples that are not finite.")] = "raise",
    keep_sums: Annotated[bool, typer.Option("--keep-sums", help="Keep what 'tailora merge' needs.")] = False,
    resume: Annotated[Path | None, typer.Option(help="File for an unfinished pass; continued where it exists.")] = None,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="Quantise the base (bitsandbytes).")] = False,
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", help="Quantise the base (bitsandbytes).")] = False,
    seed: Annotated[int, typer.Option(help="Which examples, and the state of a new head.")] = 0,
    trust_remote_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Measure a model's signals in one pass over calibration data, or read those of its weights alone."""
    from tailora.artifacts import check_writable
    from tailora.config import make_config
    from tailora.runs import measure_profile
    from tailora.signals import SIGNALS
    from tailora.tasks.weights_alone import check_needs, measure_weights

    # Before minutes of measuring rather than after.
    check_writable(output)
    if resume is not None:
        check_writable(resume.parent)
        if resume.is_dir():
            raise UserError(f"{str(resume)!r} is a folder; give --resume the name of a file in it")
    names = tuple(name.strip() for name in signals.split(",") if name.strip())
    if names == ("all",):
        names = tuple(entry.name for entry in SIGNALS if not entry.value.adapter and entry.value.solve is None)
    for name in names:
        if SIGNALS[name].adapter:
            raise UserError(
                f"signal {name!r} is measured on a model with a LoRA, which this command does not load; call "
                f"tailora.profile(peft_model, batches, ({name!r},)) from Python"
            )
    if data is None:
        check_needs(names)
        if kind is not None:
            raise UserError(f"--task {kind} goes with --data; leave it out, or name the data")
    # A configuration has data; where none is given, nothing looks at them.
    task: dict[str, Any] = {"kind": kind or "causal-lm", "train": NO_DATA if data is None else data}
    task |= {"max_length": max_length, "header": header}
    task |= {"text": _column(text), "label": _column(label)}
    task |= {"text_pair": _column(text_pair)} if text_pair is not None else {}
    values: dict[str, Any] = {
        "model": model,
        "trust_remote_code": trust_remote_code,
        "task": task,
        "placement": placement,
        "calibration": {"examples": examples, "batch_size": batch_size, "seed": seed},
    }
    if load_in_4bit or load_in_8bit:
        values["quantization"] = {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit}
    config = make_config(values, where="tailora profile")
    how = {"labels": labels, "pooling": pooling, "until": until, "on_nonfinite": on_nonfinite}
    with stage_bar(f"profiling {model}") as progress:
        if data is None:
            found = measure_weights(config, names, keep_sums=keep_sums, **how)
        else:
            found = measure_profile(config, names, progress=progress, keep_sums=keep_sums, resume=resume, **how)
    found.save(output)
    if json:
        print_json({"profile": str(output), "hash": found.hash, "meta": dict(found.meta)})
    else:
        print(
            f"{output}: {', '.join(found.signals)} of {len(found.targets)} targets from {_source(found.meta)} in "
            f"{found.meta['seconds']:.1f} s"
        )
    _tell(found)


def merge(
    profiles: Annotated[list[Path], typer.Argument(help="Folders of profiles measured with --keep-sums.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the merged profile.")],
    json: Json = False,
) -> None:
    """Join profiles of one model into that of all their examples."""
    from tailora.artifacts import check_writable
    from tailora.profile_merging import load_with_sums
    from tailora.profile_merging import merge as join

    check_writable(output)
    parts = [load_with_sums(folder) for folder in profiles]
    for number, part in enumerate(parts):
        # The same examples twice would only make the profile look surer than it is.
        if (earlier := next((n for n in range(number) if parts[n].hash == part.hash), None)) is not None:
            raise UserError(
                f"{str(profiles[number])!r} is the same profile as {str(profiles[earlier])!r} and its examples would "
                "count twice; leave one of them out"
            )
    found = join(parts)
    found.save(output)
    lost = [name for name in parts[0].signals if name not in found.signals]
    if lost:
        say(f"tailora: {', '.join(lost)} cannot be merged and was left out; measure it on all the data")
    if json:
        print_json({"profile": str(output), "hash": found.hash, "meta": dict(found.meta)})
        return
    print(f"{output}: {', '.join(found.signals)} from {_source(found.meta)} of {len(parts)} profiles")


def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a profile.")],
    second: Annotated[Path, typer.Argument(help="Folder of another one.")],
    json: Json = False,
) -> None:
    """Tell how alike two profiles rank their targets, signal by signal."""
    from tailora.profile_merging import agreement
    from tailora.profiles import Profile

    found = agreement(Profile.load(first), Profile.load(second))
    if json:
        print_json({name: None if value != value else value for name, value in found.items()})
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("signal")
    table.add_column("rank correlation over targets", justify="right")
    for name, value in found.items():
        table.add_row(name, "constant" if value != value else f"{value:+.3f}")
    out().print(table)


def tell_noise(found: Any) -> None:
    """Warn where GeLoRA's ranks are within the noise of the estimator.

    Args:
        found: A profile.
    """
    from tailora.allocation.gelora_noise import gelora_report

    if "intrinsic_dimension" not in found.signals:
        return
    try:
        report = gelora_report(found.targets, found.signals["intrinsic_dimension"])
    except UserError as error:
        say(f"tailora: {error}")
        return
    for sentence in (report.warning, report.scale_warning):
        if sentence:
            say(f"tailora: {sentence}")


def _tell(found: Any) -> None:
    """Say what a user should know about a profile."""
    meta = found.meta
    if meta["one_by_one"]:
        say(f"tailora: examples were taken one at a time: {meta['one_by_one']}")
    if meta["skipped"]:
        say(f"tailora: {len(meta['skipped'])} examples were not finite and left out: {', '.join(meta['skipped'][:5])}")
    tell_noise(found)


def _source(meta: Mapping[str, Any]) -> str:
    """Say what a profile was measured on."""
    if not meta["loss"] and not meta["examples"]:
        return "the weights alone"
    loss = f" (mean loss {meta['mean_loss']:.4f})" if meta["loss"] else ""
    return f"{meta['examples']} examples{loss}"


def _column(name: str) -> str | int:
    """Return a column's number where the user wrote one."""
    return int(name) if name.isdigit() else name
