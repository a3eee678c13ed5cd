"""A quantized model run over samples layer by layer, where each layer can be changed before it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import IRModule

from tvm_qplugin.core.attrs import Params
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.windows import windows
from tvm_qplugin.island import Island
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.lower_integer import LowerInteger
from tvm_qplugin.passes.plan import grids_of
from tvm_qplugin.passes.select_kernels import kernel_of

LAYERS = ("qconv2d", "qdense", "qconv2d16", "qdense16")
WEIGHT, BIAS = 1, 2
"""Which arguments of these kernels are the weight (output channels first) and the bias."""


@dataclass(frozen=True)
class Layer:
    """A convolution or dense layer in integers.

    ``name`` is that of its output, ``weight`` int8 [O, ...], ``bias`` int32 (int16x8: int64) [O], ``scale``
    float64 [O] of the weight, ``unit`` float64 [O] of the bias (times the input's scale).
    """

    name: str
    kernel: str
    params: Params
    weight: Array
    bias: Array
    scale: Array
    unit: Array

    @property
    def dense(self) -> bool:
        """Whether it is no convolution."""
        return "dense" in self.kernel

    @property
    def groups(self) -> int:
        """Of a convolution; a dense layer is one."""
        return int(self.params.get("groups", 1))

    def patches(self, x: Array, count: int | None = None, choose: np.random.Generator | None = None) -> Array:
        """What outputs see of an input, zero points subtracted: [positions, taps, input channels].

        All positions, or ``count`` chosen ones.
        """
        distance = x.astype("float32") - self.params.get("in_zp", 0)
        if self.dense:
            found = distance.reshape(-1, 1, 1, distance.shape[-1])
        else:
            found = windows({**self.params, "pool": self.weight.shape[1:3]}, distance, 0)
        size = found.shape[:-3]
        if choose is not None and count is not None and count < np.prod(size):
            found = found[np.unravel_index(choose.choice(int(np.prod(size)), count, replace=False), size)]
        return found.reshape(-1, found.shape[-3] * found.shape[-2], found.shape[-1])

    def per_group(self, patches: Array) -> Array:
        """Patches [positions, taps, channels] as [groups, positions, taps * channels of the group]."""
        split = patches.reshape(*patches.shape[:2], self.groups, -1)
        return np.moveaxis(split, 2, 0).reshape(self.groups, len(patches), -1)

    def rows(self, weight: Array) -> Array:
        """A weight like this layer's as [groups, outputs of the group, taps * channels]."""
        return weight.reshape(self.groups, len(weight) // self.groups, -1)


Adjust = Callable[[Layer, list[Array]], Layer]


class LayerWalk:
    """Runs samples (arrays for the inputs) through a QDQ module with float inputs."""

    def __init__(self, quantized: IRModule, samples: Sequence[list[Array]]) -> None:
        self.mod = self._lowered(quantized)
        func = ir.main_function(self.mod)
        self._grids = grids_of(func)
        self._bound = {v: e for v, e in ir.bindings(func) if not isinstance(e, relax.Var | relax.Tuple)}
        self._remade = {var for var in self._bound if self._is_remade(var)}
        found = {var: self._layer(var) for var in self._bound}
        self.layers = {var: layer for var, layer in found.items() if layer is not None}
        self._values = [dict(zip(func.params, arrays, strict=True)) for arrays in samples]

    def run(self, adjust: Adjust) -> Iterator[tuple[Layer, Layer]]:
        """Let ``adjust`` change each layer, given its inputs of all samples; gives old and new ones."""
        order = [var for var in self._bound if var not in self._remade]
        starts = [0, *(order.index(var) for var in self.layers), len(order)]
        self._advance(order[: starts[1]], order[starts[1] :])
        for (var, layer), first, last in zip(self.layers.items(), starts[1:-1], starts[2:], strict=True):
            source = self._source(var)
            adjusted = adjust(layer, [env[source] for env in self._values])
            self._change(var, adjusted)
            yield layer, adjusted
            self._advance(order[first:last], order[last:])

    def _lowered(self, quantized: IRModule) -> IRModule:
        """The module that is run."""
        lowered: IRModule = tvm.transform.Sequential([LowerInteger(storage="int8")])(quantized)
        return lowered

    def _is_remade(self, var: relax.Var) -> bool:
        """Whether a binding is made anew wherever it is read, instead of being kept from part to part."""
        return isinstance(var.ty, relax.TupleType)

    def _source(self, var: relax.Var) -> relax.Var:
        """What a layer reads."""
        return self._bound[var].args[1].fields[0]

    def _change(self, var: relax.Var, layer: Layer) -> None:
        """Give the layer that ``var`` is bound to another weight and bias."""
        self._bound[var] = _called(self._bound[var], layer)

    def _layer(self, var: relax.Var) -> Layer | None:
        value = self._bound[var]
        kernel = kernel_of(self.mod, value)
        if kernel is None or kernel.name not in LAYERS:
            return None
        weight, bias = (kernel.constants[i] for i in (WEIGHT, BIAS))
        scale = np.broadcast_to(self._grids[f"{var.name}_weight"].scale, bias.shape)
        unit = np.float32(self._grids[value.args[1].fields[0].name].scale) * scale
        wide = (scale.astype("float64"), unit.astype("float64"))
        return Layer(var.name, kernel.name, kernel.params, weight, bias, *wide)

    def _advance(self, chosen: Sequence[relax.Var], rest: Sequence[relax.Var]) -> None:
        """Compute the chosen bindings for every sample; forget what nobody reads any more."""
        needed = {used for var in rest for used in self._reads(var) if used not in self._remade}
        results = [var for var in chosen if var in needed]
        inside = {*chosen, *(used for var in chosen for used in self._reads(var) if used in self._remade)}
        island = Island(self.mod, {var: e for var, e in self._bound.items() if var in inside}, results)
        for env in self._values:
            if results:
                env |= island(env)
            for var in set(env) - needed:
                del env[var]

    def _reads(self, var: relax.Var) -> Iterator[relax.Var]:
        """What a binding reads: what is made anew where it is needed, and what that reads."""
        for used in ir.variables(self._bound[var]):
            yield used
            if used in self._remade:
                yield from self._reads(used)


def _called(call: Any, layer: Layer) -> Any:
    """The kernel call with the weight and bias of a layer."""
    fields = list(call.args[1].fields)
    fields[WEIGHT], fields[BIAS] = ir.const(layer.weight), ir.const(layer.bias)
    args = [call.args[0], relax.Tuple(fields), *call.args[2:]]
    return tvm.ir.Call(call.op, args, call.attrs, call.ty_args, ret_ty=call.ty)
