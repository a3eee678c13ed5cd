"""The depthwise generator: input rows interleaved by bytes, so that one dot product adds vertical taps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script.ir_builder import IRBuilder

from tvm_qplugin.core.attrs import KERNEL, PARAMS, Implementation, KernelCall, TensorSpec, encode_params
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array
from tvm_qplugin.schedules.x86_border import constant, fill_halo
from tvm_qplugin.schedules.x86_depthwise_plan import (
    Blocks,
    Config,
    Source,
    WeightPlan,
    Window,
    group_depth,
    operand_taps,
    plane_size,
    row_groups,
    taps,
)
from tvm_qplugin.schedules.x86_depthwise_stage import stage_rows
from tvm_qplugin.schedules.x86_geometry import Halo
from tvm_qplugin.schedules.x86_isa import (
    Buffer,
    Expr,
    Index,
    Isa,
    T,
    accumulator,
    add_saturating_int16,
    dot_int16,
    dot_uint8,
    fma,
    load,
    pack_bytes,
    pack_int16,
    round_to_int32,
    splat,
    store,
)
from tvm_qplugin.schedules.x86_pack import Requantization

VECTORS = 4
SERIAL_MACS = 20_000


@dataclass(frozen=True)
class FloatClamp:
    """Clamp to ``[lo, hi]``; None: unbounded."""

    lo: float | None
    hi: float | None


@dataclass(frozen=True)
class Kernel:
    """What the emitting functions share; buffers are flat."""

    isa: Isa
    window: Window
    config: Config
    blocks: Blocks
    source: Source
    plan: WeightPlan
    finish: Requantization | FloatClamp
    dtype: str
    zero: int
    cores: int


@dataclass(frozen=True)
class Buffers:
    """Flat views of the arguments."""

    x: Buffer
    constants: tuple[Buffer, ...]
    y: Buffer


@dataclass(frozen=True)
class Spot:
    """One tile: first element read, first element written, block of weights."""

    source: Buffer
    at: Expr
    out: Expr
    phase: Expr
    columns: int


def implement(call: KernelCall, kernel: Kernel, constants: tuple[Array, ...]) -> Implementation:
    """The scheduled PrimFunc ``(activation, weights, bias[, multiplier], output)`` and its arguments."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(call.name)
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        T.func_attr({KERNEL: call.name, PARAMS: encode_params(call.params)})
        x = T.arg("x", T.buffer(call.args[0].shape, call.args[0].dtype))
        packed = tuple(T.arg(f"p{i}", T.buffer(c.shape, str(c.dtype))) for i, c in enumerate(constants))
        y = T.arg("y", T.buffer(call.out.shape, call.out.dtype))
        _body(kernel, Buffers(_flat(x, call.args[0]), packed, _flat(y, call.out)), call.out.dtype)
    return Implementation(builder.get(), (0, *constants))


def _flat(buffer: Buffer, spec: TensorSpec) -> Buffer:
    return T.decl_buffer((spec.size,), spec.dtype, data=buffer.data)


def _body(k: Kernel, buffers: Buffers, dtype: str) -> None:
    w = k.window
    if any(w.halo):
        zero = k.finish.zero_point if isinstance(k.finish, Requantization) else 0
        fill_halo(Halo(w.out, w.halo), buffers.y, dtype, zero)
    height, chunk = w.size[0], k.config.chunk
    chunks = -(-height // chunk)
    extent = w.source[0] * chunks
    parallel = k.cores > 1 and extent > 1 and w.macs >= SERIAL_MACS
    with (T.parallel if parallel else T.serial)(0, extent) as i:
        with T.sblock("chunk"):
            T.reads()
            T.writes()
            image = T.floordiv(i, chunks) if w.source[0] > 1 else T.int32(0)
            first = _clipped(T.floormod(i, chunks) if w.source[0] > 1 else i, chunk, height)
            _chunk(k, buffers, image, first)


def _clipped(index: Expr, step: int, extent: int) -> Expr:
    """``index * step``, moved back where ``step`` elements from there on would leave ``extent``."""
    return index * step if extent % step == 0 else T.min(index * step, extent - step)


def _chunk(k: Kernel, buffers: Buffers, image: Expr, first: Expr) -> None:
    """``chunk`` output rows from ``first`` on."""
    w, s, rows = k.window, k.source, k.config.rows
    source, base = buffers.x, image * (w.source[1] * s.pitch) + first * (w.strides[0] * s.pitch) + s.origin
    if k.config.stage:
        source, base = stage_rows(w, k.config, s, buffers.x, k.dtype, k.zero, image, first), T.int32(0)
    top, left = w.halo[:2]
    pitch = w.out[2] * w.channels
    out = (image * w.out[1] + first + top) * pitch + left * w.channels
    groups = -(-k.config.chunk // rows)

    def group(g: Index) -> None:
        row = g * rows if k.config.chunk % rows == 0 else T.min(g * rows, k.config.chunk - rows)
        _row(k, buffers, source, base + row * (w.strides[0] * s.pitch), out + row * pitch)

    _loop(groups, group)


def _loop(extent: int, body: Callable[[Index], None]) -> None:
    if extent == 1:
        body(T.int32(0))
    elif extent > 1:
        with T.serial(0, extent) as i:
            body(i)


def _row(k: Kernel, buffers: Buffers, source: Buffer, base: Expr, out: Expr) -> None:
    """All tiles of ``rows`` output rows."""
    b, w = k.blocks, k.window
    vector = VECTORS * k.isa.lanes
    stride = b.period // w.channels * k.source.step

    def tile(group: Index, v: Index, turn: Index, columns: int) -> None:
        start = v * vector
        if k.config.mode == "block" and w.channels % vector:
            start = T.min(start, w.channels - vector)
        at, to = base + group * stride + start, out + group * b.period + start
        _tile(k, buffers, Spot(source, at, to, v + turn, columns))

    done = 0
    for count, columns in balanced(b.groups, k.config.columns):
        _tiles(b, count, done, columns, tile)
        done += count * columns
    _loop(b.rest, lambda v: tile(b.groups, v, 0, 1))
    if b.tail:
        last = w.size[1] * w.channels - vector
        _tile(k, buffers, Spot(source, base + last, out + last, T.int32(len(b.phases) - 1), 1))


def _tiles(
    b: Blocks, count: int, done: int, columns: int, tile: Callable[[Index, Index, Index, int], None]
) -> None:
    """All vectors of ``count`` x ``columns`` periods."""

    def along(x: Index) -> None:
        turn = T.floormod(x, 2) if b.copies == 2 else 0
        _loop(b.per_period, lambda v: tile(x * columns + done, v, turn, columns))

    _loop(count, along)


def balanced(extent: int, largest: int) -> list[tuple[int, int]]:
    """Cut ``extent`` in parts of at most ``largest`` that differ by at most one: (count, size).

    >>> balanced(17, 4)
    [(2, 4), (3, 3)]
    """
    if extent == 0:
        return []
    parts = -(-extent // largest)
    size, longer = divmod(extent, parts)
    return [(n, length) for n, length in ((longer, size + 1), (parts - longer, size)) if n]


def _tile(k: Kernel, buffers: Buffers, spot: Spot) -> None:
    """``rows`` x ``columns`` output vectors: walk over the input columns, finish outputs as they complete."""
    w, isa, b = k.window, k.isa, k.blocks
    stride = b.period // w.channels * k.source.step
    places: dict[int, list[tuple[int, int]]] = {}
    for m in range(spot.columns):
        for kw in range(w.kernel[1]):
            at = m * stride + k.source.column(kw * w.dilation[1], w.channels)
            places.setdefault(at, []).append((m, kw))
    with T.sblock("tile"):
        T.reads()
        T.writes()
        acc = [
            [[accumulator(isa) for _ in range(VECTORS)] for _ in range(spot.columns)]
            for _ in range(k.config.rows)
        ]
        operands = _operand_buffers(k)
        started: set[tuple[int, int]] = set()
        left = [w.kernel[1]] * spot.columns
        for at in sorted(places):
            for group in row_groups(w, k.config.rows, group_depth(isa)):
                _interleave(k, spot, operands, at, group)
                for m, kw in places[at]:
                    for row in range(k.config.rows):
                        _accumulate(
                            k, buffers, spot, acc[row][m], operands, group, row, kw, (row, m) not in started
                        )
                        started.add((row, m)) if _meets(k, group, row) else None
            for m, _ in places[at]:
                left[m] -= 1
                if left[m] == 0:
                    for row in range(k.config.rows):
                        out = spot.out + row * (w.out[2] * w.channels) + m * b.period
                        _finish(k, buffers, spot, acc[row][m], out)


def _meets(k: Kernel, group: list[int], row: int) -> bool:
    return any(tap is not None for tap in taps(k.window, group, row, group_depth(k.isa)))


def _operand_buffers(k: Kernel) -> list[list[Buffer]]:
    """``[4][instructions a group]`` buffers of one vector each."""
    isa = k.isa
    width = isa.lanes * isa.depth
    dtype = {1: "float32", 2: "int16", 4: "uint8"}[isa.depth]
    parts = 2 if isa.depth == 2 else 1
    return [[T.sblock_alloc_buffer((width,), dtype) for _ in range(parts)] for _ in range(VECTORS)]


def _interleave(k: Kernel, spot: Spot, operands: list[list[Buffer]], at: int, group: list[int]) -> None:
    """Load a group of input rows at one column and bring their channels' bytes together."""
    isa = k.isa
    lanes = isa.lanes
    rows = [spot.at + (at + row * k.source.pitch) for row in group]
    if isa.depth == 1:
        for g in range(VECTORS):
            store(operands[g][0], 0, load(spot.source, rows[0] + g * lanes, lanes), lanes)
        return
    rows += [rows[-1]] * (4 - len(rows))
    loaded = [load(spot.source, row, isa.bytes) for row in rows]
    for g in range(VECTORS):
        upper = _unpack(loaded[0], loaded[1], isa.bytes, 16, g // 2)
        lower = _unpack(loaded[2], loaded[3], isa.bytes, 16, g // 2)
        pairs = [T.reinterpret(f"int16x{isa.bytes // 2}", v) for v in (upper, lower)]
        words = _unpack(pairs[0], pairs[1], isa.bytes // 2, 8, g % 2)
        if isa.depth == 4:
            store(operands[g][0], 0, T.reinterpret(f"uint8x{isa.bytes}", words), isa.bytes)
        else:
            _widen(words, operands[g], k.dtype, isa.bytes // 2)


def _unpack(a: Expr, b: Expr, lanes: int, per: int, high: int) -> Expr:
    """``punpckl``/``punpckh`` of two vectors within 128-bit lanes of ``per`` elements."""
    half = range(high * per // 2, high * per // 2 + per // 2)
    order = [base + i + side for base in range(0, lanes, per) for i in half for side in (0, lanes)]
    return T.Shuffle([a, b], [T.int32(i) for i in order])


def _widen(words: Expr, operands: list[Buffer], dtype: str, lanes: int) -> None:
    """Even and odd bytes of int16 elements as two vectors of int16."""
    if dtype == "uint8":
        even = T.bitwise_and(words, splat(T.int16(255), lanes))
        odd = T.reinterpret(
            f"int16x{lanes}",
            T.shift_right(T.reinterpret(f"uint16x{lanes}", words), splat(T.uint16(8), lanes)),
        )
    else:
        eight = splat(T.int16(8), lanes)
        even, odd = T.shift_right(T.shift_left(words, eight), eight), T.shift_right(words, eight)
    store(operands[0], 0, even, lanes)
    store(operands[1], 0, odd, lanes)


def _accumulate(
    k: Kernel,
    buffers: Buffers,
    spot: Spot,
    acc: list[Buffer],
    operands: list[list[Buffer]],
    group: list[int],
    row: int,
    kw: int,
    first: bool,
) -> None:
    """Add one input column times the taps of one output row; the first addition starts from the bias."""
    isa, depth = k.isa, group_depth(k.isa)
    width = isa.lanes * isa.depth
    size = plane_size(k.window, k.blocks, isa)
    for part, needed in enumerate(operand_taps(isa, taps(k.window, group, row, depth))):
        if needed not in k.plan.where:
            continue
        plane, shift = k.plan.where[needed]
        for g in range(VECTORS):
            index = (spot.phase * k.window.kernel[1] + kw) * (VECTORS * width) + (
                g * width + width + plane * size - shift
            )
            weights = load(buffers.constants[0], index, width)
            bias = load(buffers.constants[1], (spot.phase * VECTORS + g) * isa.lanes, isa.lanes)
            start = bias if first else load(acc[g], 0, isa.lanes)
            store(acc[g], 0, _multiply(isa, start, load(operands[g][part], 0, width), weights), isa.lanes)
        first = False


def _multiply(isa: Isa, acc: Expr, activations: Expr, weights: Expr) -> Expr:
    if isa.depth == 4:
        return dot_uint8(isa, acc, activations, weights)
    if isa.depth == 2:
        return dot_int16(acc, activations, weights)
    return fma(activations, weights, acc, isa.lanes)


def _finish(k: Kernel, buffers: Buffers, spot: Spot, acc: list[Buffer], out: Expr) -> None:
    """Requantize or clamp one block and store it."""
    isa, q = k.isa, k.finish
    if isinstance(q, FloatClamp):
        for g in range(VECTORS):
            store(buffers.y, out + g * isa.lanes, _clamp(q, load(acc[g], 0, isa.lanes), isa.lanes), isa.lanes)
        return
    rounded = []
    for g in range(VECTORS):
        scale = load(buffers.constants[2], (spot.phase * VECTORS + g) * isa.lanes, isa.lanes)
        value = T.Cast(f"float32x{isa.lanes}", load(acc[g], 0, isa.lanes)) * scale
        if q.guarded:
            value = T.min(value, splat(T.float32(q.hi - q.zero_point), isa.lanes))
        rounded.append(round_to_int32(value, isa))
    store(buffers.y, out, _pack(q, rounded, isa), isa.bytes)


def _pack(q: Requantization, four: list[Expr], isa: Isa) -> Expr:
    halves = [pack_int16(four[0], four[1], isa), pack_int16(four[2], four[3], isa)]
    if q.zero_point:
        halves = [add_saturating_int16(h, splat(T.int16(q.zero_point), isa.bytes // 2), isa) for h in halves]
    packed = pack_bytes(halves[0], halves[1], q.dtype, isa)
    lo, hi = INTEGER_RANGE[q.dtype]
    if q.hi < hi:
        packed = T.min(packed, splat(constant(q.dtype, q.hi), isa.bytes))
    return T.max(packed, splat(constant(q.dtype, q.lo), isa.bytes)) if q.lo > lo else packed


def _clamp(q: FloatClamp, value: Expr, lanes: int) -> Expr:
    if q.hi is not None:
        value = T.min(value, splat(T.float32(q.hi), lanes))
    return value if q.lo is None else T.max(value, splat(T.float32(q.lo), lanes))
