"""Causal language modelling on plain text, documents or prompt-completion pairs, with trl's ``SFTTrainer``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailora.config import RunConfig, TaskConfig
from tailora.data import Labels, Table, carve, read_table, sample
from tailora.errors import DataError
from tailora.tasks.base import Examples, LoadedModel, Splits, Task, by_length

if TYPE_CHECKING:
    import torch

    from tailora.evaluation import Evaluation

_CUT = "text"


class CausalLM(Task):
    """Next-token prediction.

    A ``.txt`` file is one long text, cut into blocks of ``max_length`` tokens; any other data is one example per row,
    and with ``text_pair`` a prompt and a completion of which only the completion counts.
    """

    task_type = "CAUSAL_LM"
    primary = "loss"
    higher_is_better = False

    def read(self, task: TaskConfig) -> Splits:
        """Read the data; a plain text without an evaluation file is cut once, its end evaluates.

        Args:
            task: The task's configuration.

        Returns:
            The splits; for plain text one row each.

        Raises:
            DataError: The data cannot be read or a column is missing.
        """
        if not _is_plain(task.train):
            splits = super().read(task)
            for table in (splits.train, splits.evaluation):
                table.texts(task.text, "task.text")
                if task.text_pair is not None:
                    table.texts(task.text_pair, "task.text_pair")
            return splits
        training = read_table(task.train)
        if task.carves_validation:
            return Splits(*_cut(training, task.validation))
        assert task.evaluation is not None
        return Splits(training, read_table(task.evaluation))

    def load(self, config: RunConfig, splits: Splits) -> LoadedModel:
        """Load the language model; see ``Task.load``."""
        from transformers import AutoModelForCausalLM

        from tailora.tasks.loading import load_model

        return load_model(config, AutoModelForCausalLM)

    def encode(self, task: TaskConfig, splits: Splits, tokenizer: Any) -> tuple[Examples, Examples]:
        """Tokenise; examples without a token to predict are left out; see ``Task.encode``."""
        if _is_plain(task.train):
            training = _blocks(splits.train, tokenizer, task.max_length)
            evaluation = _blocks(splits.evaluation, tokenizer, task.max_length)
            return (
                [training[row] for row in sample(len(training), task.train_examples)],
                [evaluation[row] for row in sample(len(evaluation), task.eval_examples)],
            )
        return _documents(task, splits.train, tokenizer), _documents(task, splits.evaluation, tokenizer)

    def collate(self, examples: Examples, tokenizer: Any) -> dict[str, torch.Tensor]:
        """Pad to the longest example; padding has label -100 and attention 0."""
        import torch

        length = max(len(_ids(example)) for example in examples)
        inputs = torch.full((len(examples), length), tokenizer.pad_token_id, dtype=torch.long)
        labels = torch.full((len(examples), length), -100, dtype=torch.long)
        attention = torch.zeros((len(examples), length), dtype=torch.long)
        for row, example in enumerate(examples):
            ids = _ids(example)
            inputs[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(ids)] = torch.tensor(example["labels"])
            attention[row, : len(ids)] = 1
        return {"input_ids": inputs, "attention_mask": attention, "labels": labels}

    def trainer(self, arguments: dict[str, Any], **parts: Any) -> tuple[type, Any, dict[str, Any]]:
        """Return ``trl.SFTTrainer`` and what it is built with; see ``Task.trainer``."""
        from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

        # The examples are tokenised and cut already, and labels are theirs: nothing is left to prepare.
        config = SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, packing=False)
        keywords = {
            "model": parts["model"],
            "processing_class": parts["tokenizer"],
            "train_dataset": parts["train"],
        }
        return SFTTrainer, config, keywords

    def evaluate(
        self, model: Any, tokenizer: Any, examples: Examples, *, batch_size: int, labels: Labels | None = None
    ) -> Evaluation:
        """Return the token-weighted loss and the perplexity; see ``Task.evaluate``."""
        from tailora.evaluation import predict_tokens

        order = by_length(examples)
        return predict_tokens(model, self.batches(tokenizer, [examples[row] for row in order], batch_size), order=order)


def _is_plain(source: str) -> bool:
    return source.lower().endswith(".txt")


def _ids(example: dict[str, Any]) -> list[int]:
    return example["input_ids"]


def _cut(table: Table, share: float) -> tuple[Table, Table]:
    """Cut a text at a line end: its last ``share`` of lines evaluates."""
    lines = table.columns[_CUT][0].splitlines(keepends=True)
    training, evaluation = carve(len(lines), share, table.source, contiguous=True)
    texts = ["".join(lines[row] for row in rows) for rows in (training, evaluation)]
    return Table({_CUT: [texts[0]]}, table.source), Table({_CUT: [texts[1]]}, table.source)


def _blocks(table: Table, tokenizer: Any, length: int) -> Examples:
    """Tokenise a whole text and cut it into blocks; a block of one token has nothing to predict and is dropped."""
    # The tokenizer would warn that the text is longer than the model: it is cut right here.
    limit, tokenizer.model_max_length = tokenizer.model_max_length, int(1e30)
    try:
        ids = [token for text in table.columns[_CUT] for token in tokenizer(text)["input_ids"]]
    finally:
        tokenizer.model_max_length = limit
    length = min(length, limit)
    cut = [ids[start : start + length] for start in range(0, len(ids), length)]
    examples: Examples = [{"input_ids": block, "labels": list(block)} for block in cut if len(block) > 1]
    if not examples:
        raise DataError(f"{table.source!r} has {len(ids)} token(s), which leaves nothing to predict; give more text")
    return examples


def _documents(task: TaskConfig, table: Table, tokenizer: Any) -> Examples:
    """Tokenise one example per row; a prompt has label -100, an end token closes the row."""
    limit = min(task.max_length, tokenizer.model_max_length)
    prompts = table.texts(task.text, "task.text")
    completions = [None] * len(prompts) if task.text_pair is None else table.texts(task.text_pair, "task.text_pair")
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    examples = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = _plain_ids(tokenizer, prompt)
        labels = list(ids)
        if completion is not None:
            answer = tokenizer(completion, add_special_tokens=False)["input_ids"]
            ids, labels = ids + answer, [-100] * len(ids) + answer
        ids, labels = (ids + end)[:limit], (labels + end)[:limit]
        # The first position is never predicted, so a label there does not count.
        if any(label != -100 for label in labels[1:]):
            examples.append({"input_ids": ids, "labels": labels})
    if not examples:
        raise DataError(
            f"{table.source!r} leaves no token to predict within task.max_length={task.max_length}; raise max_length"
        )
    return examples


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Tokenise with the special tokens in front, but without an end token that would split prompt and completion."""
    ids = tokenizer(text)["input_ids"]
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids
