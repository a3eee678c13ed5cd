"""EinsumProducts: the same numbers as numpy's einsum from products that have kernels; what stays."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax

from tvm_qplugin.builder import compile_function
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.einsum_products import EinsumProducts
from tvm_qplugin.passes.fold_constants import FoldConstants

SIZES = {"b": 2, "h": 3, "i": 4, "j": 5, "d": 6, "e": 7}
PRODUCTS = [
    *("bhid,bhjd->bhij", "bhij,bjhd->bihd", "bid,de->bie", "bid,ehd->bihe", "bi,bj->bij", "bid,id->bd"),
    *("bhid,jd->bhij", "id,d->i", "i,i->", "bij,d->bd", "dij,bjd", "...id,...jd->...ij", "b...i,i->b..."),
]


def einsum(text: str, shapes: list[tuple[int, ...]], constant: int | None = None) -> IRModule:
    bb = relax.BlockBuilder()
    params = [relax.Var(f"x{at}", relax.TensorType(shape, "float32")) for at, shape in enumerate(shapes)]
    operands: list[relax.Expr] = list(params)
    if constant is not None:
        operands[constant] = relax.const(np.ones(shapes[constant], "float32"))
        params.pop(constant)
    with bb.function("main", params):
        with bb.dataflow():
            out = bb.emit_output(relax.op.einsum(tuple(operands), text))
        bb.emit_func_output(out)
    return bb.get()


def shapes_of(text: str) -> list[tuple[int, ...]]:
    parts = text.replace("...", "bh" if text.startswith("...") else "h").partition("->")[0].split(",")
    return [tuple(SIZES[letter] for letter in part) for part in parts]


def operators(mod: IRModule) -> list[str]:
    return [ir.op_name(value) for _, value in ir.bindings(mod["main"])]


@pytest.mark.parametrize("text", PRODUCTS)
def test_same_as_numpy(text: str) -> None:
    shapes = shapes_of(text)
    made = EinsumProducts()(einsum(text, shapes))
    assert "relax.einsum" not in operators(made)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype("float32") for shape in shapes]
    np.testing.assert_allclose(compile_function(made)(arrays)[0], np.einsum(text, *arrays), atol=1e-5)


def test_a_constant_is_a_matrix_on_the_right() -> None:
    passes = tvm.transform.Sequential([EinsumProducts(), FoldConstants()])
    made = passes(einsum("ed,bid->bie", [(7, 6), (2, 4, 6)], constant=0))
    (product,) = (v for _, v in ir.bindings(made["main"]) if ir.op_name(v) == "relax.matmul")
    weight = ir.const_value(product.args[1])
    assert weight is not None and weight.shape == (6, 7)


@pytest.mark.parametrize("text", ["ii,ij->ij", "ij,ij,ij->i", "bi,bj->bij"])
def test_what_is_no_product_of_two_stays(text: str) -> None:
    shapes = shapes_of(text)
    mod = einsum(text, [(1, *shapes[0][1:]), *shapes[1:]] if text[0] == "b" else shapes)
    assert operators(EinsumProducts()(mod)) == ["relax.einsum"]
