"""Dense layers of float inputs and stored weights of 8 or 4 bits, see ``core/grouped.py``."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.kernels.arith import Expr
from tvm_qplugin.kernels.conv import bounded


def wexpand(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """The weight [K, N] that codes and scales stand for."""
    codes, scale = inputs
    return te.compute(out.shape, lambda k, n: weight(p, codes, scale, n, k), name="weight")


def wdense(p: Params, inputs: Sequence[te.Tensor], out: TensorSpec) -> te.Tensor:
    """The product with a stored weight, bias and clamp."""
    x, codes, scale, bias = inputs
    k = te.reduce_axis((0, p["depth"]), "k")

    def product(*i: Expr) -> Expr:
        return te.sum(x(*i[:-1], k) * weight(p, codes, scale, i[-1], k), axis=k)

    acc = te.compute(out.shape, product, name="dense")
    return te.compute(out.shape, lambda *i: bounded(p, acc(*i) + bias[i[-1]]), name="bias")


def weight(p: Params, codes: te.Tensor, scale: te.Tensor, n: Expr, k: Expr) -> Expr:
    """One weight as float32."""
    code = codes[n, k] if p["bits"] == 8 else nibble(codes[n, k // 2], k % 2)
    return code.astype("float32") * scale[n, k // p["group"]].astype("float32")


def nibble(byte: Expr, high: Expr) -> Expr:
    """The low (``high`` = 0) or the high nibble (1) of a uint8, in two's complement, as int32."""
    word = byte.astype("int32") << (28 - 4 * high).astype("int32")
    return word >> tirx.const(28, "int32")
