"""Portable definitions (TE) of the integer and float kernels, one file per family.

``build_kernel`` makes the tagged, unscheduled PrimFunc of any name in ``core/oracle.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from tvm import te, tirx

from tvm_qplugin.core.attrs import KERNEL, PARAMS, Params, TensorSpec, encode_params
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.kernels.halo import inside_halo, with_halo
from tvm_qplugin.kernels.shapes import output_shape

__all__ = ["KERNELS", "build_kernel", "extra_constants", "output_shape"]

Definition = Callable[[Params, Sequence[te.Tensor], TensorSpec], te.Tensor | tirx.PrimFunc]
"""An output computed from the inputs, or a complete function that no schedule is to touch."""

KERNELS = {
    "quantize": "elementwise:quantize",
    "dequantize": "elementwise:dequantize",
    "requantize": "elementwise:requantize",
    "qadd": "elementwise:qadd",
    "qmul": "elementwise:qmul",
    "qextreme": "elementwise:qextreme",
    "qprelu": "elementwise:qprelu",
    "qclamp": "elementwise:qclamp",
    "qlut": "elementwise:qlut",
    "qconv2d": "conv:qconv2d",
    "qconv2d_add": "conv:qconv2d_add",
    "fconv2d": "conv:fconv2d",
    "qdense": "dense:qdense",
    "fdense": "dense:fdense",
    "wdense": "grouped:wdense",
    "wexpand": "grouped:wexpand",
    "dmatmul": "matmul:dmatmul",
    "qmatmul": "matmul:qmatmul",
    "qmatmul16": "matmul:qmatmul16",
    "qavgpool2d": "pool:qavgpool2d",
    "qmaxpool2d": "pool:qmaxpool2d",
    "qmean": "pool:qmean",
    "qsum": "pool:qmean",
    "qreduce": "pool:qreduce",
    "qsoftmax": "softmax:qsoftmax",
    "qlstm": "lstm:qlstm",
    "qresize2d": "resize:qresize2d",
    "qpad": "movement:qpad",
    "requantize16": "elementwise16:requantize16",
    "qadd16": "elementwise16:qadd16",
    "qmul16": "elementwise16:qmul16",
    "qconv2d16": "layers16:qconv2d16",
    "qdense16": "layers16:qdense16",
    "qmean16": "windows16:qmean16",
    "qsum16": "windows16:qsum16",
    "qsoftmax16": "windows16:qsoftmax16",
    "qresize2d16": "windows16:qresize2d16",
}


def build_kernel(name: str, params: Params, args: Sequence[TensorSpec], out: TensorSpec) -> tirx.PrimFunc:
    """The unscheduled PrimFunc ``(args..., extra constants..., out)`` of kernel ``name``.

    ``args`` are the arrays of the oracle's table; ``extra_constants`` says what follows them. Shapes
    are physical: a halo (``in_halo``, ``a_halo``, ``b_halo``, ``out_halo``: top, left, bottom, right) is part
    of them. Raises KeyError for an unknown name.
    """
    specs = [*args, *(TensorSpec(a.shape, str(a.dtype)) for a in extra_constants(name, params, args))]
    inputs = [te.placeholder(s.shape, s.dtype, name=f"arg{i}") for i, s in enumerate(specs)]
    result = _definition(name)(params, inside_halo(params, inputs), inside_halo_spec(params, out))
    complete = isinstance(result, tirx.PrimFunc)
    func = result if complete else te.create_prim_func([*inputs, with_halo(params, result)])
    return func.with_attrs({KERNEL: name, PARAMS: encode_params(params), "tirx.noalias": True})


def inside_halo_spec(params: Params, out: TensorSpec) -> TensorSpec:
    """The logical shape of an output whose physical shape includes ``out_halo``."""
    top, left, bottom, right = params.get("out_halo") or (0, 0, 0, 0)
    if not (top or left or bottom or right):
        return out
    n, h, w, c = out.shape
    return TensorSpec((n, h - top - bottom, w - left - right, c), out.dtype)


def extra_constants(name: str, params: Params, args: Sequence[TensorSpec]) -> list[Array]:
    """Arrays that a caller appends to the arguments of the kernel: the index tables of resizing."""
    if name not in ("qresize2d", "qresize2d16"):
        return []
    module = import_module(f"tvm_qplugin.kernels.{KERNELS[name].split(':')[0]}")
    tables: list[Array] = module.tables(params, args[0].shape)
    return tables


def _definition(name: str) -> Definition:
    if name not in KERNELS:
        raise KeyError(f"no kernel {name!r}; there are {', '.join(sorted(KERNELS))}")
    module, function = KERNELS[name].split(":")
    definition: Definition = getattr(import_module(f"tvm_qplugin.kernels.{module}"), function)
    return definition
