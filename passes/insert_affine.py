"""Let the caller shift and scale tensors of a model while it runs."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import PassContext

from tvm_qplugin.passes import ir
from tvm_qplugin.passes.insert_observers import tensors_called


@tvm.transform.module_pass(opt_level=0, name="InsertAffine")
@dataclass(frozen=True)
class InsertAffine:
    """Replace tensors ``t`` by ``t * factor + offset`` for all that read them.

    In: a canonical module; ``names`` are bindings of ``main``. Out: ``main`` has two more inputs for each
    name in order, factor and offset, float32 [C] along the last axis; ``<name>_raw`` is the tensor as it was.
    """

    names: tuple[str, ...]

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        func = ir.main_function(mod)
        extra = {
            var: [relax.Var(f"{var.name}_{part}", _channels(var)) for part in ("factor", "offset")]
            for var in tensors_called(func, self.names)
        }
        params = [*func.params, *(param for both in extra.values() for param in both)]
        with ir.Emitter(mod, params) as out:
            env: dict[relax.Var, relax.Expr] = {param: param for param in func.params}
            for var, value in ir.bindings(func):
                new = ir.substitute(value, env)
                if var in extra:
                    raw = out.emit(new, f"{var.name}_raw")
                    factor, offset = extra[var]
                    new = relax.op.add(out.emit(relax.op.multiply(raw, factor), f"{var.name}_scaled"), offset)
                env[var] = new if isinstance(new, relax.Var | relax.Tuple) else out.emit(new, var.name)
            outputs = [env[var] for var in ir.output_vars(func)]
            return out.finish(outputs, ir.returns_tuple(func), **{"qplugin.io": None, "num_input": None})


def _channels(var: relax.Var) -> relax.TensorType:
    return relax.TensorType(ir.spec_of(var).shape[-1:], "float32")
