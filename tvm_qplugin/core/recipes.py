"""The recipes that come with the project."""

from __future__ import annotations

from tvm_qplugin.core.recipe import Recipe, Rule

INT8 = Recipe("int8", "int8")
INT16X8 = Recipe("int16x8", "int16x8")
EDGETPU = Recipe("edgetpu", "int8", rules=(Rule(op="dense", per_channel=False),))
FP16 = Recipe("fp16", "fp16")
DYNAMIC = Recipe("dynamic", "dynamic")
WEIGHT_INT8 = Recipe("weight_int8", "weight_int8")
WEIGHT_INT4 = Recipe("weight_int4", "weight_int4")
FLOAT = Recipe("float", "float")
