"""Recipes: which scheme a layer gets. Ordered, scoped rules; the last match wins."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from tvm_qplugin.core.errors import RecipeError
from tvm_qplugin.core.registry import Registry

SCHEMES = ("int8", "int16x8", "fp16", "dynamic", "weight_int8", "weight_int4", "float")
INTEGER_SCHEMES = ("int8", "int16x8")
WEIGHT_ONLY = {"weight_int8": (8, 0), "weight_int4": (4, 32)}
"""Schemes that store the weights of dense layers alone: bits, and weights that share a scale (0: a row)."""

STORAGE_SCHEMES = ("fp16", "dynamic", *WEIGHT_ONLY)
"""Schemes that compute in float, change how weights are stored, and need no calibration."""

RECOVERABLE_SCHEMES = (*INTEGER_SCHEMES, "dynamic")
"""Schemes with integer weights, whose errors biases and rounding can make up for."""

DEFAULT_OBSERVER = "min_max"

T = TypeVar("T", "Rule", "Recipe")
_KINDS: dict[str, tuple[type, str]] = {"str": (str, "text"), "bool": (bool, "true or false")}
"""Types of fields by their annotations, and what to call them."""


@dataclass(frozen=True)
class Rule:
    """What applies to operators whose output name matches ``scope`` and whose kind is ``op``.

    ``scope`` is a regular expression searched in the name, ``op`` a kind such as ``conv2d`` (None:
    any). Fields left at None change nothing; ``group`` is that of ``Recipe``. Data movement (reshape, concat,
    slices) follows the integer scheme of what it reads, whatever a rule says.
    """

    scope: str = ""
    op: str | None = None
    scheme: str | None = None
    observer: str | None = None
    per_channel: bool | None = None
    reduce_range: bool | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        """Refuse what would silently match nothing."""
        if self.scheme is not None:
            _check_scheme(self.scheme)
        _check_group(self.group)
        _check_types(self)
        try:
            re.compile(self.scope)
        except re.error as error:
            raise RecipeError(f"scope {self.scope!r} is not a regular expression: {error}") from None

    def matches(self, kind: str, name: str) -> bool:
        """Whether the rule applies to an operator."""
        return (self.op is None or self.op == kind) and re.search(self.scope, name) is not None


@dataclass(frozen=True)
class Choice:
    """What a recipe decides for one operator."""

    scheme: str
    observer: str
    per_channel: bool
    reduce_range: bool
    group: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A scheme for the whole model, rules for parts of it, and how accuracy is won back.

    Schemes may be mixed: where int8 and int16x8 layers meet, tensors are requantized; layers of all others
    compute in float beside integer ones, as ``float`` layers do.
    ``adaptive_rounding``: weights are rounded so that their errors compensate, ``correct_bias``: biases make
    up for the mean error of a layer, ``equalize``: channels of a tensor are brought to about equal range
    by factors moved between layers, ``smooth``: spread of channels moves from activations into weights
    (SmoothQuant, for transformers); all need samples, not only their ranges. ``reduce_range``: weights of
    int8 layers, but for depthwise ones, keep to [-64, 64]: less exact, and faster with AVX2 without VNNI.
    ``group``: how many weights along the reduction share a scale in the schemes ``weight_int8`` and
    ``weight_int4``; 0: all of an output, None: 0 and 32.
    """

    name: str = "int8"
    scheme: str = "int8"
    observer: str = DEFAULT_OBSERVER
    per_channel: bool = True
    rules: tuple[Rule, ...] = ()
    adaptive_rounding: bool = False
    correct_bias: bool = False
    equalize: bool = False
    smooth: bool = False
    reduce_range: bool = False
    group: int | None = None

    def __post_init__(self) -> None:
        """Check the schemes, and that there is a use for everything else."""
        _check_scheme(self.scheme)
        _check_group(self.group)
        _check_types(self)
        if self.observers - {DEFAULT_OBSERVER} and not self.integer:
            raise RecipeError(
                f"recipe {self.name!r} names an observer, which only schemes {' and '.join(INTEGER_SCHEMES)} "
                "have a use for: leave it out"
            )
        wanted = [self.reduce_range, *(rule.reduce_range for rule in self.rules)]
        if any(wanted) and "int8" not in self.schemes:
            raise RecipeError(
                f"recipe {self.name!r} reduces the range of weights, which only scheme int8 has a use for: "
                "leave reduce_range out, or choose int8"
            )
        if self.recovers and self.schemes.isdisjoint(RECOVERABLE_SCHEMES):
            raise RecipeError(
                f"recipe {self.name!r} corrects biases, rounds adaptively, equalizes or smooths, which "
                f"scheme {self.scheme} has no use for: choose one of {', '.join(RECOVERABLE_SCHEMES)}"
            )
        groups = {self.group, *(rule.group for rule in self.rules)} - {None}
        if groups and self.schemes.isdisjoint(WEIGHT_ONLY):
            raise RecipeError(
                f"recipe {self.name!r} has a group and no layer that it is for: use it with scheme "
                f"{' or '.join(WEIGHT_ONLY)}"
            )

    @property
    def recovers(self) -> bool:
        """Whether anything is done to win accuracy back."""
        return self.adaptive_rounding or self.correct_bias or self.equalize or self.smooth

    @property
    def schemes(self) -> frozenset[str]:
        """All that a layer may get."""
        return frozenset({self.scheme, *(rule.scheme for rule in self.rules if rule.scheme is not None)})

    @property
    def observers(self) -> frozenset[str]:
        """All that a tensor may be measured with."""
        named = {rule.observer for rule in self.rules if rule.observer is not None}
        return frozenset({self.observer, *named})

    @property
    def integer(self) -> bool:
        """Whether anything is computed in integers, which needs calibration."""
        return not self.schemes.isdisjoint(INTEGER_SCHEMES)

    @property
    def storage(self) -> str:
        """The scheme of a model that computes in float and stores weights small; "" for any other model."""
        found = [scheme for scheme in (self.scheme, *STORAGE_SCHEMES) if scheme in STORAGE_SCHEMES]
        return "" if self.integer else next((s for s in found if s in self.schemes), "")

    def asks_for(self, kind: str, name: str) -> bool:
        """Whether a rule, not only the scheme of the recipe, wants an operator to be quantized."""
        schemes = [rule.scheme for rule in self.rules if rule.scheme and rule.matches(kind, name)]
        return bool(schemes) and schemes[-1] != "float"

    def choose(self, kind: str, name: str) -> Choice:
        """The decision for the operator ``kind`` whose output tensor is ``name``."""
        chosen = {key: getattr(self, key) for key in Choice.__dataclass_fields__}
        for rule in self.rules:
            if rule.matches(kind, name):
                fields = {key: getattr(rule, key) for key in chosen}
                chosen.update({key: value for key, value in fields.items() if value is not None})
        return Choice(**chosen)

    def with_observer(self, observer: str) -> Recipe:
        """The recipe with one observer for all tensors, whatever its rules say."""
        return replace(
            self, observer=observer, rules=tuple(replace(rule, observer=None) for rule in self.rules)
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """Read a recipe; RecipeError names what is not understood."""
        rules = data.get("rules", ())
        if not isinstance(rules, list | tuple):
            raise RecipeError(f"recipe: rules {rules!r}: a list of objects was expected")
        read = tuple(_read(Rule, rule, f"rule {number}") for number, rule in enumerate(rules, 1))
        return _read(cls, {**data, "rules": read}, "recipe")


def _read(kind: type[T], data: Any, where: str) -> T:
    """An object from its fields."""
    known = list(kind.__dataclass_fields__)
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where}: {data!r} was given, an object with {', '.join(known)} expected")
    unknown = [str(name) for name in data if name not in known]
    if unknown:
        raise RecipeError(f"{where}: {', '.join(unknown)} is not known; fields are {', '.join(known)}")
    return kind(**data)


def _check_scheme(scheme: Any) -> None:
    if scheme not in SCHEMES:
        raise RecipeError(f"scheme {scheme!r} is unknown; use one of {', '.join(SCHEMES)}")


def _check_types(item: Rule | Recipe) -> None:
    """Raise RecipeError for a field with text where a truth value belongs, and so on."""
    for field in fields(item):
        kind, _, optional = str(field.type).partition(" | ")
        value = getattr(item, field.name)
        if kind in _KINDS and not isinstance(value, _KINDS[kind][0]) and not (optional and value is None):
            raise RecipeError(f"{field.name} {value!r}: {_KINDS[kind][1]} was expected")


def _check_group(group: int | None) -> None:
    if group is not None and (isinstance(group, bool) or not isinstance(group, int) or group < 0):
        raise RecipeError(
            f"group {group!r}: how many weights share a scale was expected, for example 32, or 0 for all of "
            "an output"
        )


RECIPES: Registry[Recipe] = Registry(
    "recipe",
    {
        "int8": "tvm_qplugin.core.recipes:INT8",
        "int16x8": "tvm_qplugin.core.recipes:INT16X8",
        "edgetpu": "tvm_qplugin.core.recipes:EDGETPU",
        "fp16": "tvm_qplugin.core.recipes:FP16",
        "dynamic": "tvm_qplugin.core.recipes:DYNAMIC",
        "weight_int8": "tvm_qplugin.core.recipes:WEIGHT_INT8",
        "weight_int4": "tvm_qplugin.core.recipes:WEIGHT_INT4",
        "float": "tvm_qplugin.core.recipes:FLOAT",
    },
)


def find_recipe(recipe: str | os.PathLike[str] | Recipe | Mapping[str, Any]) -> Recipe:
    """A recipe by name, from a JSON file, from a mapping, or as it is."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return Recipe.from_json(recipe)
    if isinstance(recipe, os.PathLike):
        recipe = os.fspath(recipe)
    if not isinstance(recipe, str):
        raise RecipeError(f"recipe {recipe!r}: a name, a JSON file, a mapping or a Recipe was expected")
    if recipe in RECIPES:
        return RECIPES[recipe]
    path = Path(recipe)
    if not path.is_file():
        raise RecipeError(f"recipe {recipe!r} is neither one of {', '.join(RECIPES)} nor a JSON file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a JSON object with the fields of a recipe was expected")
    try:
        return Recipe.from_json(data)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
