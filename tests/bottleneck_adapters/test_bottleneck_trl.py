"""trl's trainer with a bottleneck configuration: checkpointed, interrupted and resumed without a trace."""

from __future__ import annotations

import warnings

import datasets
import peft
import torch
import transformers as tf
import trl
from bottleneck_cases import trainable

from tailora.bottleneck import BottleneckConfig, BottleneckModel
from tiny_runs import save_llama


def trained(folder, out, steps, resume=None):
    arguments = trl.SFTConfig(
        output_dir=str(folder / out),
        max_steps=steps,
        save_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        gradient_checkpointing=True,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        trainer = trl.SFTTrainer(
            model=tf.AutoModelForCausalLM.from_pretrained(folder / "llama"),
            args=arguments,
            train_dataset=datasets.Dataset.from_dict({"text": [f"w{i} w{i + 1} w{i + 2} w{i + 3}" for i in range(16)]}),
            processing_class=tf.AutoTokenizer.from_pretrained(folder / "llama"),
            peft_config=BottleneckConfig(bottleneck=4, task_type="CAUSAL_LM"),
        )
        trainer.train(resume_from_checkpoint=resume)
    return {name: parameter.detach().clone() for name, parameter in trainable(trainer.model).items()}


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    save_llama(tmp_path / "llama")
    whole = trained(tmp_path, "whole", 8)
    first = trained(tmp_path, "parts", 4)
    again = trained(tmp_path, "parts", 8, resume=str(tmp_path / "parts" / "checkpoint-4"))
    assert whole.keys() == again.keys()
    assert len(whole) == 16
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not any(torch.equal(whole[name], first[name]) for name in whole)
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-8")
    assert isinstance(loaded.base_model, BottleneckModel)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], whole[name]) for name in whole)
