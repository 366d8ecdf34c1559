"""The placement language: meaning, algebra, canonical form and every error sentence."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tailora.errors import PlacementError
from tailora.placement import TERMS, Placement, Term, all_linear, parse, select
from tailora.targets import ROLES, Target

BLOCK = {
    "self_attn.q_proj": ("attention.query", (8, 8)),
    "self_attn.k_proj": ("attention.key", (4, 8)),
    "self_attn.v_proj": ("attention.value", (4, 8)),
    "self_attn.o_proj": ("attention.output", (8, 8)),
    "mlp.up_proj": ("ffn.up", (16, 8)),
    "mlp.down_proj": ("ffn.down", (8, 16)),
}


def block(prefix: str, depth: int, stack: str = "", *, cross: bool = False) -> list[Target]:
    targets = [Target(f"{prefix}.{n}", r, depth, s, stack=stack) for n, (r, s) in BLOCK.items()]
    if cross:
        targets.append(
            Target(f"{prefix}.encoder_attn.q_proj", "attention.query", depth, (8, 8), stack=stack, cross_attention=True)
        )
    return targets


def decoder_only(layers: int = 6) -> list[Target]:
    targets = [
        Target("embed_tokens", "embedding", None, (50, 8), kind="embedding"),
        Target("stem", "other", None, (8, 8)),
    ]
    for depth in range(layers):
        targets += block(f"layers.{depth}", depth)
        targets.append(Target(f"layers.{depth}.mixer", "other", depth, (8, 8)))
        targets.append(Target(f"layers.{depth}.mlp.gate.weight", "other", depth, (4, 8), kind="parameter"))
        targets.append(
            Target(f"layers.{depth}.mlp.experts.down", "ffn.down", depth, (8, 6), kind="parameter", experts=4)
        )
        targets.append(Target(f"layers.{depth}.shared_gate", "other", depth, (1, 8)))
    return [*targets, Target("lm_head", "head", None, (50, 8))]


def two_towers(encoder: int = 4, decoder: int = 3) -> list[Target]:
    targets = [Target("shared", "embedding", None, (50, 8), kind="embedding")]
    for depth in range(encoder):
        targets += block(f"encoder.block.{depth}", depth, "encoder")
    targets.append(
        Target("encoder.block.0.relative_attention_bias", "other", 0, (32, 4), kind="embedding", stack="encoder")
    )
    for depth in range(decoder):
        targets += block(f"decoder.block.{depth}", depth, "decoder", cross=True)
    return targets


ONE, TWO = decoder_only(), two_towers()


def names(targets: list[Target]) -> set[str]:
    return {t.name for t in targets}


def depths(targets: list[Target], stack: str = "") -> set[int | None]:
    return {t.depth for t in targets if t.stack == stack}


# --- what the terms mean ---------------------------------------------------------------------------------------------


def test_all_linear_leaves_out_what_is_no_matrix_of_a_block() -> None:
    chosen = select(ONE, "all-linear")
    assert len(chosen) == 6 * 8
    gone = names(ONE) - names(chosen)
    assert {re.sub(r"\.\d\.", ".N.", name) for name in gone} == {
        "embed_tokens",
        "stem",
        "lm_head",
        "layers.N.mlp.gate.weight",
        "layers.N.shared_gate",
    }
    assert "encoder.block.0.relative_attention_bias" not in names(select(TWO, "all-linear"))


def test_all_linear_without_blocks_is_every_matrix() -> None:
    targets = [
        Target("table", "embedding", None, (9, 4), kind="embedding"),
        Target("a", "other", None, (4, 4)),
        Target("b", "other", None, (4, 4)),
        Target("classifier", "head", None, (2, 4)),
    ]
    assert [t.name for t in select(targets, "all-linear")] == ["a", "b"]


def test_roles_of_the_named_groups() -> None:
    assert {t.role for t in select(ONE, "attention")} == {role for role in ROLES if role.startswith("attention.")} - {
        "attention.qkv"
    }
    assert {t.role for t in select(ONE, "ffn")} == {"ffn.up", "ffn.down"}
    assert {t.role for t in select(ONE, "query-value")} == {"attention.query", "attention.value"}
    assert {t.role for t in select(ONE, "role: ffn.up + embedding")} == {"ffn.up", "embedding"}


def test_query_value_takes_a_fused_matrix() -> None:
    targets = [Target(f"h.{d}.attn.c_attn", "attention.qkv", d, (24, 8)) for d in range(2)]
    assert select(targets, "query-value") == targets


def test_role_and_regex_reach_outside_the_blocks() -> None:
    assert [t.name for t in select(ONE, "role:head")] == ["lm_head"]
    assert [t.name for t in select(ONE, "regex:^(embed|lm_)")] == ["embed_tokens", "lm_head"]
    assert [t.name for t in select(ONE, r"regex:layers\.3 & regex:gate\.weight$")] == ["layers.3.mlp.gate.weight"]
    with pytest.raises(PlacementError, match="leaves no target"):
        select(ONE, "attention & role:head")


def test_stack_and_cross_attention() -> None:
    assert {t.stack for t in select(TWO, "stack:decoder")} == {"decoder"}
    assert names(select(TWO, "cross-attention")) == {f"decoder.block.{d}.encoder_attn.q_proj" for d in range(3)}
    assert not any(t.cross_attention for t in select(TWO, "stack:decoder & !cross-attention"))


def test_layers_are_numbered_in_each_stack() -> None:
    assert depths(select(ONE, "layers:0-2,5")) == {0, 1, 2, 5}
    chosen = select(TWO, "layers:1,3")
    assert depths(chosen, "encoder") == {1, 3}
    assert depths(chosen, "decoder") == {1}


@pytest.mark.parametrize(
    ("layers", "share", "upper", "lower"),
    [
        (6, "0.5", 3, 3),
        (3, "0.5", 2, 1),  # a half goes up for `upper`, down for `lower`
        (5, "0.3", 2, 1),
        (4, "0.1", 1, 1),  # at least one
        (4, "1", 4, 4),
        (10, "0.15", 2, 1),  # exact decimals: 0.15 * 10 is 1.5, also in binary
        (10, "0.25", 3, 2),
    ],
)
def test_shares_round_to_whole_layers(layers: int, share: str, upper: int, lower: int) -> None:
    targets = decoder_only(layers)
    assert depths(select(targets, f"upper:{share}")) == set(range(layers - upper, layers))
    assert depths(select(targets, f"lower:{share}")) == set(range(lower))


def test_shares_are_taken_of_each_stack() -> None:
    chosen = select(TWO, "upper:0.5")
    assert depths(chosen, "encoder") == {2, 3}
    assert depths(chosen, "decoder") == {1, 2}


@given(layers=st.integers(1, 40), hundredths=st.integers(1, 999))
def test_lower_and_the_rest_of_upper_cover_each_layer_once(layers: int, hundredths: int) -> None:
    targets = [Target(f"l.{d}.a", "other", d, (4, 4)) for d in range(layers)]
    share = Fraction(hundredths, 1000)
    # Where rounding would leave a part empty, it gets one layer all the same.
    assume(Fraction(1, 2) <= (1 - share) * layers < layers - Fraction(1, 2))
    low = names(select(targets, f"lower:{float(share)}"))
    high = names(select(targets, f"upper:{float(1 - share):.3f}"))
    assert low | high == names(targets)
    assert not low & high


# --- algebra ---------------------------------------------------------------------------------------------------------

SUBSETS = ["attention", "ffn", "query-value", "upper:0.5", "lower:0.3", "layers:1-2", "role:ffn.up", r"regex:\.0\."]


@pytest.mark.parametrize("targets", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize("term", SUBSETS)
def test_a_term_and_its_exclusion_split_all_linear(targets: list[Target], term: str) -> None:
    everything = names(select(targets, "all-linear"))
    inside, outside = names(select(targets, f"all-linear & {term}")), names(select(targets, f"!{term}"))
    assert inside | outside == everything
    assert not inside & outside
    assert inside
    assert outside


def chosen(targets: list[Target], rule: str) -> set[str]:
    """Like select, with the empty set where nothing is left."""
    try:
        return names(select(targets, rule))
    except PlacementError as error:
        assert "leaves no target" in str(error)
        return set()


@given(rules=st.lists(st.sampled_from(SUBSETS), min_size=1, max_size=4), targets=st.sampled_from([ONE, TWO]))
def test_conjunction_is_intersection_and_exclusions_add_up(rules: list[str], targets: list[Target]) -> None:
    everything = names(all_linear(targets))
    each = [chosen(targets, f"all-linear&{rule}") for rule in rules]
    assert chosen(targets, "&".join(["all-linear", *rules])) == everything.intersection(*each)
    # De Morgan: taking each away leaves what is in none of them.
    assert chosen(targets, "&".join(f"!{rule}" for rule in rules)) == everything.difference(*each)


@given(rules=st.permutations(["attention", "!layers:0", "upper:0.9", "!role:attention.key"]))
def test_terms_commute_and_order_is_kept(rules: list[str]) -> None:
    result = select(ONE, " & ".join(rules))
    assert result == select(ONE, "attention&upper:0.9&!layers:0&!role:attention.key")
    assert [ONE.index(t) for t in result] == sorted(ONE.index(t) for t in result)


def test_the_caller_s_targets_are_left_alone() -> None:
    targets = tuple(ONE)
    select(targets, "attention & !layers:0")
    assert targets == tuple(ONE)


# --- canonical form --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "canonical"),
    [
        (" attention &  ! layers: 3 - 5 , 0,1,4-7 ", "attention&!layers:0-1,3-7"),
        ("upper:.50", "upper:0.5"),
        ("upper:1.0", "upper:1"),
        ("lower:0.3300&ffn", "lower:0.33&ffn"),
        ("role:ffn.up+attention.query+ffn.up", "role:attention.query+ffn.up"),
        ("!stack: decoder", "!stack:decoder"),
        (r"regex:a\&b\.c&ffn", r"regex:a\&b\.c&ffn"),
        (r"regex:a\\&ffn", r"regex:a\\&ffn"),
    ],
)
def test_canonical_form(rule: str, canonical: str) -> None:
    placement = parse(rule)
    assert str(placement) == canonical
    assert parse(canonical) == placement


def test_an_escaped_ampersand_belongs_to_the_expression() -> None:
    assert parse(r"regex:a\&b & ffn").terms == (Term("regex", "a&b"), Term("ffn"))
    assert parse(r"regex:a\\& ffn").terms == (Term("regex", r"a\\"), Term("ffn"))
    targets = [Target("x.a&b", "other", None, (4, 4)), Target("x.ab", "other", None, (4, 4))]
    assert names(select(targets, r"regex:a\&b")) == {"x.a&b"}


shares = st.integers(1, 1000).map(lambda n: f"{n / 1000:.3f}")
layer_lists = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda p: f"{min(p)}-{max(p)}") | st.integers(0, 5).map(str),
    min_size=1,
    max_size=4,
).map(",".join)
patterns = st.sampled_from([r"\.0\.", r"q_proj$", r"(up|down)", r"[a&]l", r"layers\\?", ".", r"^[^&]*$"])
term_texts = st.one_of(
    st.sampled_from(["all-linear", "attention", "ffn", "query-value"]),
    shares.map("upper:{}".format),
    shares.map("lower:{}".format),
    layer_lists.map("layers:{}".format),
    st.lists(st.sampled_from(ROLES), min_size=1).map(lambda roles: "role:" + "+".join(roles)),
    patterns.map(lambda pattern: "regex:" + pattern.replace("&", r"\&")),
)
rules = st.lists(st.tuples(st.sampled_from(["", "!", " ! "]), term_texts).map("".join), min_size=1, max_size=4)


@given(rule=rules.map(" & ".join))
def test_round_trip(rule: str) -> None:
    placement = parse(rule)
    again = parse(str(placement))
    assert again == placement
    assert str(again) == str(placement)
    outcomes = []
    for text in (rule, str(placement)):
        try:
            outcomes.append(select(ONE, text))
        except PlacementError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@given(rule=st.text(alphabet="atenofup:!&\\,-0.15+() regxlys", max_size=30))
def test_any_text_is_read_or_refused_with_a_sentence(rule: str) -> None:
    try:
        placement = parse(rule)
    except PlacementError as error:
        assert "placement" in str(error)
    else:
        assert parse(str(placement)) == placement


def test_every_example_can_be_read() -> None:
    for form in TERMS.values():
        assert isinstance(parse(form.example), Placement)


# --- errors ----------------------------------------------------------------------------------------------------------


def message(rule: str, targets: list[Target] = ONE) -> str:
    with pytest.raises(PlacementError) as caught:
        select(targets, rule)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("", "placement '' is empty; write 'all-linear' to adapt every matrix in the blocks"),
        ("ffn & ", "term 2 ('') of placement 'ffn & ' is empty; write a term on both sides of every '&'"),
        (
            "ffn & atention",
            "term 2 ('atention') of placement 'ffn & atention' is unknown; did you mean 'attention'? the terms are "
            "all-linear, attention, ffn, query-value, upper:0.5, lower:0.5, layers:0-5,11, stack:decoder, "
            "cross-attention, role:attention.query+ffn.up, regex:...",
        ),
        ("ffn:3", "term 1 ('ffn:3') of placement 'ffn:3' takes no argument; write 'ffn'"),
        ("upper", "term 1 ('upper') of placement 'upper' needs an argument; write for example 'upper:0.5'"),
        (
            "role:ffn.upp",
            "term 1 ('role:ffn.upp') of placement 'role:ffn.upp' has the unknown role 'ffn.upp'; did you mean "
            f"'ffn.up'? the roles are {', '.join(ROLES)}",
        ),
        (
            "!upper:1.5",
            "term 1 ('!upper:1.5') of placement '!upper:1.5' has the share '1.5', which is not a number above 0 and up "
            "to 1; write 'upper:0.5'",
        ),
        (
            "layers:3-1",
            "term 1 ('layers:3-1') of placement 'layers:3-1' has '3-1' where a layer number or a range is due; write "
            "'layers:0-5,11'",
        ),
        (
            "layers:4-7",
            "term 1 ('layers:4-7') of placement 'layers:4-7' names layer 6, which this model does not have; it has the "
            "layers 0-5",
        ),
        (
            "regex:(q",
            "term 1 ('regex:(q') of placement 'regex:(q' is not a regular expression (missing ), unterminated "
            "subpattern at position 0); escape what is meant literally",
        ),
        (
            "ffn & regex:qkv",
            "term 2 ('regex:qkv') of placement 'ffn&regex:qkv' matches nothing in this model; its names look like "
            "'layers.3.self_attn.q_proj'",
        ),
        (
            "role:attention.qkv",
            "term 1 ('role:attention.qkv') of placement 'role:attention.qkv' matches nothing in this model; its "
            "targets have the roles attention.query, attention.key, attention.value, attention.output, ffn.up, "
            "ffn.down, embedding, head, other",
        ),
        (
            "!cross-attention",
            "term 1 ('!cross-attention') of placement '!cross-attention' excludes nothing in this model; leave it out",
        ),
        (
            "attention & ffn",
            "placement 'attention&ffn' leaves no target, although each of its terms matches some; drop a term",
        ),
        (
            "stack:decoder",
            "term 1 ('stack:decoder') of placement 'stack:decoder' names the stack 'decoder', but this model has a "
            "single, unnamed one; leave the term out",
        ),
    ],
)
def test_error_sentences(rule: str, sentence: str) -> None:
    assert message(rule) == sentence


def test_error_sentences_of_other_models() -> None:
    assert message("stack:encodr", TWO).endswith(
        "names the stack 'encodr', which this model does not have; did you mean 'encoder'? it has decoder, encoder"
    )
    flat = [Target("a", "other", None, (4, 4))]
    assert message("layers:0", flat).endswith(
        "needs numbered layers, and this model has none; place by 'regex:' instead"
    )


@pytest.mark.parametrize("share", ["0", "-0.5", "1.01", "half", "nan", "inf", "1e-9", "1/2", "0." + "1" * 40, "٠.٥"])
def test_bad_shares(share: str) -> None:
    assert "which is not a number above 0 and up to 1" in message(f"upper:{share}")
    assert "which is not a number above 0 and up to 1" in message(f"lower:{share}")


@pytest.mark.parametrize("layers", ["a", "1,,2", "-1", "1-", "1.5", "0-", ",", "9999999999"])
def test_bad_layer_lists(layers: str) -> None:
    assert "where a layer number or a range is due" in message(f"layers:{layers}")


def test_a_huge_range_is_refused_at_once() -> None:
    assert "names layer 6, which this model does not have" in message("layers:0-999999999")


def test_a_role_given_as_a_term_is_understood() -> None:
    assert "did you mean 'role:attention.query'?" in message("attention.query")
    assert "is unknown" in message("!!attention")
