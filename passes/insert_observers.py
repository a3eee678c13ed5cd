"""Make the tensors that calibration wants to see outputs of the model."""

from __future__ import annotations

import json
from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.passes import ir

OBSERVED = "qplugin.observed"


@tvm.transform.module_pass(opt_level=0, name="InsertObservers")
@dataclass(frozen=True)
class InsertObservers:
    """Return tensors beside the outputs.

    In: a canonical module; ``names`` are inputs or bindings of ``main`` with a tensor value. Out: ``main``
    returns a flat tuple (its outputs, then each named tensor in the order of ``names``); the function
    attribute ``qplugin.observed`` is the JSON list of names. Raises CalibrationError for a name that is
    unknown or is not a tensor's.
    """

    names: tuple[str, ...]

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        func = ir.main_function(mod)
        wanted = tensors_called(func, self.names)
        with ir.Emitter(mod) as out:
            new: dict[relax.Var, relax.Expr] = {param: param for param in out.params}
            for var, value in ir.bindings(func):
                new[var] = _emitted(out, ir.substitute(value, new), var.name)
            outputs = [new[var] for var in (*ir.output_vars(func), *wanted)]
            return out.finish(outputs, True, **{OBSERVED: json.dumps(self.names)})


def _emitted(out: ir.Emitter, value: relax.Expr, name: str) -> relax.Expr:
    return value if isinstance(value, relax.Var | relax.Tuple) else out.emit(value, name)


def tensors_called(func: relax.Function, names: tuple[str, ...]) -> list[relax.Var]:
    """The inputs and bound variables with these names; CalibrationError for those that are no tensors."""
    known = {var.name: var for var in (*func.params, *ir.definitions(func))}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise CalibrationError(
            f"no tensor is called {', '.join(map(repr, unknown[:5]))}; 'main' has {len(known)} tensors: "
            f"{', '.join(list(known)[:8])} ..."
        )
    found = [known[name] for name in names]
    for var in found:
        if not isinstance(var.ty, relax.TensorType):
            raise CalibrationError(f"{var.name!r} cannot be observed: it is {var.ty}, not a tensor")
    return found
