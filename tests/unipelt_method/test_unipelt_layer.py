"""What one layer computes: against its formulas, without a look at padding or at later tokens."""

from __future__ import annotations

import pytest
import torch
from unipelt_cases import batch_of, build, layers_of, logits, trainable, wrap

import models
from reference import unipelt_slow as slow
from tailora.errors import UserError

LENGTHS = (7, 4)


def states_of(width):
    return torch.randn(2, 7, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def lora_of(layer, states, gate):
    a, b = layer.unipelt_a["default"].weight, layer.unipelt_b["default"].weight
    return slow.gated_lora(states, layer.base_layer.weight, layer.base_layer.bias, a, b, gate)


def gate_of(gate, states, kind, real):
    return slow.gates(states, gate["default"].weight, gate["default"].bias, kind, real)


def prefix_of(layer):
    rows, keys = layer.unipelt_prefix["default"].weight.tolist(), layer.place.keys
    if "default" in layer.unipelt_prefix_in:
        first, second = layer.unipelt_prefix_in["default"], layer.unipelt_prefix_out["default"]
        rows = slow.projected(rows, first.weight, first.bias, second.weight, second.bias)
    return [row[:keys] for row in rows], [row[keys:] for row in rows]


def adapter_of(layer, states, kind, real):
    down, up = layer.unipelt_down["default"], layer.unipelt_up["default"]
    gate = gate_of(layer.unipelt_gate, states, kind, real)
    return slow.gated_adapter(states, down.weight, down.bias, up.weight, up.bias, lambda v: max(v, 0.0), gate)


def attended(query, value, key, states, kind, real, sees, heads, key_heads, turn=lambda rows, heads: rows):
    """Return attention's output before its output projection."""
    prefix_keys, prefix_values = prefix_of(query)
    return slow.attention(
        turn(lora_of(query, states, gate_of(query.unipelt_gate, states, kind, real)), heads),
        turn([slow.linear(x, key.weight, key.bias) for x in states], key_heads),
        lora_of(value, states, gate_of(value.unipelt_gate, states, kind, real)),
        prefix_keys,
        prefix_values,
        gate_of(query.unipelt_prefix_gate, states, kind, real),
        heads,
        key_heads,
        sees,
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [{}, {"gate": "token"}, {"prefix_projection": 5}])
def test_a_bert_block_is_what_the_formulas_say(attention, options):
    model = wrap(build("bert", attention=attention), **options)
    block = model.get_base_model().bert.encoder.layer[1]
    inner, kind = block.attention.self, options.get("gate", "sequence")
    x = states_of(16)
    real = torch.arange(7)[None] < torch.tensor(LENGTHS)[:, None]
    mask = real[:, None, None, :].expand(2, 1, 7, 7)
    if attention == "eager":
        mask = (~mask).double() * torch.finfo(torch.float64).min
    with torch.no_grad():
        found = block(x, mask)
    found = found[0] if isinstance(found, tuple) else found
    model.requires_grad_(False)
    for row, length in enumerate(LENGTHS):
        states, seen = x[row].tolist(), real[row].tolist()
        after = attended(inner.query, inner.value, inner.key, states, kind, seen, lambda t, s, n=length: s < n, 2, 2)
        out = block.attention.output
        middle = [
            slow.layer_norm(
                [a + b for a, b in zip(slow.linear(row_, out.dense.weight, out.dense.bias), state, strict=True)],
                out.LayerNorm.weight,
                out.LayerNorm.bias,
                out.LayerNorm.eps,
            )
            for row_, state in zip(after, states, strict=True)
        ]
        up, down, norm = block.intermediate.dense, block.output.dense, block.output.LayerNorm
        wide = [[slow.gelu(v) for v in slow.linear(m, up.weight, up.bias)] for m in middle]
        narrow = [slow.linear(w, down.base_layer.weight, down.base_layer.bias) for w in wide]
        narrow = adapter_of(down, narrow, kind, seen)
        wanted = [
            slow.layer_norm([a + b for a, b in zip(n, m, strict=True)], norm.weight, norm.bias, norm.eps)
            for n, m in zip(narrow, middle, strict=True)
        ]
        wanted = torch.tensor(wanted, dtype=torch.float64)
        torch.testing.assert_close(found[row, :length], wanted[:length], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("attention", "tolerance"), [("sdpa", 1e-11), ("eager", 1e-5)])
@pytest.mark.parametrize("masked", [True, False])
def test_a_llama_layer_with_grouped_heads_is_what_the_formulas_say(attention, tolerance, masked):
    """Llama's eager attention takes its softmax in float32."""
    model = wrap(build("llama", attention=attention))
    inner, mlp = model.get_base_model().model.layers[0].self_attn, model.get_base_model().model.layers[0].mlp
    assert inner.num_key_value_groups == 2
    x = states_of(16)
    angles = torch.arange(7, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03]).double().repeat(2)
    cosines, sines = angles.cos(), angles.sin()
    lengths = LENGTHS if masked else (7, 7)
    sees = torch.ones(7, 7, dtype=torch.bool).tril()[None] & (torch.arange(7) < torch.tensor(lengths)[:, None])[:, None]
    mask = sees[:, None] if masked or attention == "eager" else None
    if attention == "eager":
        mask = (~mask).double() * torch.finfo(torch.float64).min
    with torch.no_grad():
        found, _ = inner(x, position_embeddings=(cosines[None], sines[None]), attention_mask=mask)
        behind = mlp(x)
    model.requires_grad_(False)
    for row, length in enumerate(lengths):
        states = x[row].tolist()
        after = attended(
            inner.q_proj,
            inner.v_proj,
            inner.k_proj,
            states,
            "token",
            None,
            lambda t, s, n=length: s <= t and s < n,
            2,
            1,
            lambda rows, heads: slow.rotate(rows, cosines, sines, heads),
        )
        wanted = torch.tensor([slow.linear(a, inner.o_proj.weight) for a in after], dtype=torch.float64)
        torch.testing.assert_close(found[row, :length], wanted[:length], rtol=tolerance, atol=tolerance)
        products = [
            [
                slow.silu(g) * u
                for g, u in zip(slow.linear(s, mlp.gate_proj.weight), slow.linear(s, mlp.up_proj.weight), strict=True)
            ]
            for s in states
        ]
        narrow = [slow.linear(p, mlp.down_proj.base_layer.weight) for p in products]
        wanted = torch.tensor(adapter_of(mlp.down_proj, narrow, "token", None), dtype=torch.float64)
        torch.testing.assert_close(behind[row], wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_every_part_matters(name):
    """Without one of the parts the logits are others."""
    model, batch = wrap(build(name)), batch_of(name)
    wanted = logits(model, batch)
    for part in ("unipelt_up", "unipelt_b", "unipelt_gate.", "unipelt_prefix.", "unipelt_prefix_gate"):
        with torch.no_grad():
            held = {key: p.clone() for key, p in trainable(model).items() if part in key}
            assert held, part
            for key in held:
                trainable(model)[key].zero_()
        assert not torch.allclose(logits(model, batch), wanted, atol=1e-7), part
        with torch.no_grad():
            for key, value in held.items():
                trainable(model)[key].copy_(value)
    assert torch.equal(logits(model, batch), wanted)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("gate", ["sequence", "token"])
def test_padding_changes_nothing(attention, gate):
    model, batch = wrap(build("bert", attention=attention), gate=gate), batch_of("bert")
    together = logits(model, batch)
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        alone = logits(model, {key: batch[key][row : row + 1, :length] for key in ("input_ids", "attention_mask")})
        torch.testing.assert_close(together[row], alone[0], rtol=1e-10, atol=1e-12)
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_in_a_decoder(side):
    # The float32 norms of Llama leave differences of that size.
    model = wrap(build("llama"))
    ids = torch.randint(3, 61, (1, 6), generator=torch.Generator().manual_seed(0))
    pad = (2, 0) if side == "left" else (0, 2)
    mask = torch.nn.functional.pad(torch.ones_like(ids), pad)
    padded = {"input_ids": torch.nn.functional.pad(ids, pad), "attention_mask": mask}
    padded["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    found, alone = logits(model, padded)[mask.bool()], logits(model, {"input_ids": ids})[0]
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)


def test_no_token_sees_a_later_one_and_the_cache_changes_nothing():
    model = wrap(build("llama"))
    ids = torch.randint(3, 61, (2, 8), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 5:] = 3
    found = logits(model, {"input_ids": ids})
    torch.testing.assert_close(logits(model, {"input_ids": other})[:, :5], found[:, :5], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(logits(model, {"input_ids": other})[:, 5:], found[:, 5:], atol=1e-4)
    with torch.no_grad():
        start = model(input_ids=ids[:, :5], use_cache=True)
        steps, cache = [start.logits], start.past_key_values
        for t in range(5, 8):
            step = model(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            steps.append(step.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), found, rtol=1e-5, atol=1e-6)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    slow_way = model.generate(input_ids=ids, use_cache=False, **options)
    assert torch.equal(model.generate(input_ids=ids, use_cache=True, **options), slow_way)


def test_a_real_model_generates_the_same_in_a_padded_batch(stories260k):
    import transformers as tf

    model = wrap(tf.AutoModelForCausalLM.from_pretrained(stories260k))
    generator = torch.Generator().manual_seed(0)
    long, short = (torch.randint(5, 400, (1, length), generator=generator) for length in (8, 5))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    alone = [model.generate(input_ids=ids, **options)[:, ids.shape[1] :] for ids in (long, short)]
    padded = torch.cat([long, torch.nn.functional.pad(short, (3, 0))])
    mask = torch.cat([torch.ones_like(long), torch.nn.functional.pad(torch.ones_like(short), (3, 0))])
    together = model.generate(input_ids=padded, attention_mask=mask, **options)[:, 8:]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(*alone)


def test_a_mean_over_the_sequence_is_refused_in_a_causal_model():
    base = build("llama")
    with pytest.raises(UserError, match="'model.layers.0.self_attn' is causal and must not see later ones"):
        wrap(base, gate="sequence")
    assert not layers_of(base)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_attention_may_be_set_anew(name):
    model, batch = wrap(build(name)), batch_of(name)
    first = logits(model, batch)
    model.get_base_model().set_attn_implementation("eager")
    second = model(**batch, output_attentions=True)
    torch.testing.assert_close(second.logits.detach(), first, rtol=1e-5, atol=1e-6)
    # Three prefix positions before the nine tokens, for every query.
    assert second.attentions[0].shape[-1] == 3 + 9
    assert (second.attentions[0][..., :3] > 0).all()
    model.get_base_model().config._attn_implementation_internal = "flex_attention"
    attention = model.get_base_model().get_submodule(layers_of(model)[0].place.attention)
    turns = (torch.ones(1, 7, 8, dtype=torch.float64), torch.zeros(1, 7, 8, dtype=torch.float64))
    with pytest.raises(UserError, match="computed by 'flex_attention'; set_attn_implementation"):
        attention(states_of(16), position_embeddings=turns, attention_mask=None)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_gradient_checkpointing_changes_no_gradient(name, reentrant):
    """Two forward passes with other masks before one backward pass: nothing is left over from the last one."""
    gradients = []
    for checkpointed in (False, True):
        model = wrap(build(name), task_type=models.TASK_TYPES[models.BUILDERS[name][1]])
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        one, two = models.batches(name)
        (model(**one).loss + model(**two).loss).backward()
        gradients.append({key: parameter.grad for key, parameter in trainable(model).items()})
        model.eval()
        # A recomputation may stop between the query projection and attention: its prefix must not stay behind.
        with model.disable_adapter():
            assert torch.equal(logits(model, one), logits(build(name), one))
    assert len(gradients[0]) >= 32
    for key, wanted in gradients[0].items():
        assert wanted.any(), key
        # Llama's norms in float32 are drawn anew to the last bit, so only sums may differ.
        torch.testing.assert_close(gradients[1][key], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_half_precision_bases_have_float32_adapters(name, dtype):
    model, batch = wrap(build(name, dtype=dtype)), batch_of(name)
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    found = model(**batch)
    assert found.logits.dtype == dtype
    found.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in trainable(model).values())
    torch.testing.assert_close(found.logits.detach().float(), logits(model.float(), batch), rtol=0.1, atol=0.1)


def test_under_autocast_the_adapter_follows():
    for name in ("bert", "llama"):
        model, batch = wrap(build(name, dtype=torch.float32)), batch_of(name)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = logits(model, batch)
        torch.testing.assert_close(found.float(), logits(model, batch), rtol=0.1, atol=0.1)
