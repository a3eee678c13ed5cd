"""Take the quantize at the inputs and the dequantize at the outputs out of the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.errors import RecipeError
from tvm_qplugin.core.qparams import QuantParams
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.plan import activation_params, stored

IO_PARAMS = "qplugin.io_params"
MODES = ("float", "int8", "uint8", "int16")


@tvm.transform.module_pass(opt_level=0, name="QuantizeIO")
@dataclass(frozen=True)
class QuantizeIO:
    """Integer model inputs and outputs.

    In: a QDQ module with float inputs and outputs. Out: with ``mode`` int8, uint8 or int16 every input that
    is only quantized (possibly after a transposition) and every output that is only dequantized has that
    dtype, or int16 where the model computes it in that (the states of cells of int8 models); their parameters
    stand in the attribute ``qplugin.io_params``. ``mode="float"`` changes nothing. RecipeError where no
    integers of the module's ends are of the width of ``mode``.
    """

    mode: str = "float"

    def __post_init__(self) -> None:
        """Check the mode."""
        if self.mode not in MODES:
            raise RecipeError(f"io={self.mode!r}: expected one of {', '.join(MODES)}")

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        if self.mode == "float":
            return mod
        func = ir.main_function(mod)
        inputs = {param: params for param in func.params if (params := _input_params(func, param))}
        self._check([*inputs.values(), *_output_grids(func)])
        typed = [self._typed(param, inputs.get(param)) for param in func.params]
        env: dict[relax.Var, relax.Expr] = dict(zip(func.params, typed, strict=True))
        with ir.Emitter(mod, typed) as out:
            for var, value in ir.bindings(func):
                env[var] = self._rewrite(var, value, env, inputs, out)
            outputs, grids = self._outputs(func, env, out)
            described = {
                "inputs": [_json(inputs.get(param), self.mode) for param in func.params],
                "outputs": [_json(grid, self.mode) for grid in grids],
            }
            described = _with_known(described, func)
            return out.finish(outputs, ir.returns_tuple(func), **{IO_PARAMS: json.dumps(described)})

    def _check(self, grids: Sequence[QuantParams | None]) -> None:
        found = {grid.dtype for grid in grids if grid is not None}
        fitting = [stored(QuantParams.of(1.0, 0, dtype), self.mode).dtype == self.mode for dtype in found]
        if found and not any(fitting):
            other = "int16" if "int16" in found else "int8"
            raise RecipeError(
                f"io={self.mode!r} was asked for, but the model computes in {' and '.join(sorted(found))}: "
                f"use io='float' or io={other!r}"
            )

    def _typed(self, param: relax.Var, grid: QuantParams | None) -> relax.Var:
        if grid is None:
            return param
        return relax.Var(param.name, relax.TensorType(ir.spec_of(param).shape, stored(grid, self.mode).dtype))

    def _rewrite(
        self,
        var: relax.Var,
        value: relax.Expr,
        env: dict[relax.Var, relax.Expr],
        inputs: dict[relax.Var, QuantParams],
        out: ir.Emitter,
    ) -> relax.Expr:
        if isinstance(value, relax.Var | relax.Tuple):
            return ir.substitute(value, env)
        new = ir.retyped(value, env)
        if ir.op_name(value) == "relax.quantize" and str(new.args[0].ty.dtype) != "float32":
            return new.args[0]
        if ir.op_name(value) == "relax.dequantize" and str(new.args[0].ty.dtype) != str(
            value.args[0].ty.dtype
        ):
            params = ir.qparams_of(value)
            assert params is not None
            new = ir.dequantize(new.args[0], stored(params, self.mode))
        return out.emit(new, var.name)

    def _outputs(
        self, func: relax.Function, env: dict[relax.Var, relax.Expr], out: ir.Emitter
    ) -> tuple[list[relax.Expr], list[QuantParams | None]]:
        outputs, grids = [], _output_grids(func)
        for var, found in zip(ir.output_vars(func), grids, strict=True):
            expr = env.get(var, var)
            if found is not None:
                grid = stored(found, self.mode)
                expr = out.emit(ir.quantize(expr, grid), f"{var.name}_out")
            outputs.append(expr)
        return outputs, grids


def _input_params(func: relax.Function, param: relax.Var) -> QuantParams | None:
    """The grid of an input that is only ever quantized, directly or behind one transposition."""
    users, defined = ir.consumers(func), ir.definitions(func)
    readers, seen = users.get(param, []), {param}
    if len(readers) == 1 and ir.op_name(defined[readers[0]]) == "relax.permute_dims":
        seen.add(readers[0])
        readers = users.get(readers[0], [])
    if (
        seen & set(ir.output_vars(func))
        or len(readers) != 1
        or ir.op_name(defined[readers[0]]) != "relax.quantize"
    ):
        return None
    return activation_params(defined[readers[0]])


def _output_grids(func: relax.Function) -> list[QuantParams | None]:
    defined = ir.definitions(func)
    return [_output_params(defined, var) for var in ir.output_vars(func)]


def _output_params(defined: dict[relax.Var, relax.Expr], var: relax.Var) -> QuantParams | None:
    value = defined.get(var)
    if value is not None and ir.op_name(value) == "relax.permute_dims":
        value = defined.get(value.args[0])
    if value is None or ir.op_name(value) != "relax.dequantize":
        return None
    return activation_params(value)


def _json(params: QuantParams | None, mode: str) -> dict[str, object] | None:
    return None if params is None else stored(params, mode).to_json()


def _with_known(
    described: dict[str, list[dict[str, object] | None]], func: relax.Function
) -> dict[str, list[dict[str, object] | None]]:
    """What was integer before keeps the parameters that are written down for it."""
    attrs = func.attrs or {}
    known = json.loads(str(attrs[IO_PARAMS])) if IO_PARAMS in attrs else described
    return {side: [n or o for n, o in zip(described[side], known[side], strict=True)] for side in described}
