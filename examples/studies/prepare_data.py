"""Write the data files of ready studies: prompts and completions in published templates, or a text in two parts.

    python examples/studies/prepare_data.py alpaca --rows 100 --eval-rows 20
    python examples/studies/prepare_data.py metamath
    python examples/studies/prepare_data.py text --source tinyshakespeare.txt

``alpaca`` is for placement.yaml: the first rows of Alpaca train, the next ones evaluate, in the template of the
selective placement study (which leaves Alpaca's ``input`` out).  ``metamath`` is for metamath.yaml: the rows that
peft's method comparison keeps (at most 1,300 characters), in its template; rows drawn with a private seed evaluate.
``text`` is for allocation.yaml: the lines of a plain text, of which the last tenth evaluates.

``--source`` takes a local file with the same columns instead of the hub's data set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tailora.data import read_table, sample
from tailora.errors import DataError

Pair = tuple[str, str]


def alpaca(source: str, rows: int, eval_rows: int) -> tuple[list[Pair], list[Pair]]:
    """Return the first rows and the next ones."""
    table = read_table(source)
    instructions, outputs = (table.texts(name, "--source") for name in ("instruction", "output"))
    pairs = [
        (f"### Instruction:\n{instruction}\n\n### Response:\n", output)
        for instruction, output in zip(instructions, outputs, strict=True)
    ]
    if len(pairs) < rows + eval_rows:
        raise DataError(f"{source!r} has {len(pairs)} rows, but {rows} + {eval_rows} are asked for; ask for fewer")
    return pairs[:rows], pairs[rows : rows + eval_rows]


def metamath(source: str, rows: int | None, eval_rows: int) -> tuple[list[Pair], list[Pair]]:
    """Return the rows that are short enough, less those that evaluate."""
    table = read_table(source)
    queries, responses = (table.texts(name, "--source") for name in ("query", "response"))
    pairs = [
        (f"Question: {query} Think step by step.\nAnswer:", response)
        for query, response in zip(queries, responses, strict=True)
        if len(f"{query} {response}") <= 1300
    ]
    if len(pairs) <= eval_rows:
        raise DataError(f"{source!r} has {len(pairs)} short rows, but {eval_rows} evaluate; ask for fewer")
    held_out = set(sample(len(pairs), eval_rows, seed=0))
    training = [pair for row, pair in enumerate(pairs) if row not in held_out]
    return training[:rows], [pairs[row] for row in sorted(held_out)]


def text(source: str) -> tuple[list[str], list[str]]:
    """Return nine tenths of a text's lines and the last tenth."""
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{source!r} is no file; give a plain text with --source")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if len(lines) < 10:
        raise DataError(f"{source!r} has {len(lines)} lines, but a tenth of them evaluates; give a longer text")
    cut = len(lines) * 9 // 10
    return lines[:cut], lines[cut:]


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write one JSON object per line."""
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    write(path, [json.dumps(row, ensure_ascii=False) + "\n" for row in rows], "rows")


def write(path: Path, lines: Sequence[str], unit: str) -> None:
    """Write lines and say how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(lines)} {unit}")


def main() -> None:
    """Prepare what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["alpaca", "metamath", "text"])
    parser.add_argument(
        "--source", help="a file or hub id; tatsu-lab/alpaca and meta-math/MetaMathQA when left out; of text a file"
    )
    parser.add_argument("--rows", type=int, help="training rows; all there are of metamath, 100 of alpaca")
    parser.add_argument("--eval-rows", type=int, help="evaluation rows; 20 of alpaca, 1000 of metamath")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data")
    given = parser.parse_args()
    if given.which == "text":
        if not given.source:
            raise DataError("which text is to be split; name it with --source")
        for part, lines in zip(("train", "eval"), text(given.source), strict=True):
            write(given.output / f"{Path(given.source).stem}_{part}.txt", lines, "lines")
        return
    if given.which == "alpaca":
        rows = given.rows or 100
        training, evaluation = alpaca(given.source or "tatsu-lab/alpaca", rows, given.eval_rows or 20)
        stem = f"alpaca_{rows}"
    else:
        training, evaluation = metamath(given.source or "meta-math/MetaMathQA", given.rows, given.eval_rows or 1000)
        stem = "metamath"
    write_pairs(given.output / f"{stem}_train.jsonl", training)
    write_pairs(given.output / f"{stem}_eval.jsonl", evaluation)


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"prepare_data: {error}") from None
