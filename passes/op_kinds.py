"""Which Relax operators the int8 scheme knows, what may be fused into them, and what it cannot take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm import relax

from tvm_qplugin.core.qparams import Array
from tvm_qplugin.passes import ir

KINDS = {
    "relax.nn.conv2d": "conv2d",
    "relax.matmul": "dense",
    "relax.add": "add",
    "relax.subtract": "subtract",
    "relax.multiply": "multiply",
    "relax.maximum": "maximum",
    "relax.minimum": "minimum",
    "relax.nn.avg_pool2d": "avg_pool2d",
    "relax.nn.max_pool2d": "max_pool2d",
    "relax.max": "max_pool2d",
    "relax.min": "min",
    "relax.sum": "sum",
    "relax.mean": "mean",
    "relax.concat": "concat",
    "relax.nn.pad": "pad",
    "relax.reshape": "reshape",
    "relax.flatten": "reshape",
    "relax.squeeze": "reshape",
    "relax.expand_dims": "reshape",
    "relax.permute_dims": "permute_dims",
    "relax.strided_slice": "strided_slice",
    "relax.split": "split",
    "relax.take": "take",
    "relax.nn.softmax": "softmax",
    "relax.image.resize2d": "resize2d",
    "relax.nn.prelu": "prelu",
}
"""Relax operator -> kind, as recipes, reports and profiles name it; see ``kind_of`` for matrix products."""

KIND_NAMES = frozenset({*KINDS.values(), "matmul"})

WEIGHTED = ("conv2d", "dense", "matmul")
"""Sums of products, whose operands may be narrower than their result."""

MOVEMENT = frozenset(
    {"concat", "pad", "reshape", "permute_dims", "strided_slice", "split", "split_item", "take"}
)
"""Kinds that only move data."""

SAME_SCALE = frozenset(
    {*MOVEMENT, "avg_pool2d", "max_pool2d", "min", "maximum", "minimum", "resize2d", "clamp"}
)
"""Kinds whose inputs and output share scale and zero point (TFLite quantization specification)."""

ELEMENTWISE = frozenset(
    "relax." + name
    for name in (
        "nn.relu nn.leakyrelu nn.gelu nn.gelu_tanh nn.silu clip sigmoid tanh exp log sqrt rsqrt square abs "
        "negative erf sin cos tan sinh cosh asin acos atan asinh acosh atanh "
        "add subtract multiply divide maximum minimum power nn.softplus nn.selu"
    ).split()
)
"""Operators that a table of all their results can stand for when they read one tensor and scalars."""

LARGEST_PAD = 1024.0
"""Padding with larger numbers stands for infinity; on one grid with it nothing else would be left."""

MOST_PRODUCTS = (2**31 - 1) // 255**2
"""Of two 8-bit distances to zero points, whose sum is sure to fit int32."""

NORMS = ("nn.layer_norm", "nn.rms_norm", "nn.instance_norm", "nn.group_norm")

Follows = Callable[[relax.Var, relax.Expr], bool]
Definitions = Mapping[relax.Var, relax.Expr]


def kind_of(value: relax.Expr, defined: Definitions | None = None) -> str:
    """The kind of a call; a product of two tensors that are computed is ``matmul``. Empty if unknown.

    ``defined``: what variables are bound to, where weights may be constants behind ``R.dequantize``.
    """
    kind = KINDS.get(ir.op_name(value), "")
    if kind != "dense" or any(_known(arg, defined or {}) for arg in value.args):
        return kind
    return "matmul"


def _known(arg: relax.Expr, defined: Definitions) -> bool:
    """Whether an operand is a constant, quantized or not."""
    value = defined.get(arg) if isinstance(arg, relax.Var) else None
    if value is not None and ir.op_name(value) == "relax.dequantize":
        arg = value.args[0]
    return ir.const_value(arg) is not None


def is_bias(var: relax.Var, value: relax.Expr) -> bool:
    """``value`` adds a constant vector along the last axis of ``var``."""
    return ir.op_name(value) == "relax.add" and bias_of(var, value) is not None


def bias_of(var: relax.Var, value: relax.Expr) -> Array | None:
    """The vector that ``value`` adds to the last axis of ``var``, or None."""
    channels = ir.spec_of(var).shape[-1]
    for arg in value.args:
        array = ir.const_value(arg)
        if array is None or array.ndim > len(ir.spec_of(var).shape):
            continue
        if array.size == 1 or (array.size == channels and array.shape[-1] == channels):
            return array.reshape(-1).repeat(channels // array.size).astype("float32")
    return None


def is_activation(_var: relax.Var, value: relax.Expr) -> bool:
    """``value`` clamps its input: relu, relu6, any clip."""
    return ir.op_name(value) in ("relax.nn.relu", "relax.clip")


def divides_by_constant(value: relax.Expr) -> bool:
    """``value`` divides a tensor by constant numbers, none of them 0."""
    if ir.op_name(value) != "relax.divide":
        return False
    divisor = ir.const_value(value.args[1])
    return divisor is not None and bool(divisor.all())


def macs_of(var: relax.Var, value: relax.Expr) -> int:
    """Multiply-adds of a convolution (weight OHWI) or a matrix product; 0 for others."""
    if ir.op_name(value) == "relax.matmul":
        return ir.spec_of(var).size * ir.spec_of(value.args[0]).shape[-1]
    if ir.op_name(value) != "relax.nn.conv2d":
        return 0
    weight = ir.spec_of(value.args[1])
    return ir.spec_of(var).size * (weight.size // weight.shape[0])


FUSIBLE: dict[str, tuple[Follows, ...]] = {
    "conv2d": (is_bias, is_activation),
    "dense": (is_bias, is_activation),
    "add": (is_activation,),
    "subtract": (is_activation,),
    "multiply": (is_activation,),
    "mean": (is_activation,),
}
"""What may follow inside one kernel, in this order, each step optional."""


@dataclass(frozen=True)
class Fusion:
    """Finds what may be computed inside one kernel of a function."""

    users: Mapping[relax.Var, list[relax.Var]]
    defined: Mapping[relax.Var, relax.Expr]
    results: frozenset[relax.Var]

    @classmethod
    def of(cls, func: relax.Function) -> Fusion:
        """Read a function once."""
        return cls(ir.consumers(func), ir.definitions(func), frozenset(ir.output_vars(func)))

    def members(self, head: relax.Var, kind: str) -> list[relax.Var]:
        """``head``, its bias and its activation, while nobody else reads what is between."""
        found = [head]
        for stage in FUSIBLE.get(kind, ()):
            following = self.users.get(found[-1], [])
            if len(following) != 1 or found[-1] in self.results:
                break
            if stage(found[-1], self.defined[following[0]]):
                found.append(following[0])
        return found


def obstacle(kind: str, value: relax.Expr, dtypes: tuple[str, ...] = ("float32",)) -> str:
    """Why this instance of a known kind has no integer kernel; empty if it has one."""
    check = _OBSTACLES.get(kind)
    reason = check(value) if check else ""
    types = [v.ty for v in ir.variables(value) if isinstance(v.ty, relax.TensorType)]
    if not reason and any(str(ty.dtype) not in dtypes for ty in types):
        return "it is not computed in float32"
    return reason


def no_kernel(name: str) -> str:
    """The reason of an operator of no known kind."""
    why = ": squares of a row do not fit its grid, float costs little" if name.endswith(NORMS) else ""
    return f"{name} has no integer kernel{why}"


def obstacle16(kind: str) -> str:
    """Why int16x8 has no kernel for a kind that int8 has one for; empty if it has."""
    functions = {name.removeprefix("relax.") for name in ELEMENTWISE}
    known = kind in {*KIND_NAMES, "split_item", "clamp", *functions}
    return "" if known else f"{kind} has no int16 kernel"


def _constant_weight(value: relax.Expr) -> str:
    if ir.const_value(value.args[1]) is None or ir.const_value(value.args[0]) is not None:
        return "its weight is not a constant"
    return ""


def _conv(value: relax.Expr) -> str:
    attrs = value.attrs
    if (attrs.data_layout, attrs.kernel_layout) != ("NHWC", "OHWI"):
        return f"its layout is {attrs.data_layout}/{attrs.kernel_layout}, not NHWC/OHWI"
    return _constant_weight(value)


def _dense(value: relax.Expr) -> str:
    reason = _constant_weight(value)
    return reason or ("" if len(ir.spec_of(value.args[1]).shape) == 2 else "its weight is not a matrix")


def _matmul(value: relax.Expr) -> str:
    shapes = [ir.spec_of(arg).shape for arg in value.args]
    if min(map(len, shapes)) < 2:
        return "it is a product with a vector"
    deep = shapes[0][-1] > MOST_PRODUCTS
    return f"its sums of {shapes[0][-1]} products may leave int32" if deep else ""


def _prelu(value: relax.Expr) -> str:
    rank = len(ir.spec_of(value.args[0]).shape)
    if int(value.attrs.axis) % rank != rank - 1:
        return "its slopes are not along the last axis"
    return _constant_weight(value)


def _pool(value: relax.Expr) -> str:
    attrs = value.attrs
    if ir.op_name(value) == "relax.max":
        return ""
    if attrs.layout != "NHWC":
        return f"its layout is {attrs.layout}, not NHWC"
    if ir.op_name(value) == "relax.nn.avg_pool2d":
        if any(int(d) != 1 for d in attrs.dilation):
            return "it is a dilated average pool"
        if bool(attrs.ceil_mode) and bool(attrs.count_include_pad):
            return "it combines ceil_mode and count_include_pad"
    return ""


def _binary(value: relax.Expr) -> str:
    shapes = [ir.spec_of(arg).shape for arg in value.args]
    return "it is an operation on scalars" if not any(shapes) else ""


def _resize(value: relax.Expr) -> str:
    attrs = value.attrs
    if attrs.layout != "NHWC":
        return f"its layout is {attrs.layout}, not NHWC"
    if attrs.method not in ("nearest_neighbor", "linear"):
        return f"its method is {attrs.method}"
    known = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
    if attrs.coordinate_transformation_mode not in known:
        return f"its coordinates are {attrs.coordinate_transformation_mode}"
    return ""


def _pad(value: relax.Expr) -> str:
    if value.attrs.pad_mode != "constant":
        return f"its mode is {value.attrs.pad_mode}"
    number = float(value.attrs.pad_value)
    return "" if abs(number) <= LARGEST_PAD else f"it pads with {number:g}, far outside of other values"


def _take(value: relax.Expr) -> str:
    return "" if ir.const_value(value.args[1]) is not None else "its index is not a constant"


_OBSTACLES: dict[str, Callable[[relax.Expr], str]] = {
    "conv2d": _conv,
    "dense": _dense,
    "matmul": _matmul,
    "avg_pool2d": _pool,
    "max_pool2d": _pool,
    "add": _binary,
    "subtract": _binary,
    "multiply": _binary,
    "maximum": _binary,
    "minimum": _binary,
    "resize2d": _resize,
    "pad": _pad,
    "take": _take,
    "prelu": _prelu,
}
