"""``tailora profile``, ``merge`` and ``compare``: measure once, plan as often as you like."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tailora.cli.output import out, print_json, say
from tailora.cli.showing import Json, Model, TrustCode
from tailora.errors import UserError
from tailora.progress import Progress, stage_bar
from tailora.stopping import StopRequest

DEFAULT_SIGNALS = "fisher,gradient_spectrum"
ALL = "all"
NO_DATA = "none"


def profile(
    model: Model,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the profile.", metavar="PATH")],
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
    hold_out: Annotated[
        float,
        typer.Option(help="Share to leave out: that which 'tailora train' carves out where it has no other data."),
    ] = 0.0,
    signals: Annotated[
        str, typer.Option(help="Signals to measure, joined by commas; 'all' is every one of a single pass.")
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
    from tailora import processes
    from tailora.config import make_config
    from tailora.runs import measure_profile
    from tailora.tasks.weights_alone import check_needs, measure_weights

    # Before minutes of measuring rather than after.
    folder = _folder(output)
    names = _names(signals)
    _check_signals(names, signals, resume)
    if data is None:
        check_needs(names)
        for option, given in (("--task", kind), ("--resume", resume), ("--hold-out", hold_out or None)):
            if given is not None:
                raise UserError(f"{option} {given} goes with --data; leave it out, or name the data")
    # A configuration has data; where none is given, nothing looks at them.
    task: dict[str, Any] = {"kind": kind or "causal-lm", "train": NO_DATA if data is None else data}
    task |= {"max_length": max_length, "header": header}
    task |= {"text": _column(text), "label": _column(label)}
    task |= {"text_pair": _column(text_pair)} if text_pair is not None else {}
    task |= {"validation": hold_out} if hold_out else {}
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
    how = {"labels": labels, "pooling": pooling, "until": until, "on_nonfinite": on_nonfinite, "keep_sums": keep_sums}
    main = processes.is_main()
    if not main:
        logging.getLogger("tailora").setLevel(logging.ERROR)  # what there is to notice is the same in every process
        if data is None:
            return  # the weights are read by one process
    watch = _Watch(resume, of_data=data is not None, waits=until is None)
    with watch, stage_bar(f"profiling {model}") if main else contextlib.nullcontext() as watch.tell:
        if data is None:
            found = measure_weights(config, names, **how)
        else:
            processes.join(use_cpu=config.training.use_cpu)
            how |= {"whole": not hold_out, "share": True, "around": watch.batches, "resume": watch.file}
            found = measure_profile(config, names, progress=watch.progress, **how)
        if main:
            found.save(folder)
    if not main:
        return
    if json:
        print_json({"profile": str(folder), "hash": found.hash, "meta": dict(found.meta)})
    else:
        print(
            f"{folder}: {', '.join(found.signals)} of {len(found.targets)} targets from {_source(found.meta)} in "
            f"{found.meta['seconds']:.1f} s"
        )
    _tell(found)


def merge(
    profiles: Annotated[list[Path], typer.Argument(help="Folders of profiles measured with --keep-sums.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the merged profile.", metavar="PATH")],
    json: Json = False,
) -> None:
    """Join profiles of one model into that of all their examples."""
    from tailora.profile_merging import load_with_sums
    from tailora.profile_merging import merge as join

    folder = _folder(output)
    parts = [load_with_sums(path) for path in profiles]
    for number, part in enumerate(parts):
        # The same examples twice would only make the profile look surer than it is.
        if (earlier := next((n for n in range(number) if parts[n].hash == part.hash), None)) is not None:
            raise UserError(
                f"{str(profiles[number])!r} is the same profile as {str(profiles[earlier])!r} and its examples would "
                "count twice; leave one of them out"
            )
    found = join(parts)
    found.save(folder)
    lost = [name for name in parts[0].signals if name not in found.signals]
    if lost:
        say(f"tailora: {', '.join(lost)} cannot be merged and was left out; measure it on all the data")
    if json:
        print_json({"profile": str(folder), "hash": found.hash, "meta": dict(found.meta)})
        return
    print(f"{folder}: {', '.join(found.signals)} from {_source(found.meta)} of {len(parts)} profiles")


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


class _Watch:
    """Stops a pass between two batches where a file keeps its sums, at once where none does, and says which.

    Under a launcher every process has a file of its own.

    Attributes:
        file: This process's file; ``None`` where nothing is kept.
        tell: Shows the progress; ``None`` in other processes than the first.
    """

    def __init__(self, resume: Path | None, *, of_data: bool, waits: bool) -> None:
        from tailora import processes

        rank, several = processes.place()
        self.file, self._of_data = resume, of_data
        if resume is not None and several > 1:
            self.file = resume.with_name(f"{resume.name}.{rank}-of-{several}")
        self.tell: Progress | None = None
        self._stop = StopRequest(notice="" if rank else "stopping after this batch with its sums kept")
        self._done, self._at_hand = "", contextlib.ExitStack()
        # Processes that stop by what they have seen end at batches of their own and meet when all is added up.
        self._waits = waits and resume is not None

    def __enter__(self) -> None:
        """Listen to signals from here on."""
        self._listening = self._stop.listening()
        self._listening.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Say what became of the work where it was stopped."""
        self._at_hand.close()
        self._listening.__exit__(None, None, None)
        # A process that waits for another hears of its end by an error of the connection.
        if isinstance(error, KeyboardInterrupt) or (error is not None and self._stop.number):
            raise self._stop.error(self._done, self._way_on()) from error

    def batches(self, given: Iterable[Any]) -> Iterator[Any]:
        """Yield batches; while one is at hand a signal waits for its end, if there is a file."""
        from tailora import processes

        for batch in given:
            if self.file is not None:
                self._at_hand.enter_context(self._stop.graceful())
            yield batch
        if self._waits:
            # Here this process's sums can still be kept if it is stopped while others are at work.
            processes.wait_for_all(lambda: self._stop.number)
        self._end()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show how far a pass is, and end it if that was asked for: between two batches, with its sums kept."""
        self._done = f"after {done} of {total} examples"
        self._end()
        if self.tell is not None:
            self.tell(stage, done, total)

    def _end(self) -> None:
        self._at_hand.close()
        if self._stop.number:
            raise self._stop.error()

    def _way_on(self) -> str:
        if not self._of_data:
            return "nothing was kept"
        if self.file is None:
            return "nothing was kept; with --resume FILE the same command would go on from there"
        if self.file.is_file():
            return f"the sums are kept in {str(self.file)!r} and the same command goes on from there"
        return f"{str(self.file)!r} keeps nothing, as no pass over the data was under way; the same command starts anew"


def _folder(text: str) -> Path:
    """Return a writable output folder; an empty text, as of an unset variable, does not mean the current one."""
    from tailora.artifacts import check_writable

    if not text.strip():
        raise UserError(f"--output {text!r} names no folder; give one, or '.' for the current folder")
    check_writable(text)
    return Path(text)


def _names(signals: str) -> tuple[str, ...]:
    """Return the signals that were asked for, each once; ``all`` among them stands for those of a single pass."""
    from tailora.signals import SIGNALS

    single = [entry.name for entry in SIGNALS if not entry.value.adapter and entry.value.solve is None]
    given = [name.strip() for name in signals.split(",") if name.strip()]
    names = dict.fromkeys(name for one in given for name in (single if one == ALL else [one]))
    if not names:
        raise UserError("signals is empty; name at least one, such as 'fisher'")
    return tuple(names)


def _check_signals(names: tuple[str, ...], given: str, resume: Path | None) -> None:
    """Refuse what cannot be measured by this command, before anything is loaded."""
    from tailora import processes
    from tailora.artifacts import check_writable
    from tailora.signals import SIGNALS

    if resume is not None:
        check_writable(resume.parent)
        if resume.is_dir():
            raise UserError(f"{str(resume)!r} is a folder; give --resume the name of a file in it")
    for name in names:
        if SIGNALS[name].adapter:
            raise UserError(
                f"signal {name!r} is measured on a model with a LoRA, which this command does not load; call "
                f"tailora.profile(peft_model, batches, ({name!r},)) from Python"
            )
        if SIGNALS[name].solve is not None and (several := processes.place()[1]) > 1:
            raise UserError(
                f"signal {name!r} is solved for in one process and this is one of {several}; measure it in a profile "
                "of its own without a launcher"
            )
    states = next((name for name in names if SIGNALS[name].states), None)
    if resume is not None and states is not None:
        sentence = f"an unfinished {states!r} cannot be resumed; measure it in a profile of its own"
        if states not in given:
            rest = ",".join(name for name in names if not SIGNALS[name].states)
            sentence += f", and here all the others: --signals {rest}"
        raise UserError(sentence)


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
