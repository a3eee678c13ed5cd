"""The oracle of LiteRT's integer LSTM: int8 input and hidden state, int16 gates and cell state.

Source: ``LstmStepInteger8x8_16`` of LiteRT (``lstm_eval.cc``, ``portable_tensor_utils.cc``) with the scales
of ``unidirectional_sequence_lstm.cc``; no peephole, projection or layer normalization.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvm_qplugin.core.attrs import Params
from tvm_qplugin.core.fixed_point import (
    Multiplier,
    divide_by_power,
    multiply,
    quantize_multiplier,
    saturate,
    wrap,
)
from tvm_qplugin.core.interpolated import Q3_12, UNIT, fixed_logistic, fixed_tanh
from tvm_qplugin.core.qparams import INTEGER_RANGE, Array

GATES = ("input", "forget", "cell", "output")
CELL_EXPONENTS = range(-15, -8)
"""Of cell states whose hyperbolic tangent LiteRT computes: 0 to 6 integer bits."""


@dataclass(frozen=True)
class Rescaling:
    """What ``qlstm`` computes with, derived from its parameters as LiteRT does it."""

    inputs: tuple[Multiplier, ...]
    recurrent: tuple[Multiplier, ...]
    hidden: Multiplier
    integer_bits: int
    product_shift: int
    cell_clip: int

    @classmethod
    def of(cls, p: Params) -> Rescaling:
        """Scales of products in float32, in units of Q3.12; the cell's bits and its clip as a code."""
        exponent = int(p["cell_exponent"])
        hidden = np.float32(UNIT / float(np.float32(p["out_scale"])) * UNIT)
        clip = np.float32(p["cell_clip"]) / np.float32(2.0**exponent)
        return cls(
            _multipliers(p["input_scales"], p["in_scale"]),
            _multipliers(p["recurrent_scales"], p["out_scale"]),
            quantize_multiplier(float(hidden)),
            15 + exponent,
            30 + exponent,
            int(np.clip(clip, 0, 32767)),
        )


def _multipliers(weights: list[float], scale: float) -> tuple[Multiplier, ...]:
    reals = np.asarray(weights, "float32") * np.float32(scale) / np.float32(Q3_12)
    return tuple(quantize_multiplier(float(real)) for real in reals)


def qlstm(p: Params, x: Array, weight: Array, recurrent: Array, bias: Array, dtype: str) -> Array:
    """The hidden states [N, T, C] of x [N, T, I]; every sequence starts from states that stand for 0.

    Input weights int8 [4, C, I], recurrent weights int8 [4, C, C] and bias int32 [4, C] have the gates in
    the order of ``GATES``. Parameters: ``in_scale``, ``in_zp``, ``out_scale``, ``out_zp`` (also those of the
    hidden state), ``input_scales`` and ``recurrent_scales`` of the weights, by gate, ``cell_exponent`` (the
    cell state's scale is 2 to it) and ``cell_clip`` (a real number, 0: none).
    """
    r, zero = Rescaling.of(p), int(p["out_zp"])
    hidden, cell = (np.zeros((x.shape[0], bias.shape[1]), "int64") for _ in range(2))
    outputs = []
    for step in np.moveaxis(x.astype("int64") - p["in_zp"], 1, 0):
        sums = [
            _gate(step @ weight[g].astype("int64").T + bias[g], r.inputs[g], 0) for g in range(len(GATES))
        ]
        gates = [
            _gate(hidden @ recurrent[g].astype("int64").T, r.recurrent[g], total)
            for g, total in enumerate(sums)
        ]
        codes, cell = _cell(p, r, gates, cell, dtype)
        outputs.append(codes)
        hidden = codes - zero
    return np.stack(outputs, 1).astype(dtype)


def _gate(acc: Array, multiplier: Multiplier, before: Array | int) -> Array:
    """A product in Q3.12 added to ``before``."""
    return saturate(multiply(wrap(acc), multiplier) + before)


def _cell(p: Params, r: Rescaling, gates: list[Array], cell: Array, dtype: str) -> tuple[Array, Array]:
    """Codes of the hidden state, and the new cell state."""
    enter, keep, leave = (fixed_logistic(gates[GATES.index(g)]) for g in ("input", "forget", "output"))
    candidate = fixed_tanh(gates[GATES.index("cell")])
    kept = divide_by_power(keep * cell, 15)
    cell = saturate(kept + divide_by_power(enter * candidate, r.product_shift))
    if r.cell_clip:
        cell = np.clip(cell, -r.cell_clip, r.cell_clip)
    hidden = multiply(leave * fixed_tanh(cell, r.integer_bits), r.hidden)
    return np.clip(hidden + p["out_zp"], *INTEGER_RANGE[dtype]), cell
