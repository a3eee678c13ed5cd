"""The residual addition of ``qconv2d_add``, done on accumulators before they are packed to bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvm_qplugin.core.attrs import KernelCall, Params
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.schedules.x86_add import fits_int32
from tvm_qplugin.schedules.x86_border import powers_of_two
from tvm_qplugin.schedules.x86_constants import words
from tvm_qplugin.schedules.x86_epilogue import IntegerEpilogue
from tvm_qplugin.schedules.x86_isa import Expr, T, load, store
from tvm_qplugin.schedules.x86_pack import Requantization
from tvm_qplugin.schedules.x86_reduce import Cells, Kernel, Spot


def addable(call: KernelCall) -> bool:
    """Whether the epilogue can add: bytes of the output's layout, without halo, sums within int32."""
    halo = call.params.get("out_halo") or ()
    return not any(halo) and call.args[-1] == call.out and fits_int32(call.params["add"])


def residual_sections(conv: Requantization, add: Params) -> dict[str, Array]:
    """Sections of both steps; ``base`` holds the rounding term and all zero points and wraps around."""
    moved = conv.zero_point - add["a_zp"]
    base = (1 << (add["shift"] - 1)) + moved * add["a_mul"] - add["b_zp"] * add["b_mul"]
    values = {
        "floor": conv.lo - conv.zero_point,
        "ceiling": conv.hi - conv.zero_point,
        "a_mul": add["a_mul"],
        "b_mul": add["b_mul"],
        "base": base,
        "drop": add["shift"],
    }
    sections = {name: np.asarray([value], "int64").astype("int32") for name, value in values.items()}
    limit = {name: array for name, array in words(conv).items() if name == "limit"}
    return sections | limit | words(Requantization(conv.dtype, add["out_zp"], add["lo"], add["hi"], False))


@dataclass(frozen=True)
class ResidualEpilogue(IntegerEpilogue):
    """``IntegerEpilogue`` of the sum: the convolution's own clamp, the fixed-point addition, then packing."""

    def rounded(self, k: Kernel, spot: Spot, acc: Cells, i: int, j: int) -> Expr:
        """The sum in pixel ``i``, vector ``j`` as int32, its zero point not added."""
        lanes = k.isa.lanes

        def word(name: str) -> Expr:
            return k.constants.repeated(name, "int32", lanes)

        a = T.max(T.min(super().rounded(k, spot, acc, i, j), word("ceiling")), word("floor"))
        b = T.Cast(f"int32x{lanes}", self._residual(k, spot, i, j))
        return T.shift_right(a * word("a_mul") + (b * word("b_mul") + word("base")), word("drop"))

    def _residual(self, k: Kernel, spot: Spot, i: int, j: int) -> Expr:
        """One vector of the other summand; of a partial one only the bytes that exist are read."""
        lanes, at = k.isa.lanes, spot.out + (spot.pixels[i][1] + j * k.isa.lanes)
        valid = spot.valid if j == spot.vectors - 1 else lanes
        if valid == lanes:
            return load(k.residual, at, lanes)
        buffer = T.sblock_alloc_buffer((lanes,), self.dtype)
        for offset, length in powers_of_two(0, valid):
            store(buffer, offset, load(k.residual, at + offset, length), length)
        return load(buffer, 0, lanes)
