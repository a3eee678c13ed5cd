"""From an IRModule to something that runs: TVM's tail passes, the executable, the artifact."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import relax
from tvm.ir import IRModule

from tvm_qplugin.core.qparams import Array

Runner = Callable[[Sequence[Array]], list[Array]]


def compile_function(mod: IRModule, target: str = "host") -> Runner:
    """Compile ``main`` and return a function from input arrays to a flat list of output arrays."""
    vm = relax.VirtualMachine(relax.build(mod, tvm.target.Target({"kind": "llvm"})), tvm.cpu())

    def run(arrays: Sequence[Array]) -> list[Array]:
        result = vm["main"](*[tvm.runtime.tensor(array) for array in arrays])
        fields = [result] if hasattr(result, "numpy") else list(result)
        return [field.numpy() for field in fields]

    return run
