"""What constants take where equal ones are kept once, as unrolled cells share their weights."""

from __future__ import annotations

from hashlib import sha256

import numpy as np

from tvm_qplugin.core.qparams import Array


class Once:
    """Counts the bytes of arrays, of equal ones only the first."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, tuple[int, ...], bytes]] = set()

    def bytes(self, array: Array) -> int:
        """``array.nbytes``, or 0 where an equal array was counted before."""
        key = str(array.dtype), array.shape, sha256(np.ascontiguousarray(array).data).digest()
        if key in self._seen:
            return 0
        self._seen.add(key)
        return array.nbytes
