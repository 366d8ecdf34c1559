"""Causal language modelling refuses encoders, which see the tokens that they would predict."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf

from tailora.errors import ConfigError
from tailora.tasks import TASKS
from tailora.tasks.loading import load_model
from tiny_runs import WORDS, save_bert, text_config, tokenizer

TINY = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def config_of(folder, model):
    return text_config(folder).model_copy(update={"model": str(model)})


def load(config, kind="causal-lm"):
    task = TASKS[kind]
    changed = config.model_copy(update={"task": config.task.model_copy(update={"kind": kind})})
    return task.load(changed, TASKS["causal-lm"].read(config.task))


def save(folder, config, kind):
    kind(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize("kind", ["causal-lm", "multiple-choice"])
def test_an_encoder_is_refused_before_its_weights_are_read(tmp_path, kind):
    folder = save_bert(tmp_path / "encoder")
    (folder / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(ConfigError) as refused:
        load(config_of(tmp_path, folder), kind)
    assert str(refused.value) == (
        f"task.kind={kind!r} needs a causal language model, but {str(folder)!r} is an encoder (bert), whose tokens see "
        "those that they would predict; use the task kind text-classification (tailora profile: --task "
        "text-classification), or set is_decoder: true in its config.json if it was trained as a decoder"
    )


def test_a_bert_that_is_a_decoder_is_loaded_and_sees_no_later_token(tmp_path):
    folder = change(save_bert(tmp_path / "decoder"), is_decoder=True)
    model = load(config_of(tmp_path, folder)).model.eval()
    ids = torch.tensor([[4, 5, 6, 7]])
    other = torch.tensor([[4, 5, 6, 8]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits[0, :3], model(input_ids=other).logits[0, :3])


def test_what_the_refusal_is_about(tmp_path):
    """The same weights as an encoder: the first token's logits tell the last token."""
    folder = save_bert(tmp_path / "encoder")
    model = load_model(config_of(tmp_path, folder), tf.AutoModelForCausalLM).model.eval()
    with torch.no_grad():
        one, other = (model(input_ids=torch.tensor([[4, 5, last]])).logits[0, 0] for last in (6, 7))
    assert not torch.equal(one, other)


def test_other_encoders(tmp_path):
    xlm = tf.XLMConfig(
        vocab_size=len(WORDS), emb_dim=16, n_layers=1, n_heads=2, max_position_embeddings=64, pad_index=0
    )
    folder = save(tmp_path / "xlm", xlm, tf.XLMWithLMHeadModel)
    with pytest.raises(ConfigError, match="set causal: true in its config.json"):
        load(config_of(tmp_path, folder))
    # One that has no causal form at all gets no hint to change its configuration.
    distil = tf.DistilBertConfig(vocab_size=len(WORDS), dim=16, n_layers=1, n_heads=2, hidden_dim=24)
    folder = save(tmp_path / "distil", distil, tf.DistilBertModel)
    with pytest.raises(ConfigError, match=r"is an encoder \(distilbert\).*text-classification\)$"):
        load(config_of(tmp_path, folder))


def test_decoders_pass(tmp_path):
    assert load(text_config(tmp_path)).model.config.model_type == "llama"
    bart = tf.BartConfig(
        vocab_size=len(WORDS),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=64,
    )
    folder = save(tmp_path / "bart", bart, tf.BartForCausalLM)
    assert load(config_of(tmp_path, folder)).model.config.is_decoder


def test_what_cannot_be_read_keeps_the_sentence_of_loading(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load(config_of(tmp_path, tmp_path / "absent"))
    folder = save_bert(tmp_path / "broken")
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(config_of(tmp_path, folder))


def test_the_real_encoder(tmp_path, minilm):
    with pytest.raises(ConfigError, match="is an encoder"):
        load(config_of(tmp_path, minilm))
