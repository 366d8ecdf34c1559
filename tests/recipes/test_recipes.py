"""Recipes: what ships, what each says, and the sentences for recipes that cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailora.allocation import ALLOCATORS
from tailora.errors import TailoraError, UnknownNameError, UserError
from tailora.methods import METHODS
from tailora.recipes import list_recipes, load_recipe, recipe_names
from tailora.recipes.schema import PILOT_SIGNALS
from tailora.signals import SIGNALS

ASKED = {
    "lora",
    "rslora",
    "dora",
    "lora-plus",
    "attention-only",
    "ffn-only",
    "upper-half",
    "lower-half",
    "random-rank",
    "fim-lora",
    "spectral",
}


def test_what_ships():
    assert set(recipe_names()) >= ASKED
    assert [recipe.name for recipe in list_recipes()] == recipe_names() == sorted(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_whole(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.title
    assert recipe.citation
    assert recipe.allocation.name in ALLOCATORS
    assert recipe.training.method in METHODS
    assert all(signal in SIGNALS for signal in recipe.profiled_signals)
    assert set(recipe.signals) - set(recipe.profiled_signals) <= set(PILOT_SIGNALS)
    assert load_recipe(recipe.to_dict()) == recipe


def test_signals_follow_the_option():
    assert load_recipe("lora").signals == ()
    assert load_recipe("fim-lora").signals == ("fisher",)
    assert load_recipe("spectral").signals == ("gradient_spectrum",)
    assert load_recipe("fim-lora-faithful").signals == ("fisher_batch_b",)


def test_a_recipe_of_ones_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("placement: attention\nallocation: {name: proportional, r_min: 2, r_max: '3x'}\n")
    recipe = load_recipe(file)
    assert (recipe.name, recipe.placement, recipe.allocation.r_min) == ("mine", "attention", 2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("allocation: {name: uniform}\nplacment: ffn\n", "unknown key 'placment'.*did you mean 'placement'"),
        ("allocation: {name: uniform, rmax: 3}\n", "unknown key 'allocation.rmax'.*did you mean 'r_max'"),
        ("allocation: {name: unifrom}\n", "unknown allocator 'unifrom'; did you mean 'uniform'"),
        (
            "allocation: {name: uniform, r_min: -1}\n",
            "allocation.r_min=-1 cannot be used: it should be greater than or equal to 0",
        ),
        (
            "allocation: {name: uniform}\nadapter: {dropout: 1.5}\n",
            "adapter.dropout=1.5 cannot be used: it should be less than 1",
        ),
        (
            "allocation: {name: uniform}\nadapter: {scaling: {kind: cubic}}\n",
            "adapter.scaling.kind='cubic'.*'constant' or 'rslora'",
        ),
        ("allocation: {name: uniform}\nplacement: 'attension'\n", "attension.*did you mean 'attention'"),
        ("allocation: {name: proportional, options: {sginal: fisher}}\n", "did you mean 'signal'"),
        ("placement: ffn\n", "'allocation' is missing; add it"),
        ("- a\n- b\n", "holds a list; it must be a mapping such as 'allocation: {name: uniform}'"),
        ("{", "not valid YAML"),
    ],
)
def test_recipes_that_cannot_be(tmp_path, text, sentence):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        load_recipe(file)
    assert "\n" not in str(caught.value)


def test_missing_file_and_unknown_name():
    with pytest.raises(UserError, match="recipe file 'nowhere.yaml' does not exist; check the path"):
        load_recipe("nowhere.yaml")
    with pytest.raises(UnknownNameError, match="unknown recipe 'Lora'; did you mean 'lora'"):
        load_recipe("Lora")


@given(
    st.dictionaries(
        st.sampled_from(["name", "allocation", "placement", "adapter", "training", "mask", "seed"]),
        st.one_of(st.none(), st.integers(), st.text(max_size=8), st.dictionaries(st.text(max_size=6), st.integers())),
    )
)
def test_any_mapping_is_read_or_refused(data):
    try:
        recipe = load_recipe(data)
    except TailoraError as error:
        assert error.exit_code == 2
    else:
        assert recipe.allocation.name in ALLOCATORS
