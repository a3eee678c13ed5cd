"""What TVM sorts, sums up and scatters with: compiled kernel by kernel, the same as numpy's."""

from __future__ import annotations

import numpy as np
from tvm import IRModule, relax, tirx

from tvm_qplugin.builder import build
from tvm_qplugin.frontend import load
from tvm_qplugin.passes.plain_offsets import PlainOffsets

op = relax.op
PLACES = np.array([[0, 1], [3, 2]])
X = np.random.default_rng(0).permutation(12).reshape(2, 6).astype("float32")


def module() -> IRModule:
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(X.shape, "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            top = bb.emit(op.topk(x, 3))
            places = relax.const(PLACES, "int64")
            part = bb.emit(op.strided_slice(x, [1], [0], [2]))
            parts = [
                *(top[0], top[1], op.sort(x, 1), op.argsort(x, 1, dtype="int64"), op.cumsum(x, 1)),
                op.scatter_elements(x, places, part, 1),
            ]
            outputs = [bb.emit_output(bb.emit(part)) for part in parts]
        bb.emit_func_output(relax.Tuple(outputs))
    return bb.get()


def test_same_as_numpy() -> None:
    scattered = X.copy()
    np.put_along_axis(scattered, PLACES, X[:, :2], 1)
    order = np.argsort(X, 1)
    top = np.sort(X, 1)[:, :2:-1], order[:, :2:-1]
    expected = [*top, np.sort(X, 1), order, np.cumsum(X, 1), scattered]
    for found, wanted in zip(build(load(module())).run(X), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_offsets_are_zero() -> None:
    before = relax.transform.LegalizeOps()(load(module()))
    assert _symbolic(before) and not _symbolic(PlainOffsets()(before))


def _symbolic(mod: IRModule) -> list[str]:
    functions = [func for _, func in mod.functions_items() if isinstance(func, tirx.PrimFunc)]
    params = [param for func in functions for param in func.params]
    return [param.name for param in params if isinstance(getattr(param, "elem_offset", None), tirx.Var)]
