"""What the operators of a ``.tflite`` file are turned into, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax, tirx

from tvm_qplugin.core.attrs import KERNEL
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.core.qparams import Array, QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.tflite.file import TfliteModel, TfliteOperator, TfliteTensor

ACTIVATIONS: dict[str, tuple[float, float | None]] = {
    "RELU": (0.0, None),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
    "RELU_0_TO_1": (0.0, 1.0),
}
"""Bounds of the activations, fused or not."""

NUMBERS = ("float32", "float16")
QUANTIZED = ("int8", "uint8", "int16")


class Graph:
    """The function under construction, and what each tensor of the file has become in it.

    Every tensor is read as real numbers (``real``): floats as they are, integers behind a dequantize.
    ``schemes`` are those by which constants of float operators are stored: "fp16", "dynamic".
    """

    def __init__(self, model: TfliteModel) -> None:
        """Name the tensors; the name of the first of equal names stays as it is."""
        self.model = model
        self.names = _unique([tensor.name for tensor in model.tensors])
        self._builder = relax.BlockBuilder()
        self.kernels: dict[relax.GlobalVar, tirx.PrimFunc] = {}
        self._bindings: list[relax.VarBinding] = []
        self._used = {self.names[index] for index in model.inputs}
        self._reals: dict[int, relax.Expr] = {}
        self._integers: dict[int, relax.Var] = {}
        self._folded: dict[int, Array] = {}
        self._halves: dict[int, Array] = {}
        self.schemes: set[str] = set()

    def tensor(self, index: int) -> TfliteTensor:
        """A tensor as the file describes it."""
        return self.model.tensors[index]

    def shape(self, index: int) -> tuple[int, ...]:
        """A tensor's shape."""
        return self.tensor(index).shape

    def grid(self, index: int) -> QuantParams | None:
        """The parameters of an integer tensor, None for floats."""
        return self.tensor(index).quant

    def emit(self, expr: relax.Expr, name: str) -> relax.Expr:
        """Bind an expression; a variable or constant is returned as it is."""
        if not isinstance(expr, relax.Call | relax.TupleGetItem):
            return expr
        value = self._builder.normalize(expr)
        var = relax.DataflowVar(self._fresh(name), value.ty)
        self._bindings.append(relax.VarBinding(var, value))
        return var

    def kernel(self, func: tirx.PrimFunc) -> relax.GlobalVar:
        """A tagged kernel as a function of the module."""
        var = self._builder.add_func(func.without_attr("global_symbol"), str(func.attrs[KERNEL]))
        self.kernels[var] = func.without_attr("global_symbol")
        return var

    def _fresh(self, name: str) -> str:
        """A tensor's own name, or one that nothing else has."""
        unique, count = name, 1
        while unique in self._used:
            unique, count = f"{name}_{count}", count + 1
        self._used.add(unique)
        return unique

    def finish(self, params: Sequence[relax.Var], results: Sequence[relax.Expr]) -> relax.Function:
        """The function in one dataflow block; more than one result makes a tuple."""
        made = {binding.var for binding in self._bindings}
        fresh = {out: relax.Var(out.name, out.ty) for out in results if out in made}
        bindings = [
            relax.VarBinding(fresh.get(binding.var, binding.var), ir.substitute(binding.value, fresh))
            for binding in self._bindings
        ]
        outputs = [fresh.get(out, out) for out in results]
        body = relax.Tuple(outputs) if len(outputs) > 1 else outputs[0]
        return relax.Function(
            params, self._builder.normalize(relax.SeqExpr([relax.DataflowBlock(bindings)], body))
        )

    def parameter(self, index: int) -> relax.Var:
        """An input of the model as a parameter of ``main``, in its own dtype."""
        tensor = self.tensor(index)
        return relax.Var(self.names[index], relax.TensorType(tensor.shape, tensor.dtype))

    def receive(self, index: int, param: relax.Var) -> None:
        """Let ``param`` stand for an input; an integer one is dequantized."""
        self._reals[index], self._integers[index] = param, param
        grid = self.grid(index)
        if grid is not None:
            self._reals[index] = self.emit(ir.dequantize(param, grid), f"{self.names[index]}_dq")

    def constant(self, index: int) -> Array | None:
        """The values of a constant: integers as stored, floats as float32; None for an activation."""
        if index in self._folded:
            return self._folded[index]
        data = self.tensor(index).data
        if data is None:
            return None
        return np.array(
            data, "float32" if self.tensor(index).dtype in NUMBERS else data.dtype.newbyteorder("=")
        )

    def numbers(self, op: TfliteOperator, slot: int) -> list[int]:
        """An integer input that has to be known at compile time (axes, sizes), flat."""
        index = op.inputs[slot] if slot < len(op.inputs) else -1
        values = None if index < 0 else self.constant(index)
        if values is None or values.dtype.kind not in "iu":
            raise self.error(op, f"input {slot} is not a constant of integers; export with static shapes")
        return [int(value) for value in values.reshape(-1)]

    def fold(self, index: int, values: Array) -> None:
        """Let a computed tensor be a float constant."""
        self._folded[index] = np.asarray(values, "float32")

    def halve(self, index: int, values: Array) -> None:
        """Let a tensor be a float constant that is stored as float16."""
        self.fold(index, values)
        self._halves[index] = np.asarray(values, "float16")

    def floats(self, index: int, name: str, edit: Callable[[Array], Array]) -> relax.Expr | None:
        """A float constant after ``edit``, stored as the file stores it; None for anything else."""
        values = self.constant(index)
        if values is None or (values.dtype != "float32"):
            return None
        if index not in self._halves:
            return ir.const(np.ascontiguousarray(edit(values)))
        self.schemes.add("fp16")
        half = ir.const(np.ascontiguousarray(edit(self._halves[index])))
        return self.emit(relax.op.astype(half, "float32"), name)

    def real(self, index: int) -> relax.Expr:
        """A tensor as real numbers: a variable, or a constant."""
        if index in self._reals:
            return self._reals[index]
        if index in self._halves:
            return self.floats(index, f"{self.names[index]}_f32", lambda values: values)
        values, grid = self.constant(index), self.grid(index)
        if values is None:
            raise ModelError(f"tensor {self.names[index]} is used before it is made; the file is damaged")
        if index in self._folded or grid is None:
            if values.dtype != "float32":
                raise ModelError(
                    f"constant {self.names[index]} is {values.dtype} without a scale; expected float32 or "
                    "quantized int8: export the model again"
                )
            return ir.const(values)
        self._reals[index] = self.emit(ir.dequantize(ir.const(values), grid), f"{self.names[index]}_dq")
        return self._reals[index]

    def codes(self, index: int) -> relax.Expr:
        """A quantized tensor as integers on its grid."""
        found, grid = self._integers.get(index), self.grid(index)
        assert grid is not None
        if found is not None:
            return found
        return self.emit(ir.quantize(self.real(index), grid), f"{self.names[index]}_q")

    def scalar(self, index: int) -> relax.Expr | None:
        """A constant of one element as a scalar of real numbers."""
        values, grid = self.constant(index), self.grid(index)
        if values is None or values.size != 1:
            return None
        real = values if grid is None or index in self._folded else grid.dequantize(values)
        return ir.const(real.reshape(()).astype("float32"))

    def define(self, index: int, expr: relax.Expr) -> None:
        """Bind an operator's result to its tensor; an integer one is quantized and dequantized."""
        name, tensor = self.names[index], self.tensor(index)
        var = self.emit(expr, name)
        if (found := ir.spec_of(var).shape) != tensor.shape:
            raise ModelError(
                f"tensor {name} has shape {list(tensor.shape)} in the file, but what makes it gives "
                f"{list(found)}; the file is damaged: export it again"
            )
        self._reals[index] = var
        if tensor.quant is not None:
            self._integers[index] = self.emit(ir.quantize(var, tensor.quant), f"{name}_q")
            self._reals[index] = self.emit(ir.dequantize(self._integers[index], tensor.quant), f"{name}_dq")

    def step(self, expr: relax.Expr, name: str, grid: QuantParams | None) -> relax.Expr:
        """Data moved on the way to a result: on a grid it stays on it."""
        var = self.emit(expr, name)
        if grid is None:
            return var
        q = self.emit(ir.quantize(var, grid), f"{name}_q")
        return self.emit(ir.dequantize(q, grid), f"{name}_dq")

    def result(self, index: int) -> relax.Expr:
        """What the model returns for an output."""
        found = self._integers.get(index, self._reals.get(index))
        if not isinstance(found, relax.Var):
            raise ModelError(f"output {self.names[index]} does not depend on any input: it is a constant")
        return found

    def activate(self, expr: relax.Expr, activation: str, name: str) -> relax.Expr:
        """The clamp behind an operator; ``expr`` becomes ``name`` where there is one."""
        if activation == "NONE":
            return expr
        low, high = ACTIVATIONS[activation]
        inner = self.emit(expr, name)
        return relax.op.nn.relu(inner) if high is None else relax.op.clip(inner, low, high)

    def one_grid(self, op: TfliteOperator, inputs: Sequence[int]) -> None:
        """ModelError unless an operator's inputs and outputs have the same parameters, as LiteRT demands."""
        grids = [self.grid(index) for index in (*inputs, *op.outputs)]
        first = grids[0]
        if not all(grid is first or (grid and first and grid.same(first)) for grid in grids):
            said = ", ".join("float" if g is None else f"({g.scale:.9g}, {g.zero_point})" for g in grids)
            raise self.error(
                op, f"(scale, zero point) of inputs and outputs are {said}; they must agree: convert again"
            )

    def float_only(self, op: TfliteOperator) -> None:
        """ModelError if an operator that is read in float32 only has integers."""
        if any(self.grid(index) is not None for index in (*op.inputs, *op.outputs) if index >= 0):
            raise self.error(op, "it has integers, and can be read in float32 only: keep it in float")

    def error(self, op: TfliteOperator, text: str) -> ModelError:
        """A ModelError about an operator."""
        return ModelError(f"{op.name} that makes {self.names[op.outputs[0]]}: {text}")

    def option(self, op: TfliteOperator, key: str, default: Any) -> Any:
        """An option, or what holds where the file has none."""
        return op.options.get(key, default)


def _unique(names: Sequence[str]) -> list[str]:
    taken, result = set(names), []
    seen: set[str] = set()
    for name in names:
        unique, count = name, 1
        while unique in seen or (count > 1 and unique in taken):
            unique, count = f"{name}_{count}", count + 1
        seen.add(unique)
        result.append(unique)
    return result
