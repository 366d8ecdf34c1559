"""One contract for every kind of adapter: exactly k entries, which train; the rest keeps its bits."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from mask_cases import frozen_everywhere, mask_of, train, values, wrap

import models
import tailora

QV = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
CAUSAL = {"task_type": "CAUSAL_LM"}
# name: configuration, model, a part of the name of a parameter that must be among the candidates
METHODS = {
    "lora": (lambda: peft.LoraConfig(r=4, **QV), "llama", "lora_A"),
    "mixed-ranks": (lambda: peft.LoraConfig(r=4, rank_pattern={"q_proj": 1}, use_rslora=True, **QV), "llama", "lora_B"),
    "dora": (lambda: peft.LoraConfig(r=4, use_dora=True, **QV), "llama", "magnitude"),
    "conv1d": (lambda: peft.LoraConfig(r=2, target_modules=["c_attn"], **CAUSAL), "gpt2", "c_attn.lora_A"),
    "embedding": (
        lambda: peft.LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], **CAUSAL),
        "llama",
        "lora_embedding_A",
    ),
    "experts": (
        lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"], **CAUSAL),
        "mixtral",
        "experts",
    ),
    "lora-bias": (lambda: peft.LoraConfig(r=2, bias="lora_only", target_modules=["c_attn"], **CAUSAL), "gpt2", "bias"),
    "ia3": (
        lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL),
        "llama",
        "ia3_l",
    ),
    "loha": (lambda: peft.LoHaConfig(r=2, **QV), "llama", "hada_w1_a"),
    "lokr": (lambda: peft.LoKrConfig(r=2, **QV), "llama", "lokr_w1"),
    "oft": (lambda: peft.OFTConfig(oft_block_size=4, **QV), "llama", "oft_R"),
    "boft": (lambda: peft.BOFTConfig(boft_block_size=4, **QV), "llama", "boft_R"),
    "vera": (lambda: peft.VeraConfig(r=4, target_modules=["q_proj"], **CAUSAL), "llama", "vera_lambda"),
    "prompt": (lambda: peft.PromptTuningConfig(num_virtual_tokens=3, **CAUSAL), "llama", "prompt_encoder"),
    "prefix": (lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, **CAUSAL), "llama", "prompt_encoder"),
    "p-tuning": (lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, **CAUSAL), "llama", "mlp_head"),
    "head": (lambda: peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"), "bert", "lora_A"),
    "saved-module": (lambda: peft.LoraConfig(r=2, modules_to_save=["lm_head"], **QV), "llama", "lora_A"),
    "seq2seq": (lambda: peft.LoraConfig(r=2, target_modules=["q", "wo"], task_type="SEQ_2_SEQ_LM"), "t5", "lora_A"),
    "bottleneck": (lambda: tailora.BottleneckConfig(task_type="CAUSAL_LM"), "llama", "down"),
    "layer-norms": (lambda: peft.LNTuningConfig(target_modules=["input_layernorm"], **CAUSAL), "llama", "ln_tuning"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_contract(method, tmp_path):
    make, name, part = METHODS[method]
    batches = models.batches(name)
    model = wrap(models.build(name, dtype=torch.float64), make())
    mask = mask_of(model, name, keep=0.3, warmup_steps=6, warmup_lr=1e-2)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert mask.total + mask.head == trainable
    assert any(part in key for key in mask.tensors)
    assert sum(int(t.sum()) for t in mask.tensors.values()) == mask.kept == int(0.3 * mask.total)
    assert (mask.head > 0) == (method in ("head", "saved-module"))
    before = values(model)
    train(model, mask.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1), batches, 5, clip=1.0)
    assert frozen_everywhere(mask, before, model)
    now = mask.parameters(model)
    moved = sum(int((now[n].detach()[t] != before[n][t]).sum()) for n, t in mask.tensors.items())
    # Weight decay and moments reach every kept entry but those that are zero and never see a gradient.
    assert moved > 0.8 * mask.kept
    for key, p in model.named_parameters():
        if p.requires_grad and key not in mask.tensors:
            assert not torch.equal(p.detach(), before[key]), key
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(models.build(name, dtype=torch.float64), str(tmp_path)).eval()
    # peft makes virtual tokens in float32, whatever the model's dtype.
    tolerance = 1e-5 if model.active_peft_config.is_prompt_learning else 1e-9
    with torch.no_grad():
        wanted = model(**batches[0]).logits
        torch.testing.assert_close(loaded(**batches[0]).logits, wanted, rtol=tolerance, atol=tolerance)
