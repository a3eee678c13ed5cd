"""Layer norms that stand in a model as means, differences and a square root: one operator each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes.rebuild import Rebuilder, constant, op_name, rebuild_main, shape_of, value_of

Expr = Any


@tvm.transform.module_pass(opt_level=0, name="FuseLayerNorm")
@dataclass(frozen=True)
class FuseLayerNorm:
    """Recognize layer norms of the last axis with constant scales and offsets.

    In: a float module, constants on the right. Out: ``R.nn.layer_norm`` for
    ``(x - mean(x)) / sqrt(mean((x - mean(x))**2) + epsilon) * gamma + beta``, as ONNX before opset 17 has it
    (also with ``rsqrt``, a reciprocal, or a product as the square). The means would lose most in few bits.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return rebuild_main(mod, _Fuse)


class NormParts(Rebuilder):
    """What norms consist of."""

    def value(self, expr: Expr) -> Expr:
        """What a variable is bound to."""
        return self.defined.get(expr) if isinstance(expr, relax.Var) else None

    def affine(self, call: Expr, name: str) -> tuple[Expr, Array | None]:
        """What is added to or multiplied by a constant, and the constant."""
        if op_name(call) != name:
            return None, None
        return self.value(call.args[0]), value_of(call.args[1])

    def by_root(self, call: Expr) -> tuple[Expr, Expr, float] | None:
        """``a``, ``b`` and epsilon of ``a / sqrt(mean(b**2) + epsilon)``, the mean over the last axis."""
        parts = self.quotient(call)
        if parts is None:
            return None
        variance, epsilon = self.affine(self.value(parts[1]), "add")
        root = self.root(self.value(self.mean(variance)))
        if root is None or epsilon is None or epsilon.size != 1:
            return None
        return parts[0], root, float(epsilon.reshape(()))

    def quotient(self, call: Expr) -> tuple[Expr, Expr] | None:
        """Dividend and the square of the divisor."""
        if op_name(call) == "divide":
            root = self.value(call.args[1])
            return (call.args[0], root.args[0]) if op_name(root) == "sqrt" else None
        if op_name(call) != "multiply":
            return None
        roots = [self.inverse_root(arg) for arg in call.args]
        return next(((a, r) for a, r in zip(call.args, roots[::-1], strict=True) if r is not None), None)

    def inverse_root(self, var: Expr) -> Expr | None:
        """What ``var`` is one by the root of."""
        factor = self.value(var)
        if op_name(factor) == "rsqrt":
            return factor.args[0]
        if op_name(factor) != "divide" or not _is(factor.args[0], 1.0):
            return None
        root = self.value(factor.args[1])
        return root.args[0] if op_name(root) == "sqrt" else None

    def root(self, call: Expr) -> Expr | None:
        """What is squared."""
        name = op_name(call)
        squared = name == "square" or (name == "power" and _is(call.args[1], 2.0))
        if squared or (name == "multiply" and call.args[0].same_as(call.args[1])):
            return call.args[0]
        return None

    def mean(self, call: Expr) -> Expr | None:
        """What is averaged over the last axis, which stays with extent 1."""
        if op_name(call) != "mean" or not call.attrs.keepdims or call.attrs.axis is None:
            return None
        rank = len(shape_of(call.args[0]))
        return call.args[0] if [int(axis) % rank for axis in call.attrs.axis] == [rank - 1] else None


class _Fuse(NormParts):
    def rewrite(self, call: Expr, name: str) -> Expr:
        """The operator where the last addition of one stands."""
        scaled, beta = self.affine(call, "add")
        normal, gamma = self.affine(scaled, "multiply")
        if gamma is None or beta is None:
            return call
        found = self._normalized(normal)
        if found is None or {gamma.size, beta.size} != {shape_of(found[0])[-1]}:
            return call
        vectors = (constant(array.reshape(-1)) for array in (gamma, beta))
        return relax.op.nn.layer_norm(found[0], *vectors, axes=[-1], epsilon=found[1])

    def _normalized(self, call: Expr) -> tuple[Expr, float] | None:
        """``x`` and epsilon, if ``call`` is its difference to the mean by its deviation."""
        parts = self.by_root(call)
        x = None if parts is None else self._centred(parts[0])
        if parts is None or x is None:
            return None
        same = self._centred(parts[1])
        return (x, parts[2]) if same is not None and same.same_as(x) else None

    def _centred(self, var: Expr) -> Expr | None:
        """``x`` of ``x - mean(x)``."""
        call = self.value(var)
        if op_name(call) != "subtract":
            return None
        x, mean = call.args[0], self.mean(self.value(call.args[1]))
        return x if mean is not None and mean.same_as(x) else None


def _is(expr: Expr, number: float) -> bool:
    array = value_of(expr)
    return array is not None and array.size == 1 and float(array.reshape(())) == number
