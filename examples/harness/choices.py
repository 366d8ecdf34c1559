"""Multiple-choice questions that stand in one text with their answers, taken apart for lm-eval."""

from __future__ import annotations

import re

_QUESTION = re.compile(r".*?question: (.*?)\n\n(Answer1: .*)\n\nAnswer format: (.*)", re.DOTALL)
_NUMBERED = re.compile(r"\s*\bAnswer\d+: ?")


def split(documents):
    """Return the documents with the columns ``question``, ``choices`` and ``gold``, the number of the right choice."""
    return documents.map(_split)


def _split(document):
    found = _QUESTION.fullmatch(document["instruction"])
    if found is None:
        raise ValueError(f"no question with answers: {document['instruction'][:80]!r}")
    question, answers, names = found.groups()
    choices = [text.strip() for text in _NUMBERED.split(answers)[1:]]
    names = names.split("/")
    if len(choices) != len(names):
        raise ValueError(f"{len(choices)} answers for {len(names)} names: {document['instruction'][:80]!r}")
    return {"question": question.strip(), "choices": choices, "gold": names.index(document["answer"])}
