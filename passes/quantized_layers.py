"""Finds convolutions and dense layers of a QDQ module by the names of their outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tvm import IRModule

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.rebuild import op_name

Var = Any
_PRODUCTS = ("nn.conv2d", "matmul")


@dataclass(frozen=True)
class QuantizedLayer:
    """The convolution or matmul of a layer, and the addition of its bias (the same without one)."""

    product: Var
    total: Var


def layers_called(mod: IRModule, names: Iterable[str]) -> dict[str, QuantizedLayer]:
    """Layers by the name of their output; ModelError names those that are none, or not quantized."""
    defined = ir.definitions(ir.main_function(mod))
    known = {var.name: var for var in defined}
    found = {name: _layer(known.get(name), defined) for name in names}
    if missing := sorted(name for name, layer in found.items() if layer is None):
        raise ModelError(f"{', '.join(missing)}: no quantized convolution or dense layer has such an output")
    return {name: layer for name, layer in found.items() if layer is not None}


def _layer(var: Var, defined: dict[Var, Any]) -> QuantizedLayer | None:
    while var is not None and op_name(defined.get(var)) in ("nn.relu", "clip"):
        var = defined[var].args[0]
    value: Any = None if var is None else defined.get(var)
    if op_name(value) in _PRODUCTS:
        product = var
    elif op_name(value) == "add":
        product = next((arg for arg in value.args if op_name(defined.get(arg)) in _PRODUCTS), None)
    else:
        return None
    weight = None if product is None else defined.get(defined[product].args[1])
    return QuantizedLayer(product, var) if op_name(weight) == "dequantize" else None
