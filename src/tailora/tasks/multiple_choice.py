"""Multiple choice on a causal language model: it learns to write the right answer, and chooses the likeliest one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailora.config import TaskConfig
from tailora.data import Labels, Table
from tailora.errors import DataError
from tailora.tasks.base import Examples, Splits, by_length
from tailora.tasks.causal_lm import CausalLM

if TYPE_CHECKING:
    import datasets

    from tailora.evaluation import Evaluation

_FORMAT = re.compile(r"answer format:\s*(\S[^\n]*)", re.IGNORECASE)
"""How instruction data names the answers that may be given: ``Answer format: answer1/answer2``."""

_BREAK = "\n"
"""Between the question and an answer: every tokenizer cuts there, whatever follows."""

_MODEL_KEYS = ("input_ids", "labels")


@dataclass(frozen=True)
class _Row:
    """One question: its prompt, the names of its choices, what the model would write for each, and the right one."""

    prompt: str
    names: tuple[str, ...]
    texts: tuple[str, ...]
    answer: int


class MultipleChoice(CausalLM):
    """A question with given answers.

    The data is either instruction data whose prompt ends in ``Answer format: a/b/c`` (``task.text_pair``, if given, is
    the full sentence in which the right answer's name stands), or has a column of lists with the answers
    (``task.text_pair``).  It trains like ``causal-lm`` on the right answer.
    """

    primary = "accuracy"
    higher_is_better = True
    metrics = ("accuracy_norm",)

    def read(self, task: TaskConfig) -> Splits:
        """Read the data and check that each question has its answer among its choices.

        Args:
            task: The task's configuration.

        Returns:
            The splits.

        Raises:
            DataError: A column is missing, or a question lacks choices or names another answer.
        """
        # Not CausalLM's own reading: it would take the list of choices for a broken text.
        splits = super(CausalLM, self).read(task)
        for table in (splits.train, splits.evaluation):
            for _ in _rows(task, table):
                pass
        return splits

    def shown(self, task: TaskConfig, table: Table) -> list[str] | None:
        """Return the question of each row; see ``Task.shown``."""
        return table.texts(task.text, "task.text")

    def encode(self, task: TaskConfig, splits: Splits, tokenizer: Any) -> tuple[Examples, Examples]:
        """Tokenise every candidate; ``input_ids`` and ``labels`` are those of the right one; see ``Task.encode``."""
        return _encode(task, splits.train, tokenizer), _encode(task, splits.evaluation, tokenizer)

    def dataset(self, examples: Examples) -> datasets.Dataset:
        """Return the right answers alone, which is what is learned."""
        return super().dataset([{key: example[key] for key in _MODEL_KEYS} for example in examples])

    def evaluate(
        self, model: Any, tokenizer: Any, examples: Examples, *, batch_size: int, labels: Labels | None = None
    ) -> Evaluation:
        """Return the accuracy of the likeliest answers; see ``Task.evaluate``."""
        from tailora.evaluation import Question, choose

        questions, flat, owners = [], [], []
        for row, example in enumerate(examples):
            questions.append(Question(tuple(example["choices"]), example["answer"]))
            for number, (ids, targets) in enumerate(example["candidates"]):
                flat.append({"input_ids": ids, "labels": targets})
                owners.append((row, number))
        order = by_length(flat)
        batches = self.batches(tokenizer, [flat[place] for place in order], batch_size)
        candidates = [owners[place] for place in order]
        return choose(model, batches, candidates=candidates, questions=questions, primary=self.primary)


def _encode(task: TaskConfig, table: Table, tokenizer: Any) -> Examples:
    """Tokenise question and answers; a question that is too long loses its beginning, an answer nothing."""
    limit = min(task.max_length, tokenizer.model_max_length)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    examples = []
    for number, row in enumerate(_rows(task, table)):
        prompt = tokenizer(row.prompt)["input_ids"]
        if len(prompt) > 1 and prompt[-1] == tokenizer.eos_token_id:
            prompt = prompt[:-1]
        answers = [tokenizer(_BREAK + text, add_special_tokens=False)["input_ids"] + end for text in row.texts]
        room = limit - max(map(len, answers))
        if room < 2:
            raise DataError(
                f"{table.source!r}, row {table.number(number)} has an answer of {limit - room} tokens, which leaves no "
                f"room for the question within {limit}; raise task.max_length"
            )
        if len(prompt) > room:
            # The first token may be the one that marks the beginning; the choices stand at the end.
            prompt = [prompt[0], *prompt[len(prompt) - room + 1 :]]
        candidates = [(prompt + answer, [-100] * len(prompt) + answer) for answer in answers]
        ids, labels = candidates[row.answer]
        examples.append(
            {"input_ids": ids, "labels": labels, "candidates": candidates, "choices": row.names, "answer": row.answer}
        )
    return examples


def _rows(task: TaskConfig, table: Table) -> Iterator[_Row]:
    prompts = table.texts(task.text, "task.text")
    labels = table.column(task.label, "task.label")
    others: Sequence[Any] = (
        [None] * len(prompts) if task.text_pair is None else table.column(task.text_pair, "task.text_pair")
    )
    for number, (prompt, label, other) in enumerate(zip(prompts, labels, others, strict=True)):
        place = f"{table.source!r}, row {table.number(number)}"
        if isinstance(other, str | None):
            yield _from_instruction(prompt, label, other, place)
        else:
            yield _from_list(prompt, label, other, place)


def _from_instruction(prompt: str, label: Any, sentence: str | None, place: str) -> _Row:
    found = _FORMAT.findall(prompt)
    names = tuple(name.strip() for name in found[-1].split("/")) if found else ()
    if len(set(names)) < 2:
        raise DataError(
            f"{place} names no two different answers; end the question with 'Answer format: a/b/c', or give "
            "task.text_pair as a column of lists of answers"
        )
    name = str(label).strip()
    if name not in names:
        raise DataError(f"{place} has the answer {name!r}, which is none of {'/'.join(names)}; correct task.label")
    if sentence is not None and name not in sentence:
        raise DataError(
            f"{place} has the answer {name!r}, which does not stand in its text {sentence!r}; leave out task.text_pair"
        )
    # A column of full sentences serves all choices: the right answer's name gives way to each.
    before, after = ("", "") if sentence is None else sentence.rsplit(name, 1)
    return _Row(prompt, names, tuple(before + choice + after for choice in names), names.index(name))


def _from_list(prompt: str, label: Any, choices: Any, place: str) -> _Row:
    """Read a list of answers, or the hub's pair of lists: texts and their names."""
    names: Sequence[Any] = ()
    if isinstance(choices, dict):
        choices, names = choices.get("text"), choices.get("label", ())
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(text, str) for text in choices):
        raise DataError(f"{place} has no list of two or more answers; choose another column with task.text_pair")
    known = [str(name) for name in names]
    if str(label) in known and len(known) == len(choices):
        answer = known.index(str(label))
    elif label in choices:
        answer = choices.index(label)
    else:
        digits = str(label).strip()
        answer = int(digits) if digits.isdigit() and not isinstance(label, bool) else -1
    if not 0 <= answer < len(choices):
        raise DataError(
            f"{place} has the answer {label!r}, but its {len(choices)} answers are numbered 0 to {len(choices) - 1}; "
            "give the number, the name or the text of one with task.label"
        )
    return _Row(prompt, tuple(choices), tuple(choices), answer)
