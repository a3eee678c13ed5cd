"""Products that a model writes as einsum, as matrix products, which have kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir.transform import PassContext

from tvm_qplugin.passes.rebuild import Rebuilder, op_name, rebuild_main, shape_of, value_of

Expr = Any
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@tvm.transform.module_pass(opt_level=0, name="EinsumProducts")
@dataclass(frozen=True)
class EinsumProducts:
    """Rewrite ``R.einsum`` of two tensors.

    In: ``main``, straight-line. Out: transpositions, reshapes and ``R.matmul``, or ``R.multiply`` where
    nothing is summed up; a constant is the right operand. One with a diagonal (a letter twice in an
    operand) or an axis of extent 1 that is repeated stays.
    """

    def transform_module(self, mod: IRModule, _ctx: PassContext) -> IRModule:
        """Rewrite ``main``."""
        return rebuild_main(mod, _Products)


class _Products(Rebuilder):
    def rewrite(self, call: Expr, name: str) -> Expr:
        """The product that an einsum of two tensors is."""
        if op_name(call) != "einsum" or not isinstance(call.args[0], relax.Tuple):
            return call
        operands = list(call.args[0].fields)
        letters = _letters(str(call.attrs.subscripts), [len(shape_of(x)) for x in operands])
        if letters is None or len(operands) != 2:
            return call
        *read, wanted = letters
        if value_of(operands[0]) is not None:
            operands, read = operands[::-1], read[::-1]
        sizes: dict[str, int] = {}
        for x, axes in zip(operands, read, strict=True):
            for letter, extent in zip(axes, shape_of(x), strict=True):
                if sizes.setdefault(letter, extent) != extent:
                    return call
        return _product(operands, read, wanted, sizes)


def _letters(text: str, ranks: Sequence[int]) -> list[str] | None:
    """The axes of the operands and of the result, None where they are no plain product."""
    text = text.replace(" ", "")
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    unused = [letter for letter in LETTERS if letter not in text]
    if len(parts) != len(ranks):
        return None
    spans = [rank - len(part.replace("...", "")) for part, rank in zip(parts, ranks, strict=True)]
    most = max([0, *(span for part, span in zip(parts, spans, strict=True) if "..." in part)])
    rest = "".join(unused[:most])
    known = [part.replace("...", rest[most - span :]) for part, span in zip(parts, spans, strict=True)]
    if not arrow:
        once = sorted(letter for letter in set(left) if letter.isalpha() and left.count(letter) == 1)
        right = ("..." if "..." in left else "") + "".join(once)
    known.append(right.replace("...", rest))
    plain = all(len(set(part)) == len(part) for part in known)
    return known if plain and [len(part) for part in known[:-1]] == list(ranks) else None


def _product(operands: Sequence[Expr], read: Sequence[str], wanted: str, sizes: dict[str, int]) -> Expr:
    a, b = (
        _summed(x, axes, other + wanted) for x, axes, other in zip(operands, read, read[::-1], strict=True)
    )
    both = [letter for letter in a[1] if letter in b[1]]
    batch, inner = ([letter for letter in both if (letter in wanted) == kept] for kept in (True, False))
    rows, columns = ([letter for letter in axes if letter not in both] for axes in (a[1], b[1]))
    front = [sizes[letter] for letter in batch]
    m, k, n = (int(np.prod([sizes[letter] for letter in axes])) for axes in (rows, inner, columns))
    left = _arranged(a, [*batch, *rows, *inner], (*front, m, k))
    right = _arranged(b, [*batch, *inner, *columns], (*front, k, n))
    made = relax.op.matmul(left, right) if inner else relax.op.multiply(left, right)
    found = [*batch, *rows, *columns]
    made = relax.op.reshape(made, tuple(sizes[letter] for letter in found))
    order = [found.index(letter) for letter in wanted]
    return made if order == sorted(order) else relax.op.permute_dims(made, order)


def _summed(x: Expr, axes: str, kept: str) -> tuple[Expr, str]:
    """The operand without the axes that nothing else has."""
    alone = [at for at, letter in enumerate(axes) if letter not in kept]
    rest = "".join(letter for letter in axes if letter in kept)
    return (relax.op.sum(x, alone) if alone else x), rest


def _arranged(operand: tuple[Expr, str], order: Sequence[str], shape: tuple[int, ...]) -> Expr:
    x, axes = operand
    turned = [axes.index(letter) for letter in order]
    x = x if turned == sorted(turned) else relax.op.permute_dims(x, turned)
    return relax.op.reshape(x, shape)
