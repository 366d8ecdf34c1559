"""Causal language modelling on plain text, documents, prompts with completions and chats, with ``SFTTrainer``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tailora.config import RunConfig, TaskConfig
from tailora.config_files import fingerprint_path
from tailora.data import Encoded, EncodingReport, Labels, Table, carve, read_table, sample
from tailora.data.cache import cached_encoding
from tailora.data.encoding import encode_table, long_texts, tell_cuts
from tailora.data.formats import find_format, normalise
from tailora.data.streams import open_stream
from tailora.errors import DataError
from tailora.tasks.base import Examples, LoadedModel, Splits, Task, by_length
from tailora.tasks.streams import Streamed, read_heads, stream_examples

if TYPE_CHECKING:
    import torch

    from tailora.evaluation import Evaluation

LINES = "lines"
"""The form of running text that is read line by line."""

_CUT = "text"


class CausalLM(Task):
    """Next-token prediction.

    A ``.txt`` file is one long text, cut into blocks of ``max_length`` tokens; any other data is one example per row:
    a document, a prompt with its completion, or a conversation (``task.format``).
    """

    task_type = "CAUSAL_LM"
    primary = "loss"
    higher_is_better = False

    def read(self, task: TaskConfig) -> Splits:
        """Read the data; a plain text without an evaluation file is cut once, its end evaluates.

        Args:
            task: The task's configuration.

        Returns:
            The splits; for plain text one row each.  Of a stream only the first training rows are there.

        Raises:
            DataError: The data cannot be read or a column is missing.
        """
        if task.streaming:
            return _normal(task, Splits(*read_heads(task)))
        if not _is_plain(task.train):
            return _normal(task, super().read(task))
        if task.format not in ("auto", "text"):
            raise DataError(
                f"task.format={task.format!r} needs rows, but {task.train!r} is one plain text; give a file with "
                "columns, or leave task.format out"
            )
        training = read_table(task.train)
        if task.carves_validation:
            return Splits(*_cut(training, task.validation))
        assert task.evaluation is not None
        return Splits(training, read_table(task.evaluation))

    def load(self, config: RunConfig, splits: Splits) -> LoadedModel:
        """Load the language model, and refuse an encoder, which sees what it would predict; see ``Task.load``."""
        from transformers import AutoModelForCausalLM

        from tailora.tasks.decoders import check_decoder
        from tailora.tasks.loading import load_model

        check_decoder(config)
        return load_model(config, AutoModelForCausalLM)

    def encode(self, task: TaskConfig, splits: Splits, tokenizer: Any) -> tuple[Examples, Examples]:
        """Tokenise; both results carry a ``report`` of what was cut and left out; see ``Task.encode``."""
        limit = min(task.max_length, tokenizer.model_max_length)
        if task.streaming:
            return self._stream(task, splits, tokenizer, limit)
        if _is_plain(task.train):
            training = _blocks(splits.train, tokenizer, limit)
            evaluation = _blocks(splits.evaluation, tokenizer, limit)
            return (
                training.take(sample(len(training), task.train_examples)),
                evaluation.take(sample(len(evaluation), task.eval_examples)),
            )
        splits = _normal(task, splits)
        # Evaluation keeps one example per row: runs with and without packing can be compared by example.
        training = _encode(splits.train, tokenizer, limit, task, packing=task.packing)
        evaluation = _encode(splits.evaluation, tokenizer, limit, task, packing=False)
        tell_cuts(training, evaluation)
        return training, evaluation

    def _stream(self, task: TaskConfig, splits: Splits, tokenizer: Any, limit: int) -> tuple[Streamed, Encoded]:
        splits = _normal(task, splits)
        form = splits.train.form.partition(" ")[0]
        if form == LINES:
            head, evaluation = (_blocks(table, tokenizer, limit) for table in (splits.train, splits.evaluation))
            if not task.carves_validation:
                evaluation = evaluation.take(sample(len(evaluation), task.eval_examples))
        else:
            head = _encode(splits.train, tokenizer, limit, task, packing=task.packing)
            evaluation = _encode(splits.evaluation, tokenizer, limit, task, packing=False)
        start = "the start" if form == LINES else f"the first {head.report.rows} training rows"
        head.report = replace(head.report, source=f"{start} of {head.report.source}")
        tell_cuts(head, evaluation)
        return stream_examples(task, form, head, tokenizer, limit), evaluation

    def calibration(
        self, tokenizer: Any, examples: Examples, *, count: int, batch_size: int, seed: int
    ) -> list[dict[str, torch.Tensor]]:
        """Draw calibration batches, or take the first examples of a stream; see ``Task.calibration``."""
        front = examples.front(count) if isinstance(examples, Streamed) else examples
        return super().calibration(tokenizer, front, count=count, batch_size=batch_size, seed=seed)

    def dataset(self, examples: Examples) -> Any:
        """Return examples as a ``datasets.Dataset``, a stream as a ``datasets.IterableDataset``."""
        import datasets

        if isinstance(examples, Streamed):
            return datasets.IterableDataset.from_generator(examples.endless)
        return super().dataset(examples)

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


def _normal(task: TaskConfig, splits: Splits) -> Splits:
    """Bring both tables into the shape of the training data's format; a table that is in shape stays as it is."""
    if splits.train.form:
        return splits
    if task.streaming and open_stream(task.train).lines:
        form = f"{LINES} streaming {fingerprint_path(task.train)}"
        return Splits(replace(splits.train, form=form), splits.evaluation)
    form = find_format(splits.train, task.format, task.text, task.text_pair)
    # What changes the examples but not the rows belongs to the fingerprint, by which profiles are shared.
    options = f"packing={task.packing}"
    if form.name != "text":
        options += f" completion_only={task.completion_only}"
    if task.streaming:
        # The rows at hand are the first ones; the data behind them is another's if the source is.
        options += f" streaming {fingerprint_path(task.train)}"
    # The evaluation data may lack an optional column, but its format is that of the training data.
    other = find_format(splits.evaluation, form.name, task.text, task.text_pair)
    return Splits(normalise(splits.train, form, options), normalise(splits.evaluation, other, options), splits.labels)


def _encode(table: Table, tokenizer: Any, limit: int, task: TaskConfig, *, packing: bool) -> Encoded:
    settings: dict[str, Any] = {"limit": limit, "completion_only": task.completion_only, "packing": packing}

    def make() -> Encoded:
        return encode_table(table, tokenizer, **settings)

    return cached_encoding(table, tokenizer, settings, make)


def _blocks(table: Table, tokenizer: Any, length: int) -> Encoded:
    """Tokenise a whole text and cut it into blocks; a block of one token has nothing to predict and is dropped."""
    with long_texts(tokenizer):
        ids = [token for text in table.texts(_CUT, "task.text") for token in tokenizer(text)["input_ids"]]
    cut = [ids[start : start + length] for start in range(0, len(ids), length)]
    blocks = [{"input_ids": block, "labels": list(block)} for block in cut if len(block) > 1]
    if not blocks:
        raise DataError(f"{table.source!r} has {len(ids)} token(s), which leaves nothing to predict; give more text")
    return Encoded(blocks, EncodingReport(table.source, "text", len(table), blocks=len(blocks)))
