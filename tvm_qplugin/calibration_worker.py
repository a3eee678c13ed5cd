"""What a process that calibrates runs: light to import, for the one that starts it waits until it is read."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm_qplugin.core.calibration import CalibrationTable
    from tvm_qplugin.samples import Sample

_given: list[bytes] = []


def start(work: bytes) -> None:
    """Note the pickled ``parallel.Work``."""
    os.environ.setdefault("TVM_NUM_THREADS", "1")
    _given[:] = [work]


def run(first: int, samples: list[Sample]) -> CalibrationTable:
    """What some samples, the first of them with the number ``first``, add."""
    from tvm_qplugin.parallel import observe_piece

    return observe_piece(pickle.loads(_given[0]), first, samples)
