"""One small model around every operator that can be imported: what the matrix of operators is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tvm import IRModule, relax

from tvm_qplugin.frontend import load

Expr = Any
op = relax.op
IMAGE, WIDE = (1, 6, 6, 16), (1, 5, 5, 128)
PADS, WIDTHS, SLICES = [0, 1, 1, 1], (0, 0, 1, 2, 0, 1, 0, 0), "SLICE STRIDED_SLICE"
LAYOUT = {"data_layout": "NHWC", "kernel_layout": "OHWI"}


class Builder:
    """Emits the bindings of one case under its name; weights are random, the same at every run."""

    def __init__(self, block: relax.BlockBuilder, key: str, shape: Sequence[int]) -> None:
        self.block, self.key, self.shape, self.count = block, key, tuple(shape), 0
        self.random = np.random.default_rng(sum(map(ord, key)))

    def normal(self, *shape: int, scale: float = 1.0) -> Expr:
        """A constant."""
        return relax.const((self.random.normal(size=shape) * scale).astype("float32"))

    def number(self, value: float) -> Expr:
        """A scalar constant."""
        return relax.const(np.float32(value), "float32")

    def emit(self, value: Expr) -> Expr:
        """A step on the way to the result."""
        self.count += 1
        return self.block.emit(value, f"{self.key}_{self.count}")

    def before(self, x: Expr) -> Expr:
        """An integer tensor, in a quantized model, of the shape of the input."""
        self.count += 1
        return self.block.emit(op.add(x, self.normal(*self.shape)), f"{self.key}_{self.count}_before")


Make = Callable[[Builder, Expr, Expr], Expr]
"""The operator applied to a tensor, and perhaps to a second one of the same shape."""


@dataclass(frozen=True)
class Case:
    """A row of the matrix: the operator, its names in ONNX and ``.tflite`` files, and how it is made."""

    name: str
    make: Make
    shape: tuple[int, ...] = IMAGE
    onnx: str = ""
    tflite: str = ""

    @property
    def key(self) -> str:
        """The name as an identifier, that of its result."""
        return "".join(c if c.isalnum() else "_" for c in self.name)

    @property
    def scope(self) -> str:
        """A regular expression for the operators that it consists of."""
        return rf"^{self.key}(_\d+|_codes|_blocks)?$"


@dataclass(frozen=True)
class Cell(Case):
    """A recurrent layer, by ONNX's name: a model of its own."""

    scope = "^y_"


def conv(
    out: int, kernel: int, groups: int = 1, strides: int = 1, dilation: int = 1, clamp: bool = True
) -> Make:
    """Convolution, bias and relu."""

    def make(b: Builder, x: Expr, _: Expr) -> Expr:
        channels = b.shape[-1] // groups
        weight = b.normal(out, kernel, kernel, channels, scale=(channels * kernel * kernel) ** -0.5)
        attrs: dict[str, Any] = {"strides": strides, "padding": [dilation * (kernel // 2)] * 4}
        attrs |= {"dilation": dilation, "groups": groups, **LAYOUT}
        y = b.emit(op.add(b.emit(op.nn.conv2d(x, weight, **attrs)), b.normal(out)))
        return op.nn.relu(y) if clamp else y

    return make


def dense(b: Builder, x: Expr, _: Expr) -> Expr:
    """Product with a matrix, and bias."""
    k = b.shape[-1]
    return op.add(b.emit(op.matmul(x, b.normal(k, 40, scale=k**-0.5))), b.normal(40))


def one(function: Callable[..., Expr], *args: Any, **attrs: Any) -> Make:
    """An operator on one tensor."""
    return lambda _b, x, _y: function(x, *args, **attrs)


def binary(name: str, onnx: str, tflite: str) -> list[Case]:
    """An operator on two tensors, on one that is broadcast, on a constant, on a number."""
    function = getattr(op, name)
    left = _positive if name == "power" else _same
    right = _positive if name in ("divide", "power") else _same

    def channels(b: Builder, x: Expr, y: Expr) -> Expr:
        small = b.block.emit(op.mean(y, [1, 2], keepdims=True), f"{b.key}_mean_before")
        return function(left(b, x), right(b, small))

    def constant(b: Builder, x: Expr, _: Expr) -> Expr:
        return function(left(b, x), relax.const(b.random.uniform(0.5, 2, (1, 1, 1, 16)).astype("float32")))

    forms: dict[str, Make] = {
        "": lambda b, x, y: function(left(b, x), right(b, y)),
        ", broadcast": channels,
        ", constant": constant,
        ", number": lambda b, x, _: function(left(b, x), b.number(0.75)),
    }
    return [Case(name + form, make, IMAGE, onnx, tflite) for form, make in forms.items()]


def _same(_b: Builder, x: Expr) -> Expr:
    return x


def _positive(b: Builder, x: Expr) -> Expr:
    return b.emit(op.add(b.emit(op.abs(x)), b.number(1.0)))


def unary(name: str, onnx: str = "", tflite: str = "") -> Case:
    """A function of one tensor, by Relax's name."""
    function = getattr(op.nn, name[3:]) if name.startswith("nn.") else getattr(op, name)
    inside = {"log": _positive, "sqrt": _positive, "rsqrt": _positive, "acosh": _positive}.get(name, _same)
    if name in ("asin", "acos", "atanh"):
        inside = lambda b, x: b.emit(op.clip(x, -0.9, 0.9))  # noqa: E731
    return Case(name.removeprefix("nn."), lambda b, x, _: function(inside(b, x)), IMAGE, onnx, tflite)


def compared(name: str, onnx: str) -> Case:
    """A comparison, as numbers."""
    function = getattr(op, name)
    return Case(name, lambda b, x, y: op.astype(b.emit(function(x, y)), "float32"), IMAGE, f"{onnx} Cast")


def residual(b: Builder, x: Expr, y: Expr) -> Expr:
    """A convolution that something is added to."""
    return op.add(b.emit(conv(16, 3)(b, x, y)), y)


def transposed(b: Builder, x: Expr, _: Expr) -> Expr:
    """The convolution that makes images larger; TVM has it for NCHW only."""
    return op.nn.conv2d_transpose(x, b.normal(16, 24, 2, 2, scale=0.2), (2, 2))


def pool(kind: str, **attrs: Any) -> Make:
    """A pool of windows of 2 x 3."""
    function = getattr(op.nn, f"{kind}_pool2d")
    return lambda _b, x, _y: function(x, (2, 3), layout="NHWC", **attrs)


def resize(method: str, mode: str = "half_pixel", size: tuple[int, int] = (9, 12)) -> Make:
    return lambda _b, x, _y: op.image.resize2d(
        x,
        size,
        layout="NHWC",
        method=method,
        coordinate_transformation_mode=mode,
        rounding_method="round_prefer_floor" if method == "nearest_neighbor" else "",
    )


def hard_swish(b: Builder, x: Expr, _: Expr) -> Expr:
    gate = b.emit(op.clip(b.emit(op.add(x, b.number(3.0))), 0, 6))
    return op.multiply(b.emit(op.multiply(x, gate)), b.number(1 / 6))


def split(b: Builder, x: Expr, _: Expr) -> Expr:
    return relax.TupleGetItem(b.emit(op.split(x, [5], 3)), 1)


def concat(b: Builder, x: Expr, y: Expr) -> Expr:
    """Three tensors, one of them of another range."""
    return op.concat([x, y, b.emit(op.multiply(y, b.number(8.0)))], 3)


def take(b: Builder, x: Expr, _: Expr) -> Expr:
    return op.take(x, relax.const(np.array([3, 0, 3], "int64")), 3)


def gather_elements(b: Builder, x: Expr, _: Expr) -> Expr:
    """An element of each channel of every pixel."""
    return op.gather_elements(x, relax.const(b.random.integers(0, b.shape[-1], b.shape)), 3)


def products(b: Builder, x: Expr, y: Expr) -> Expr:
    """Every row of a tensor with every row of another."""
    return op.matmul(x, b.emit(op.permute_dims(y, [0, 2, 1])))


def batch_norm(b: Builder, x: Expr, _: Expr) -> Expr:
    scale = relax.const(b.random.uniform(0.5, 2, IMAGE[-1]).astype("float32"))
    return op.add(b.emit(op.multiply(x, scale)), b.normal(IMAGE[-1]))


def embedding(b: Builder, x: Expr, _: Expr) -> Expr:
    """Rows of a matrix by numbers that are computed."""
    inside = b.block.emit(op.clip(x, 0, 39), f"{b.key}_inside_before")
    index = b.block.emit(op.astype(inside, "int32"), f"{b.key}_index_before")
    return op.take(b.normal(40, 32), index, 0)


def layer_norm(b: Builder, x: Expr, _: Expr) -> Expr:
    return op.nn.layer_norm(x, b.normal(IMAGE[-1]), b.normal(IMAGE[-1]), axes=-1, epsilon=1e-5)


COMPARED = "greater:Greater greater_equal:GreaterOrEqual less:Less less_equal:LessOrEqual equal:Equal"
UNARY = (
    "sigmoid:Sigmoid:LOGISTIC tanh:Tanh:TANH exp:Exp:EXP nn.gelu:Gelu:GELU nn.gelu_tanh:Gelu:GELU nn.silu:: "
    "nn.softplus:Softplus: nn.selu:Selu: square::SQUARE abs:Abs:ABS negative:Neg:NEG log:Log:LOG "
    "sqrt:Sqrt:SQRT rsqrt::RSQRT erf:Erf: sin:Sin:SIN cos:Cos:COS tan:Tan: sinh:Sinh: cosh:Cosh: asin:Asin: "
    "acos:Acos: atan:Atan: asinh:Asinh: acosh:Acosh: atanh:Atanh: floor:Floor: ceil:Ceil: round:Round: "
    "sign:Sign:"
)
CASES: list[Case] = [
    Case("conv2d 3x3", conv(24, 3), IMAGE, "Conv", "CONV_2D"),
    Case("conv2d 1x1", conv(64, 1), IMAGE, "Conv", "CONV_2D"),
    Case("conv2d strided", conv(24, 3, strides=2), IMAGE, "Conv", "CONV_2D"),
    Case("conv2d dilated", conv(24, 3, dilation=2, clamp=False), IMAGE, "Conv", "CONV_2D"),
    Case("conv2d grouped", conv(32, 3, groups=2), IMAGE, "Conv", "CONV_2D"),
    Case("conv2d depthwise", conv(128, 3, 128), WIDE, "Conv", "DEPTHWISE_CONV_2D"),
    Case("conv2d depthwise strided", conv(128, 3, 128, strides=2), WIDE, "Conv", "DEPTHWISE_CONV_2D"),
    Case("conv2d depthwise, multiplier 2", conv(256, 3, 128), WIDE, "Conv", "DEPTHWISE_CONV_2D"),
    Case("conv2d and add", residual, IMAGE, "Conv", "CONV_2D"),
    Case("conv2d transposed", transposed, (1, 16, 5, 5), "ConvTranspose"),
    Case("dense", dense, (2, 32), "Gemm MatMul", "FULLY_CONNECTED"),
    Case("dense on rows", dense, (2, 3, 32), "MatMul", "FULLY_CONNECTED"),
    *binary("add", "Add Sum", "ADD"),
    *binary("subtract", "Sub", "SUB"),
    *binary("multiply", "Mul", "MUL"),
    *binary("divide", "Div", "DIV"),
    *binary("maximum", "Max", "MAXIMUM"),
    *binary("minimum", "Min", "MINIMUM"),
    *binary("power", "Pow", "POW"),
    Case("avg_pool2d", pool("avg", strides=2, padding=PADS), IMAGE, "AveragePool", "AVERAGE_POOL_2D"),
    Case("avg_pool2d counting pads", pool("avg", padding=PADS, count_include_pad=True), onnx="AveragePool"),
    Case("max_pool2d", pool("max", strides=2, padding=PADS), IMAGE, "MaxPool", "MAX_POOL_2D"),
    Case("max_pool2d dilated", pool("max", dilation=2), onnx="MaxPool"),
    Case("global average pool", one(op.mean, [1, 2], keepdims=True), IMAGE, "GlobalAveragePool", "MEAN"),
    Case("global max pool", one(op.max, [1, 2], keepdims=True), IMAGE, "GlobalMaxPool", "REDUCE_MAX"),
    Case("mean", one(op.mean, [-1]), IMAGE, "ReduceMean", "MEAN"),
    Case("sum", one(op.sum, [-1]), IMAGE, "ReduceSum", "SUM"),
    Case("max", one(op.max, [-1]), IMAGE, "ReduceMax", "REDUCE_MAX"),
    Case("min", one(op.min, [1, 3]), IMAGE, "ReduceMin", "REDUCE_MIN"),
    Case("concat", concat, IMAGE, "Concat", "CONCATENATION PACK"),
    Case("pad", one(op.nn.pad, WIDTHS), IMAGE, "Pad", "PAD"),
    Case("pad with a number", one(op.nn.pad, WIDTHS, pad_value=1.0), IMAGE, "Pad", "PADV2"),
    Case("pad reflected", one(op.nn.pad, WIDTHS, "reflect"), onnx="Pad"),
    Case("reshape", one(op.reshape, (1, 12, 48)), IMAGE, "Reshape", "RESHAPE"),
    Case("flatten", one(op.flatten), onnx="Flatten"),
    Case("squeeze", one(op.squeeze, [0]), IMAGE, "Squeeze", "SQUEEZE"),
    Case("expand_dims", one(op.expand_dims, 1), IMAGE, "Unsqueeze", "EXPAND_DIMS"),
    Case("permute_dims", one(op.permute_dims, [0, 2, 3, 1]), IMAGE, "Transpose", "TRANSPOSE"),
    Case("strided_slice", one(op.strided_slice, [1, 2], [1, 0], [6, 5], [2, 1]), IMAGE, "Slice", SLICES),
    Case("split", split, IMAGE, "Split", "SPLIT SPLIT_V UNPACK"),
    Case("take", take, IMAGE, "Gather Tile", "GATHER"),
    Case("gather_elements", gather_elements, onnx="GatherElements"),
    Case("embedding", embedding, (1, 9), "Gather", "GATHER"),
    Case("softmax", one(op.nn.softmax, -1), IMAGE, "Softmax", "SOFTMAX"),
    Case("softmax of channels", one(op.nn.softmax, 1), onnx="Softmax"),
    Case("log_softmax", one(op.nn.log_softmax, -1), onnx="LogSoftmax"),
    Case("resize2d nearest", resize("nearest_neighbor"), IMAGE, "Resize Upsample", "RESIZE_NEAREST_NEIGHBOR"),
    Case("resize2d bilinear", resize("linear"), IMAGE, "Resize Upsample", "RESIZE_BILINEAR"),
    Case("resize2d cubic", resize("cubic"), onnx="Resize"),
    Case("batch norm", batch_norm, onnx="BatchNormalization"),
    Case("layer norm", layer_norm, onnx="LayerNormalization"),
    Case("relu", one(op.nn.relu), IMAGE, "Relu", "RELU"),
    Case("clip", one(op.clip, -0.5, 0.75), IMAGE, "Clip", "RELU6 RELU_N1_TO_1 RELU_0_TO_1"),
    Case("leaky relu", one(op.nn.leakyrelu, 0.1), IMAGE, "LeakyRelu", "LEAKY_RELU"),
    Case("prelu", lambda b, x, _: op.nn.prelu(x, b.normal(16), axis=3), IMAGE, "PRelu", "PRELU"),
    Case("hard swish", hard_swish, IMAGE, "HardSwish", "HARD_SWISH"),
    *(unary(*entry.split(":")) for entry in UNARY.split()),
    *(compared(*entry.split(":")) for entry in COMPARED.split()),
]


ATTENTION = [Case("matmul of two tensors", products, (2, 4, 8), "MatMul Attention Einsum", "BATCH_MATMUL")]
CELLS = [
    Cell(name, one(op.nn.relu), (3, 1, 8), name, tflite)
    for name, tflite in [("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM"), ("GRU", ""), ("RNN", "")]
]
EVERY = [*CASES, *ATTENTION, *CELLS]


def models() -> Iterator[tuple[Sequence[Case], IRModule]]:
    """Canonical float models and the cases in them; attention and cells change what is around them."""
    yield CASES, load(module_of(CASES))
    yield ATTENTION, load(module_of(ATTENTION))
    for cell in CELLS:
        yield [cell], load(cell_of(cell))


def cell_of(case: Case) -> onnx.ModelProto:
    """One recurrent layer of 3 steps with 8 states."""
    gates, values = {"LSTM": 4, "GRU": 3, "RNN": 1}[case.name], np.random.default_rng(0)
    shapes = {"w": (1, 8 * gates, 8), "r": (1, 8 * gates, 8), "b": (1, 16 * gates)}
    arrays = [
        numpy_helper.from_array((values.normal(size=shape) * 0.5).astype("float32"), name)
        for name, shape in shapes.items()
    ]
    node = helper.make_node(case.name, ["x", *shapes], ["y", "last"], hidden_size=8, name="y")
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, case.shape)
    results = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("y", "last")]
    graph = helper.make_graph([node], "cell", [x], results, arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def module_of(cases: Sequence[Case]) -> IRModule:
    """A model with a branch for each case: an integer tensor, the operator, a product of its result."""
    block = relax.BlockBuilder()
    params = [relax.Var(f"{case.key}_x", relax.TensorType(case.shape, "float32")) for case in cases]
    with block.function("main", params):
        with block.dataflow():
            results = [
                each for case, x in zip(cases, params, strict=True) for each in _branch(block, case, x)
            ]
            outputs = [block.emit_output(value) for value in results]
        block.emit_func_output(relax.Tuple(outputs))
    return block.get()


def _branch(block: relax.BlockBuilder, case: Case, x: relax.Var) -> tuple[Expr, ...]:
    """What is before the operator (so that nothing is fused), its result, and what is computed from it."""
    b = Builder(block, case.key, case.shape)
    before = b.before(x)
    made = block.emit(case.make(b, before, b.before(x)), case.key)
    row = b.normal(int(made.ty.shape[-1]))
    return before, made, block.emit(op.multiply(made, row), f"{case.key}_after")
