"""Converters for the operators that PT2E quantization leaves in a program: a QDQ module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.onnx_ops import dequantize, quantize
from tvm_qplugin.passes.rebuild import constant, value_of
from tvm_qplugin.torch_ops import Call

Expr = Any


def _dtype(call: Call) -> str:
    return str(call["dtype"]).removeprefix("torch.")


def _array(value: Any) -> Array:
    array = np.asarray(value) if isinstance(value, int | float) else value_of(value)
    if array is None:
        raise ValueError("its scales and zero points must be constants: static quantization only")
    return array


def _inputs(call: Call, many: str) -> list[Expr]:
    """Tensor, scale and zero point in the order of ONNX; ``many`` is the plural for per-channel ones."""
    scale = _array(call[f"scale{many}"]).astype("float32")
    zero = _array(call[f"zero_point{many}"]).astype(_dtype(call))
    return [call["input"], constant(scale), constant(zero)]


def _quantize(many: str) -> Callable[[Call], Expr]:
    def convert(call: Call) -> Expr:
        limits, dtype = np.iinfo(_dtype(call)), _dtype(call)
        given = int(call["quant_min"]), int(call["quant_max"])
        if given != (limits.min, limits.max):
            raise ValueError(
                f"it clips to {list(given)}, but all of {dtype} was expected: {[limits.min, limits.max]}"
            )
        return quantize(
            call.as_onnx("QuantizeLinear", _inputs(call, many), axis=int(call.args.get("axis", 1)))
        )

    return convert


def _dequantize(many: str) -> Callable[[Call], Expr]:
    def convert(call: Call) -> Expr:
        axis = int(call.args.get("axis", 1))
        return dequantize(call.as_onnx("DequantizeLinear", _inputs(call, many), axis=axis))

    return convert


QUANTIZED: dict[str, Callable[[Call], Expr]] = {
    "quantize_per_tensor.default": _quantize(""),
    "dequantize_per_tensor.default": _dequantize(""),
    "quantize_per_channel.default": _quantize("s"),
    "dequantize_per_channel.default": _dequantize("s"),
}
