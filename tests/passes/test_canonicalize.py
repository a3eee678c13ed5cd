"""check_canonical says what is wrong; canonicalize refuses what it cannot treat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import IRModule, relax

from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.passes.canonicalize import canonicalize, check_canonical

Expr = Any
op = relax.op
WEIGHT = relax.const(np.ones((8, 3, 1, 1), "float32"))


def module_of(make: Callable[[Expr], Expr], *, dataflow: bool = True, attrs: bool = True) -> IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 3, 4, 4), "float32"))
    with builder.function("main", params=[x]):
        if dataflow:
            with builder.dataflow():
                out = builder.emit_output(make(x))
        else:
            out = builder.emit(make(x))
        builder.emit_func_output(out)
    module = builder.get()
    if attrs:
        module["main"] = module["main"].with_attr("num_input", 1).with_attr("qplugin.io", "{}")
    return module


PROBLEMS: dict[str, tuple[Callable[[], IRModule], str]] = {
    "layout": (lambda: module_of(lambda x: op.nn.conv2d(x, WEIGHT)), "data_layout is NCHW"),
    "left constant": (
        lambda: module_of(lambda x: op.add(relax.const(np.float32(1)), x)),
        "constant stands on the left",
    ),
    "attributes": (lambda: module_of(op.nn.relu, attrs=False), "num_input"),
    "block": (lambda: module_of(op.nn.relu, dataflow=False), "not one dataflow block"),
    "dropout": (lambda: module_of(lambda x: op.nn.dropout(x)), "dropout remains"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_problem_is_named(case: str) -> None:
    make, expected = PROBLEMS[case]
    with pytest.raises(ModelError, match=expected):
        check_canonical(make())


def test_canonical_module_passes() -> None:
    module = canonicalize(module_of(lambda x: op.nn.conv2d(x, WEIGHT), attrs=False))
    check_canonical(module)
    check_canonical(canonicalize(module))


def test_weights_as_parameters_are_refused() -> None:
    module = module_of(op.nn.relu)
    module["main"] = module["main"].with_attr("num_input", 0)
    with pytest.raises(ModelError, match="BindParams"):
        canonicalize(module)


def test_module_without_main_is_refused() -> None:
    with pytest.raises(ModelError, match="main"):
        canonicalize(IRModule({}))
