"""Task files, models and configurations for the tests of lm-eval."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as tf

from tailora.config import make_config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "harness"

COUNTING = """\
task: counting
dataset_path: json
dataset_kwargs: {data_files: {test: "${data_root}/counting.jsonl"}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{start}}"
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 2}
"""

WRITING = """\
task: writing
dataset_path: json
dataset_kwargs: {data_files: {test: "${data_root}/counting.jsonl"}}
output_type: generate_until
test_split: test
doc_to_text: "{{start}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["[SEP]"], do_sample: false, max_gen_toks: 3}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


def save_tasks(folder: Path, rows: int = 12) -> dict:
    """Counting as a choice and as writing; returns the section's places."""
    tasks, data = folder / "tasks", folder / "data"
    tasks.mkdir(parents=True)
    data.mkdir()
    (tasks / "counting.yaml").write_text(COUNTING, encoding="utf-8")
    (tasks / "writing.yaml").write_text(WRITING, encoding="utf-8")
    lines = []
    for number in range(rows):
        words = [f"w{(3 * number + i) % 40}" for i in range(5)]
        choices = [f"w{(7 * number + 11) % 40}", words[4], f"w{(5 * number + 2) % 40}"]
        lines.append(json.dumps({"start": " ".join(words[:4]), "choices": choices, "gold": 1}))
    (data / "counting.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"include_path": str(tasks), "data_root": str(data)}


def story_config(stories: Path, data_root: Path, *tasks: str, **changes):
    """A configuration that scores the small real Llama on the tasks of ``examples/harness``."""
    section = {"tasks": list(tasks), "include_path": str(EXAMPLES), "data_root": str(data_root), **changes}
    text = {"kind": "causal-lm", "train": str(stories / "config.json")}
    return make_config({"model": str(stories), "task": text, "harness": section})


def load_stories(stories: Path):
    return tf.AutoModelForCausalLM.from_pretrained(stories), tf.AutoTokenizer.from_pretrained(stories)


def adapted(model, targets):
    """A LoRA adapter whose product is not zero."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
        return get_peft_model(model, config)
