"""Recipes: the last matching rule wins; what is not understood is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from tvm_qplugin.core.errors import RecipeError
from tvm_qplugin.core.recipe import RECIPES, Recipe, Rule, find_recipe


def test_the_last_match_wins():
    recipe = Recipe(rules=(Rule(scope="block1", scheme="float"), Rule(op="conv2d", scheme="int8")))
    assert recipe.choose("conv2d", "block1_conv").scheme == "int8"
    assert recipe.choose("dense", "block1_fc").scheme == "float"
    assert recipe.choose("dense", "block2_fc").scheme == "int8"


def test_a_rule_changes_only_what_it_names():
    rules = (Rule(per_channel=False), Rule(op="dense", observer="moving_average"))
    choice = Recipe(rules=rules).choose("dense", "x")
    assert (choice.scheme, choice.observer, choice.per_channel) == ("int8", "moving_average", False)


def test_a_rule_reduces_the_range_of_some_weights():
    recipe = Recipe(rules=(Rule(scope="^body", reduce_range=True), Rule(op="dense", reduce_range=False)))
    found = {name: recipe.choose(*name).reduce_range for name in (("conv2d", "body"), ("dense", "body"))}
    assert found == {("conv2d", "body"): True, ("dense", "body"): False}
    assert not recipe.choose("conv2d", "head").reduce_range
    assert Recipe(reduce_range=True).choose("conv2d", "x").reduce_range


@pytest.mark.parametrize("rules", [(), (Rule(reduce_range=True),)])
def test_only_int8_weights_have_a_range_to_reduce(rules: tuple[Rule, ...]):
    with pytest.raises(RecipeError, match="'mine' reduces the range of weights, which only scheme int8 has"):
        Recipe("mine", "int16x8", rules=rules, reduce_range=not rules)


@pytest.mark.parametrize(
    ("scope", "matches"), [("", True), ("conv", True), ("^conv$", False), (r"\d$", True)]
)
def test_scopes_are_searched(scope: str, matches: bool):
    assert Rule(scope=scope).matches("conv2d", "my_conv_1") is matches


@pytest.mark.parametrize(
    ("scheme", "rules", "integer", "storage"),
    [
        ("int8", ["int16x8", "float", "dynamic"], True, ""),
        ("dynamic", ["int8"], True, ""),
        ("dynamic", ["fp16", "float"], False, "dynamic"),
        ("float", ["dynamic", "fp16"], False, "fp16"),
        ("float", [], False, ""),
        ("weight_int4", ["weight_int8", "fp16"], False, "weight_int4"),
        ("int8", ["weight_int4"], True, ""),
    ],
)
def test_what_a_mixture_is(scheme: str, rules: list[str], integer: bool, storage: str):
    recipe = Recipe("mixed", scheme, rules=tuple(Rule(scheme=rule) for rule in rules))
    assert (recipe.integer, recipe.storage, recipe.schemes) == (integer, storage, {scheme, *rules})


def test_a_rule_may_change_the_group():
    recipe = Recipe("mine", "weight_int4", rules=(Rule("head", group=0), Rule("deep", scheme="weight_int8")))
    assert [recipe.choose("dense", name).group for name in ("a", "head", "deep")] == [None, 0, None]
    recipe = Recipe("mine", "weight_int4", group=64, rules=(Rule("head", group=0),))
    assert [recipe.choose("dense", name).group for name in ("a", "head")] == [64, 0]


def test_json_round_trip(tmp_path: Path):
    recipe = Recipe("mine", rules=(Rule("head", "dense", "float"), Rule(per_channel=False)))
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    (tmp_path / "r.json").write_text(json.dumps(recipe.to_json()))
    assert find_recipe(str(tmp_path / "r.json")) == recipe


def test_finding():
    assert find_recipe("int8") is RECIPES["int8"]
    assert find_recipe(RECIPES["float"]) is RECIPES["float"]
    assert find_recipe({"name": "mine"}) == Recipe("mine")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "int7",
            "neither one of int8, int16x8, edgetpu, fp16, dynamic, weight_int8, weight_int4, float nor a",
        ),
        (
            {"scheme": "int4"},
            "scheme 'int4' is unknown; use one of int8, int16x8, fp16, dynamic, weight_int8, weight_int4, f",
        ),
        ({"colour": "red"}, r"fields are name, scheme, observer"),
        ({"rules": [{"colour": "red"}]}, "colour"),
        ({"rules": [{"scope": "("}]}, r"scope '\(' is not a regular expression"),
        ({"rules": [{"scheme": "int4"}]}, "scheme 'int4' is unknown"),
        ({"scheme": "weight_int4", "group": -1}, "group -1: how many weights share a scale was expected"),
        ({"scheme": "weight_int4", "rules": [{"group": 1.5}]}, "group 1.5: how many weights"),
        (
            {"name": "a", "group": 32},
            "recipe 'a' has a group and no layer that it is for: use it",
        ),
        (
            {"rules": [{"scop": "a"}]},
            "rule 1: scop is not known; fields are scope, op, scheme, obs",
        ),
        ({"rules": {"scope": "a"}}, "a list of objects was expected"),
        ({"rules": None}, "rules None: a list of objects was expected"),
        ({"rules": [{}, 1]}, "rule 2: 1 was given, an object with scope, op"),
        ({"rules": [{"scope": None}]}, "scope None: text was expected"),
        ({"rules": [{"op": ["dense"]}]}, r"op \['dense'\]: text was expected"),
        ({"rules": [{"observer": 5}]}, "observer 5: text was expected"),
        ({"observer": 7}, "observer 7: text was expected"),
        ({"observer": None}, "observer None: text was expected"),
        ({"name": 5}, "name 5: text was expected"),
        ({"per_channel": "no"}, "per_channel 'no': true or false was expected"),
        ({"correct_bias": 1}, "correct_bias 1: true or false was expected"),
        ({"smooth": None}, "smooth None: true or false was expected"),
        ({"scheme": ["int8"]}, r"scheme \['int8'\] is unknown"),
        (
            {"scheme": "dynamic", "observer": "entropy"},
            "names an observer, which only schemes int8",
        ),
        (
            {"scheme": "fp16", "rules": [{"observer": "entropy"}]},
            "names an observer, which only schemes int8",
        ),
        ({"scheme": "fp16", "correct_bias": True}, "which scheme fp16 has no use for: choose one of int8"),
    ],
)
def test_what_is_not_understood(given: Any, message: str):
    with pytest.raises(RecipeError, match=message):
        find_recipe(given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "a JSON object"),
        ("[" * 100_000, "is not JSON"),
        ('{"typo": 1}', "r.json: recipe: typo is not known"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, message: str):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(RecipeError, match=message):
        find_recipe(str(tmp_path / "r.json"))
