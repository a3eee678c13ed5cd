"""The recipes that come with the project."""

from __future__ import annotations

from tvm_qplugin.core.recipe import Recipe

INT8 = Recipe("int8", "int8")
FLOAT = Recipe("float", "float")
