r"""Which targets may get rank at all: the placement language.

A rule is a list of terms joined by ``&``; a term that starts with ``!`` takes targets away.  The result is what all
positive terms have in common (``all-linear`` when there is none), less what the negative ones name.

``all-linear``, ``attention``, ``ffn``, ``query-value``, ``upper:0.5``, ``lower:0.5``, ``layers:0-5,11``,
``stack:decoder`` and ``cross-attention`` speak of the matrices inside the transformer blocks; ``role:...`` and
``regex:...`` speak of every target, embeddings and heads included.  In a regular expression ``\&`` is an ampersand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tailora.errors import PlacementError, did_you_mean
from tailora.targets import ROLES, Target

Members = Callable[[str, Sequence[Target]], Iterable[Target]]


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a placement.

    Attributes:
        name: The word before the colon, a key of ``TERMS``.
        argument: What follows the colon, in canonical form; empty for a term that takes none.
        exclude: Whether the term takes targets away.
    """

    name: str
    argument: str = ""
    exclude: bool = False

    def __str__(self) -> str:
        """Return the term as it is written, with ampersands escaped."""
        argument = f":{self.argument.replace('&', chr(92) + '&')}" if self.argument else ""
        return f"{'!' if self.exclude else ''}{self.name}{argument}"

    def members(self, targets: Sequence[Target]) -> list[Target]:
        """Return the targets that the term names, whether it adds them or takes them away.

        Args:
            targets: All targets of one model.

        Returns:
            The named targets in the given order; empty when there is none.

        Raises:
            PlacementError: The term names layers or a stack that the model does not have.
        """
        form = TERMS[self.name]
        return list(form.members(self.argument, list(targets) if form.everywhere else all_linear(targets)))


@dataclass(frozen=True, slots=True)
class Placement:
    """A parsed rule; ``str()`` gives its canonical form, which parses to an equal placement.

    Attributes:
        terms: The terms in the order they were written.
    """

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        """Return the canonical rule."""
        return "&".join(str(term) for term in self.terms)

    def select(self, targets: Sequence[Target]) -> list[Target]:
        """Return the targets that may get rank, in the given order.

        Args:
            targets: All targets of one model; shares and layer numbers are relative to them.

        Returns:
            A sub-sequence of ``targets``, never empty.

        Raises:
            PlacementError: A term names something the model does not have or matches nothing, or nothing is left.
        """
        chosen: set[str] | None = None
        excluded: set[str] = set()
        for place, term in enumerate(self.terms, start=1):
            try:
                names = {target.name for target in term.members(targets)}
            except PlacementError as error:
                raise _at(error, place, term, self) from None
            if not names and term.exclude:
                raise _at("excludes nothing in this model; leave it out", place, term, self)
            if not names:
                raise _at(f"matches nothing in this model; {_has(targets, term)}", place, term, self)
            if term.exclude:
                excluded |= names
            else:
                chosen = names if chosen is None else chosen & names
        if chosen is None:
            chosen = {target.name for target in all_linear(targets)}
        left = [target for target in targets if target.name in chosen and target.name not in excluded]
        if not left:
            raise PlacementError(
                f"placement {str(self)!r} leaves no target, although each of its terms matches some; drop a term"
            )
        return left


def select(targets: Sequence[Target], rule: str) -> list[Target]:
    """Return the targets that ``rule`` allows to get rank.

    Args:
        targets: All targets of one model, as ``find_targets`` returns them.
        rule: A placement rule such as ``"attention & upper:0.5"``.

    Returns:
        A sub-sequence of ``targets`` in the same order, never empty.

    Raises:
        PlacementError: The rule cannot be read, or it does not fit the model.
    """
    return parse(rule).select(targets)


def parse(rule: str) -> Placement:
    """Read a placement rule.

    Args:
        rule: Terms joined by ``&``, such as ``"attention & !layers:0-1"``.

    Returns:
        The placement.

    Raises:
        PlacementError: The rule is empty, or a term is unknown or has an argument that cannot be read.
    """
    if not rule.strip():
        raise PlacementError(f"placement {rule!r} is empty; write 'all-linear' to adapt every matrix in the blocks")
    terms = []
    for place, text in enumerate(_split(rule), start=1):
        try:
            terms.append(_term(text))
        except PlacementError as error:
            raise _at(error, place, text, rule) from None
    return Placement(tuple(terms))


def all_linear(targets: Sequence[Target]) -> list[Target]:
    """Return every matrix in the blocks that is worth a rank.

    Left out are embeddings, heads, what lies outside the blocks (unless the model has no blocks), routers, and
    matrices with a side of 1, where a rank costs more than the matrix has entries.

    Args:
        targets: All targets of one model.

    Returns:
        A sub-sequence of ``targets``.
    """
    matrices = [t for t in targets if t.kind != "embedding" and t.role not in ("embedding", "head")]
    if any(t.depth is not None for t in matrices):
        matrices = [t for t in matrices if t.depth is not None]
    return [t for t in matrices if min(t.shape) > 1 and not _is_router(t)]


def _is_router(target: Target) -> bool:
    return target.kind == "parameter" and target.experts == 1 and target.role == "other"


def _at(problem: str | PlacementError, place: int, term: str | Term, rule: str | Placement) -> PlacementError:
    """Put the term and its place in front of a problem."""
    return PlacementError(f"term {place} ({str(term).strip()!r}) of placement {str(rule)!r} {problem}")


def _has(targets: Sequence[Target], term: Term) -> str:
    """Say what there is to choose from."""
    if term.name == "regex" and targets:
        likely = all_linear(targets) or targets
        return f"its names look like {likely[len(likely) // 2].name!r}"
    roles = {target.role for target in targets}
    return f"its targets have the roles {', '.join(role for role in ROLES if role in roles) or 'none'}"


def _split(rule: str) -> list[str]:
    r"""Split at bare ampersands; ``\&`` is kept as an ampersand, every other escape as it is."""
    terms, position = [""], 0
    while position < len(rule):
        pair = rule[position : position + 2]
        if pair == r"\&":
            terms[-1] += "&"
        elif pair[0] == "\\":
            terms[-1] += pair
        elif pair[0] == "&":
            terms.append("")
        else:
            terms[-1] += pair[0]
        position += 2 if pair[0] == "\\" else 1
    return terms


def _term(text: str) -> Term:
    """Read one term."""
    body = text.strip()
    exclude = body.startswith("!")
    name, colon, argument = body.removeprefix("!").strip().partition(":")
    name, argument = name.strip(), argument.strip()
    if not name:
        raise PlacementError("is empty; write a term on both sides of every '&'")
    form = TERMS.get(name)
    if form is None:
        known = [*TERMS, *(f"role:{role}" for role in ROLES)]
        hint = did_you_mean(name, known) or ";"
        raise PlacementError(f"is unknown{hint} the terms are {', '.join(form.example for form in TERMS.values())}")
    if form.read is None:
        if colon:
            raise PlacementError(f"takes no argument; write {form.example!r}")
        return Term(name, "", exclude)
    if not argument:
        raise PlacementError(f"needs an argument; write for example {form.example!r}")
    return Term(name, form.read(argument), exclude)


def _read_share(argument: str) -> str:
    # Plain decimals only: Fraction would also take '1/2', 'nan' fails late, and '1e-999999' would exhaust the memory.
    readable = re.fullmatch(r"\d*\.?\d+|\d+\.", argument, re.ASCII) is not None and len(argument) <= 32
    if not readable or not 0 < Fraction(argument) <= 1:
        raise PlacementError(
            f"has the share {argument!r}, which is not a number above 0 and up to 1; write 'upper:0.5'"
        )
    whole, _, decimals = argument.partition(".")
    decimals = decimals.rstrip("0")
    return f"{int(whole or 0)}.{decimals}" if decimals else str(int(whole))


def _ranges(argument: str) -> list[tuple[int, int]]:
    """Return first and last layer of each range, as written."""
    ranges = []
    for piece in argument.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", piece, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise PlacementError(f"has {piece.strip()!r} where a layer number or a range is due; write 'layers:0-5,11'")
        ranges.append((first, last))
    return ranges


def _read_layers(argument: str) -> str:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(_ranges(argument)):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return _spell(merged)


def _spell(ranges: Iterable[tuple[int, int]]) -> str:
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _read_roles(argument: str) -> str:
    wanted = {piece.strip() for piece in argument.split("+")}
    for role in sorted(wanted - set(ROLES)):
        hint = did_you_mean(role, ROLES) or ";"
        raise PlacementError(f"has the unknown role {role!r}{hint} the roles are {', '.join(ROLES)}")
    return "+".join(role for role in ROLES if role in wanted)


def _read_pattern(argument: str) -> str:
    try:
        re.compile(argument)
    except (re.error, OverflowError, RecursionError) as error:
        raise PlacementError(f"is not a regular expression ({error}); escape what is meant literally") from None
    return argument


def _in_layers(argument: str, pool: Sequence[Target]) -> Iterable[Target]:
    depths = {target.depth for target in pool if target.depth is not None}
    if not depths:
        raise PlacementError("needs numbered layers, and this model has none; place by 'regex:' instead")
    wanted: set[int] = set()
    for first, last in _ranges(argument):
        missing = next((depth for depth in range(first, last + 1) if depth not in depths), None)
        if missing is not None:
            has = _read_layers(",".join(str(depth) for depth in depths))
            raise PlacementError(f"names layer {missing}, which this model does not have; it has the layers {has}")
        wanted.update(range(first, last + 1))
    return [target for target in pool if target.depth in wanted]


def _in_stack(argument: str, pool: Sequence[Target]) -> Iterable[Target]:
    stacks = {target.stack for target in pool if target.stack}
    if not stacks:
        raise PlacementError(
            f"names the stack {argument!r}, but this model has a single, unnamed one; leave the term out"
        )
    if argument not in stacks:
        hint = did_you_mean(argument, stacks) or ";"
        has = ", ".join(sorted(stacks))
        raise PlacementError(f"names the stack {argument!r}, which this model does not have{hint} it has {has}")
    return [target for target in pool if target.stack == argument]


def _upper(argument: str, pool: Sequence[Target]) -> Iterable[Target]:
    return _share(pool, lambda layers: layers[-max(1, _half_up(Fraction(argument) * len(layers))) :])


def _lower(argument: str, pool: Sequence[Target]) -> Iterable[Target]:
    # What `upper:` with the rest of the share leaves, so a half is rounded down here: together they cover each layer
    # once.
    return _share(pool, lambda layers: layers[: max(1, len(layers) - _half_up((1 - Fraction(argument)) * len(layers)))])


def _half_up(number: Fraction) -> int:
    return math.floor(number + Fraction(1, 2))


def _share(pool: Sequence[Target], part: Callable[[list[int]], list[int]]) -> list[Target]:
    """Return the targets in a part of the layers of each stack."""
    kept: set[tuple[str, int | None]] = set()
    for stack in {target.stack for target in pool}:
        layers = sorted({target.depth for target in pool if target.stack == stack and target.depth is not None})
        if layers:
            kept.update((stack, depth) for depth in part(layers))
    return [target for target in pool if (target.stack, target.depth) in kept]


def _with_roles(roles: Iterable[str]) -> Members:
    wanted = frozenset(roles)
    return lambda _, pool: [target for target in pool if target.role in wanted]


@dataclass(frozen=True, slots=True)
class Form:
    """What a term means.

    Attributes:
        example: How it is written.
        members: Picks the targets it names: canonical argument and pool in, targets out.
        read: Checks the argument and brings it into canonical form; ``None`` when the term takes none.
        everywhere: Whether the pool is all targets instead of those of ``all-linear``.
    """

    example: str
    members: Members
    read: Callable[[str], str] | None = None
    everywhere: bool = False


TERMS: dict[str, Form] = {
    "all-linear": Form("all-linear", lambda _, pool: pool),
    "attention": Form("attention", _with_roles(role for role in ROLES if role.startswith("attention."))),
    "ffn": Form("ffn", _with_roles(role for role in ROLES if role.startswith("ffn."))),
    "query-value": Form("query-value", _with_roles(("attention.query", "attention.value", "attention.qkv"))),
    "upper": Form("upper:0.5", _upper, _read_share),
    "lower": Form("lower:0.5", _lower, _read_share),
    "layers": Form("layers:0-5,11", _in_layers, _read_layers),
    "stack": Form("stack:decoder", _in_stack, str),
    "cross-attention": Form("cross-attention", lambda _, pool: [target for target in pool if target.cross_attention]),
    "role": Form(
        "role:attention.query+ffn.up",
        lambda argument, pool: [target for target in pool if target.role in argument.split("+")],
        _read_roles,
        everywhere=True,
    ),
    "regex": Form(
        "regex:...",
        lambda argument, pool: [target for target in pool if re.search(argument, target.name)],
        _read_pattern,
        everywhere=True,
    ),
}
"""The terms of the language; shares round to whole layers, ``upper:`` a half up and ``lower:`` a half down."""
