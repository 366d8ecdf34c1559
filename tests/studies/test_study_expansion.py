from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from study_cases import expanded, study_file

from tailora.errors import ConfigError, UserError
from tailora.studies.definition import make_study
from tailora.studies.expansion import expand
from tailora.studies.files import load_study

BUDGETS = ["r=1", "r=2", "1000", "0.5%"]
RECIPES = ["lora", "spectral", "dora", "rslora"]


def titles(runs):
    return [run.title for run in runs]


def test_the_grid_is_crossed_and_ordered(tmp_path):
    runs = expanded(tmp_path, budgets=["r=1", "r=2"], seeds=[3, 1]).final()
    assert titles(runs) == [
        "lora, reviews, r=1, seed 3", "lora, reviews, r=2, seed 3", "spectral, reviews, r=1, seed 3",
        "spectral, reviews, r=2, seed 3", "lora, reviews, r=1, seed 1", "lora, reviews, r=2, seed 1",
        "spectral, reviews, r=1, seed 1", "spectral, reviews, r=2, seed 1",
    ]  # fmt: skip
    assert all(run.config.output == str(tmp_path / "out" / "runs") for run in runs)


def test_each_layer_goes_before_those_below(tmp_path):
    expansion = expanded(
        tmp_path,
        tasks=[{"name": "t", "training": {"warmup_ratio": 0.3, "weight_decay": 0.3}}],
        recipes=[{"name": "x", "recipe": "lora", "training": {"weight_decay": 0.2, "max_grad_norm": 0.2}}],
        budgets=[{"name": "small", "budget": "r=1", "training": {"max_grad_norm": 0.1}}],
        learning_rate=[0.5],
        seeds=[9],
    )
    (run,) = expansion.final()
    training = run.config.training
    assert (training.warmup_ratio, training.weight_decay, training.max_grad_norm) == (0.3, 0.2, 0.1)
    assert (training.learning_rate, run.config.seed, run.config.label) == (0.5, 9, "x")
    assert run.labels["budget"] == "small"
    # A task section that is given as a whole still has its name; the base's own name stays where it has one.
    assert run.config.task.name == "reviews"


def test_a_label_tells_rows_of_one_recipe_apart_and_is_not_in_the_hash(tmp_path):
    expansion = expanded(
        tmp_path, recipes=["lora", {"name": "attention only", "recipe": "lora", "placement": "attention"}]
    )
    plain, attention = expansion.final()
    assert (plain.config.label, attention.config.label) == ("", "attention only")
    assert plain.config.hash == plain.config.model_copy(update={"label": "other"}).hash
    assert plain.config.hash != attention.config.hash


def test_further_runs_are_crossed_with_seeds_and_rates_only(tmp_path):
    expansion = expanded(
        tmp_path, budgets=["r=1", "r=2"], seeds=2, runs=[{"name": "dora at 4", "recipe": "dora", "budget": "r=4"}]
    )
    assert len(expansion.final()) == 2 * 2 * 2 + 2
    only = expanded(tmp_path, recipes=None, budgets=None, runs=[{"name": "one", "recipe": "dora"}])
    assert titles(only.final()) == ["one, reviews, r=8, seed 0"]


def test_exclusions_and_their_notes(tmp_path):
    rules = [{"recipe": "lora", "budget": "r=2"}, {"seed": 1, "recipe": "spectral"}, {"recipe": "lorra"}]
    expansion = expanded(tmp_path, budgets=["r=1", "r=2"], seeds=2, exclude=rules)
    assert titles(expansion.final()) == [
        "lora, reviews, r=1, seed 0", "spectral, reviews, r=1, seed 0", "spectral, reviews, r=2, seed 0",
        "lora, reviews, r=1, seed 1",
    ]  # fmt: skip
    assert expansion.notes == ("exclude names recipe 'lorra', which this study does not have; did you mean 'lora'?",)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("lorra", "recipe 'lorra', .*unknown recipe 'lorra'; did you mean 'lora'"),
        ({"name": "x", "recipe": "spectral", "allocation": {"sigal": "fisher"}}, "recipe 'x', .*'sigal'; did you mean"),
        ({"name": "x", "recipe": "lora", "allocation": {"r_min": -1}}, r"recipe 'x', .*allocation\.r_min=-1"),
        ({"name": "x", "recipe": "explicit"}, "recipe 'x', .*recipe 'explicit' needs ranks"),
    ],
)
def test_a_recipe_that_cannot_be_planned_with_is_refused_before_anything_runs(tmp_path, recipe, message):
    with pytest.raises(ConfigError, match=message):
        expanded(tmp_path, recipes=["lora", recipe])


def test_a_search_runs_on_the_validation_split_and_final_runs_take_the_chosen_rate(tmp_path):
    search = {"search": [0.01, 0.03], "seeds": 1, "validation": 0.25}
    expansion = expanded(tmp_path, learning_rate=search, seeds=2)
    assert len(expansion.search) == 2 * 2
    for run in expansion.search:
        assert (run.config.task.evaluate_on, run.config.task.validation) == ("validation", 0.25)
        assert run.config.seed == 0
    places = [cell.place for cell in expansion.cells]
    final = expansion.final({places[0]: 0.03, places[1]: None})
    assert [run.config.training.learning_rate for run in final] == [0.03, 0.03]
    assert all(run.config.task.evaluate_on == "auto" and run.place == places[0] for run in final)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"recipes": ["lora", {"recipe": "lora"}]}, "an entry of recipes has no name|called 'lora'"),
        ({"recipes": ["lora", "lora"]}, "two entries of recipes are called 'lora'"),
        ({"recipes": ["lora", {"name": "again", "recipe": "lora"}]}, "one and the same run"),
        ({"recipes": [{"placement": "attention"}]}, "an entry of recipes has no name"),
        ({"budgets": ["r=1", {"budget": "r=1", "placement": "attention"}]}, "two entries of budgets are called 'r=1'"),
        ({"runs": [{"name": "lora", "placement": "attention"}]}, "two entries of recipes and runs are called 'lora'"),
        ({"baseline": "dora"}, "baseline='dora' is no recipe of it"),
        ({"exclude": [{"recipes": "lora"}]}, "unknown axis 'recipes'; did you mean 'recipe'"),
        ({"exclude": [{"seed": 0}]}, "'exclude' leaves none"),
        ({"budgets": ["r=x"]}, "the rank 'x' is not a whole number"),
        ({"recipes": [{"name": "a", "trainig": {}}]}, "(recipe 'a', budget 'r=1'): unknown key 'trainig'"),
        ({"recipes": [{"name": "a", "recipe": "lora", "seed": 3}]}, "use seeds of the study"),
        ({"models": [{"name": 3}]}, "name=3"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(tmp_path, keys, words):
    with pytest.raises(UserError) as caught:
        expanded(tmp_path, **keys)
    assert any(part in str(caught.value) for part in words.split("|"))
    assert "\n" not in str(caught.value)


def test_a_search_needs_evaluation_data(tmp_path):
    path = study_file(tmp_path, learning_rate={"search": [0.1, 0.2]})
    with pytest.raises(ConfigError, match="needs task.evaluation"):
        expand(load_study(path, ["base.task.evaluation=null"]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    recipes=st.lists(st.sampled_from(RECIPES), unique=True, max_size=3),
    budgets=st.lists(st.sampled_from(BUDGETS), unique=True, max_size=3),
    seeds=st.lists(st.integers(0, 50), unique=True, min_size=1, max_size=3),
    rates=st.lists(st.sampled_from([1e-4, 1e-3, 0.01]), unique=True, max_size=3),
    rules=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "recipe": st.sampled_from(RECIPES), "budget": st.sampled_from(BUDGETS), "seed": st.integers(0, 50),
                "learning_rate": st.sampled_from([1e-4, 1e-3]),
            },
        ),
        max_size=3,
    ),
)  # fmt: skip
def test_every_run_is_there_once_unless_a_rule_matches(recipes, budgets, seeds, rates, rules):
    base = {
        "model": "org/model",
        "task": {"kind": "causal-lm", "name": "t", "train": "org/data", "max_length": 8},
        "training": {"learning_rate": 0.5},
    }
    values = {
        "name": "s", "output": "/nowhere", "base": base, "seeds": seeds, "learning_rate": rates or None,
        "recipes": [{"name": r, "recipe": r} for r in recipes], "budgets": [{"name": b, "budget": b} for b in budgets],
        "exclude": rules,
    }  # fmt: skip
    wanted = {
        (recipe, budget, seed, rate)
        for recipe, budget, seed, rate in itertools.product(
            recipes or ["lora"], budgets or ["r=8"], seeds, rates or [0.5]
        )
        if not any(
            rule
            and rule.get("recipe", recipe) == recipe
            and rule.get("budget", budget) == budget
            and rule.get("seed", seed) == seed
            and rule.get("learning_rate", rate) == rate
            for rule in rules
        )
    }
    study = make_study(values, "s")
    if not wanted:
        with pytest.raises(ConfigError, match="has no runs"):
            expand(study)
        return
    runs = expand(study).final()
    found = [(r.config.recipe, r.config.budget, r.config.seed, r.config.training.learning_rate) for r in runs]
    assert len(found) == len(wanted)
    assert set(found) == wanted
    assert len({run.config.hash for run in runs}) == len(runs)
    assert base["training"] == {"learning_rate": 0.5}
