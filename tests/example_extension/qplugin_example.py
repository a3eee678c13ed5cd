"""A package of somebody else's: a target, an observer and a recipe, found through entry points."""

import numpy as np

from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.recipe import Recipe, Rule
from tvm_qplugin.observers.min_max import MinMax

CPU = TargetProfile(
    "example-cpu",
    "a CPU with nothing special",
    {"kind": "llvm", "mcpu": "x86-64", "num-cores": 1},
    rules=("tvm_qplugin.schedules.cpu_conv:rule",),
)


class Trimmed(MinMax):
    """Leaves out the outermost thousandth of each sample's values."""

    def update(self, x):
        super().update(np.quantile(x, [0.001, 0.999]))


GENTLE = Recipe("gentle", observer="trimmed", rules=(Rule(op="softmax", scheme="float"),))
