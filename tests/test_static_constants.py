"""Constants in the library's read-only data: numbers in the program, tensors for the kernels, no copies."""

import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tvm_qplugin.builder import build, compile_function
from tvm_qplugin.static_constants import ALIGNMENT, SLACK, Constants, lift_constants

WEIGHTS = 64 << 20  # bytes

MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
from tvm_qplugin.artifact import Artifact

def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

artifact = Artifact.load(sys.argv[1])
before = anonymous()
artifact.run(np.zeros(artifact.manifest.inputs[0].shape, "float32"))
print(anonymous() - before)
"""


@I.ir_module
class Before:
    """In the form after ``executable_passes``: two kernels, one of which is given a number once."""

    @T.prim_func(s_tir=True)
    def scale(x: T.Buffer((4,), "float32"), k: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):
        T.func_attr({"global_symbol": "scale"})
        for i in range(4):
            y[i] = x[i] * k[i]

    @T.prim_func(s_tir=True)
    def shift(
        x: T.Buffer((4,), "float32"), k: T.Buffer((4,), "float32"), n: T.int64, y: T.Buffer((4,), "float32")
    ):
        T.func_attr({"global_symbol": "shift"})
        for i in range(4):
            y[i] = x[i] + k[i] * T.cast(n, "float32")

    @R.function(pure=False)
    def main(x: R.Tensor((4,), "float32"), y: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
        cls = Before
        _1 = cls.scale(x, R.const([1.0, 2.0, 3.0, 4.0], "float32"), y)
        _2 = cls.scale(y, R.const([5.0, 6.0, 7.0, 8.0], "float32"), x)
        _3 = cls.scale(x, R.const([1.0, 2.0, 3.0, 4.0], "float32"), y)
        _4 = cls.scale(x, x, y)
        _5 = cls.shift(x, R.const([1.0, 2.0, 3.0, 4.0], "float32"), R.prim_value(T.int64(3)), y)
        return y


def arguments(func: relax.Function) -> list[list[object]]:
    """Of each call: names of variables, values of numbers, constants as lists."""

    def plain(arg: relax.Expr) -> object:
        if isinstance(arg, relax.Var):
            return arg.name
        return arg.value.numpy().tolist() if hasattr(arg.value, "numpy") else int(arg.value)

    return [[plain(arg) for arg in b.value.args] for b in func.body.blocks[0].bindings]


def test_equal_constants_have_one_number_and_a_kernel_given_a_number_keeps_its_constants():
    lifted, constants = lift_constants(Before)
    assert arguments(lifted["main"]) == [
        ["x", 0, "y"],
        ["y", 1, "x"],
        ["x", 0, "y"],
        ["x", "x", "y"],
        ["x", [1.0, 2.0, 3.0, 4.0], 3, "y"],
    ]
    assert constants.users == {"scale": 3}
    assert [item.array.tolist() for item in constants.items] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert [lifted[name].global_symbol for name in ("scale", "shift")] == ["scale", "shift"]


def test_constants_are_aligned_and_followed_by_slack():
    arrays = [np.arange(n, dtype=dtype) for n, dtype in ((3, "int8"), (65, "uint8"), (5, "float32"))]
    constants = Constants()
    assert [constants.add(array) for array in arrays] == [0, 1, 2]
    file = BytesIO()
    constants.write(file)
    assert len(file.getvalue()) == constants.size + SLACK == 4 * ALIGNMENT + SLACK
    for array, item in zip(arrays, constants.items, strict=True):
        assert item.offset % ALIGNMENT == 0
        assert file.getvalue()[item.offset :][: array.nbytes] == array.tobytes()


def test_shape_and_type_tell_equal_bytes_apart():
    constants = Constants()
    zeros = (np.zeros(4, "int8"), np.zeros((2, 2), "int8"), np.zeros(4, "uint8"), np.zeros((), "float32"))
    assert [constants.add(array) for array in (*zeros, *zeros)] == [0, 1, 2, 3] * 2
    assert constants.items[1].strides == (2, 1) and constants.items[3].strides == ()


def module_of(values: Sequence[np.ndarray]) -> tvm.IRModule:
    """An input [2, 3] times the first value, plus the second, times the third, each cast and broadcast."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = x
            for i, value in enumerate(values):
                cast = builder.emit(relax.op.astype(relax.const(value), "float32"))
                y = builder.emit((relax.op.add if i % 2 else relax.op.multiply)(y, cast))
            out = builder.emit_output(y)
        builder.emit_func_output(out)
    return builder.get()


@pytest.mark.parametrize(
    "values",
    [
        (),
        (np.float32(3),),
        (np.arange(6, dtype="float32").reshape(2, 3), np.float32([[1], [2]])),
        (np.int8([1, -2, 3]), np.uint8([[200], [7]]), np.float16([0.5, 1, 2])),
        (np.bool_([True, False, True]), np.int64([4, 5, 6]), np.float64([[0.25], [4]])),
    ],
    ids=["none", "scalar", "float", "integer", "bool"],
)
def test_any_constant_reaches_its_kernel(values):
    module, x = module_of(values), np.arange(6, dtype="float32").reshape(2, 3)
    wanted = x
    for i, value in enumerate(values):
        wanted = wanted + value.astype("float32") if i % 2 else wanted * value.astype("float32")
    np.testing.assert_array_equal(build(module).run(x)[0], wanted.astype("float32"))
    np.testing.assert_array_equal(compile_function(module)([x])[0], wanted.astype("float32"))


def test_a_constant_can_be_the_result():
    @I.ir_module
    class Both:
        @R.function
        def main(x: R.Tensor((3,), "float32")):
            with R.dataflow():
                c = R.const([1.0, 2.0, 4.0], "float32")
                y = R.add(x, R.const([1.0, 2.0, 4.0], "float32"))
                out = (y, c)
                R.output(out)
            return out

    got = build(Both).run(np.float32([1, 1, 1]))
    assert [array.tolist() for array in got] == [[2, 3, 5], [1, 2, 4]]


def test_weights_are_in_the_file_once_and_in_memory_never_copied(tmp_path):
    weights = np.random.default_rng(0).random((4096, WEIGHTS // 4 // 4096), "float32")
    x = relax.Var("x", relax.TensorType((1, 4096), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(relax.op.matmul(x, relax.const(weights)))
        builder.emit_func_output(y)
    artifact = build(builder.get())
    artifact.save(tmp_path / "artifact")
    assert WEIGHTS <= artifact.manifest.sizes["model.so"] < 1.01 * WEIGHTS
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "artifact")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < WEIGHTS // 4
