"""Compile a kernel and compare it with the oracle, unscheduled or scheduled for a target."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm

from tvm_qplugin.core.attrs import Params, TensorSpec
from tvm_qplugin.core.oracle import ORACLE
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.kernels import build_kernel, extra_constants, output_shape

Verify = Callable[..., None]


def run_kernel(name: str, params: Params, arrays: list[Array], dtype: str) -> Array:
    specs = [TensorSpec(a.shape, str(a.dtype)) for a in arrays]
    out = TensorSpec(output_shape(name, params, [a.shape for a in arrays]), dtype)
    func = build_kernel(name, params, specs, out)
    lib = tvm.compile(func, target=tvm.target.Target({"kind": "llvm"}))
    result = tvm.runtime.tensor(np.full(out.shape, 77, out.dtype))
    constants = extra_constants(name, params, specs)
    lib["main"](*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in [*arrays, *constants]], result)
    return result.numpy()


@pytest.fixture(scope="session")
def verify() -> Verify:
    def check(name: str, params: Params, *arrays: Array, dtype: str = "int8") -> None:
        expected = ORACLE[name](params, *arrays, dtype)
        np.testing.assert_array_equal(run_kernel(name, params, list(arrays), dtype), expected)

    return check
