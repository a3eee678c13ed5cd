"""InsertObservers: golden, and the names it refuses."""

import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.passes.insert_observers import InsertObservers


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((1, 4), "float32")):
        with R.dataflow():
            a = R.nn.relu(x)
            s = R.split(a, 2, axis=1)
            b = s[0]
            c = R.exp(b)
            R.output(c)
        return c


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor((1, 4), "float32")):
        R.func_attr({"qplugin.observed": '["a", "x", "c", "b"]'})
        with R.dataflow():
            a = R.nn.relu(x)
            s = R.split(a, 2, axis=1)
            b = s[0]
            c = R.exp(b)
            out = (c, a, x, c, b)
            R.output(out)
        return out


def test_golden():
    after = InsertObservers(("a", "x", "c", "b"))(Before)
    tvm.ir.assert_structural_equal(after, Expected)
    assert [b.var.name for b in after["main"].body.blocks[0].bindings][:4] == ["a", "s", "b", "c"]


@pytest.mark.parametrize(
    ("name", "message"), [("z", "no tensor is called 'z'"), ("s", "'s' cannot be obser")]
)
def test_names_that_cannot_be_observed(name, message):
    with pytest.raises(CalibrationError, match=message):
        InsertObservers(("a", name)).transform_module(Before, None)
