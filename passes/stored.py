"""What modules whose float layers are stored small say about themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tvm import IRModule

from tvm_qplugin.core.attrs import SCHEME
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.plan import REASONS


def labelled(mod: IRModule, recipe: Recipe, reasons: Mapping[str, str]) -> IRModule:
    """The module with reasons of its layers added, and the scheme of one that is in float altogether."""
    text = (ir.main_function(mod).attrs or {}).get(REASONS, "{}")
    known = {**json.loads(str(text)), **reasons}
    mod = ir.with_main_attr(mod, REASONS, json.dumps(known) if known else None)
    return ir.with_main_attr(mod, SCHEME, recipe.storage) if recipe.storage else mod
