"""The frame of a PrimFunc that a generator writes whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tvm.script.ir_builder import IRBuilder

from tvm_qplugin.core.attrs import KERNEL, PARAMS, KernelCall, TensorSpec, encode_params
from tvm_qplugin.schedules.x86_isa import Buffer, T


@contextmanager
def scheduled(name: str) -> Iterator[IRBuilder]:
    """A PrimFunc that no schedule is to touch, to be taken out of the builder afterwards."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        yield builder


@contextmanager
def function(call: KernelCall) -> Iterator[IRBuilder]:
    """``scheduled``, tagged with the call that it implements."""
    with scheduled(call.name) as builder:
        T.func_attr({KERNEL: call.name, PARAMS: encode_params(call.params)})
        yield builder


def arguments(specs: Sequence[TensorSpec]) -> list[Buffer]:
    """Declare the arguments; returns flat views of them."""
    buffers = [T.arg(f"p{i}", T.buffer(spec.shape, spec.dtype)) for i, spec in enumerate(specs)]
    return [
        T.decl_buffer((spec.size,), spec.dtype, data=b.data) for b, spec in zip(buffers, specs, strict=True)
    ]
