"""How far a quantized tensor is from the float one, gathered sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvm_qplugin.core.qparams import Array


@dataclass
class Distance:
    """Sums over all elements seen, in float64.

    >>> distance = Distance()
    >>> distance.add(np.float32([1, 2]), np.float32([1, 2.5]))
    >>> distance.mse, round(distance.sqnr_db, 2)
    (0.125, 13.01)
    """

    count: int = 0
    signal: float = 0.0
    noise: float = 0.0
    energy: float = 0.0
    product: float = 0.0

    def add(self, real: Array, quantized: Array) -> None:
        """Two tensors of equal shape: the float model's and the quantized one's."""
        x, y = real.astype("float64").reshape(-1), quantized.astype("float64").reshape(-1)
        self.count += x.size
        self.signal += float(x @ x)
        self.energy += float(y @ y)
        self.product += float(x @ y)
        difference = y - x
        self.noise += float(difference @ difference)

    @property
    def sqnr_db(self) -> float | None:
        """10 log10(signal / noise); None where nothing differs, minus infinity where there is no signal."""
        if not self.noise:
            return None
        return 10 * float(np.log10(self.signal / self.noise)) if self.signal else -np.inf

    @property
    def mse(self) -> float:
        """The mean squared error; 0 where nothing was seen."""
        return self.noise / self.count if self.count else 0.0

    @property
    def cosine(self) -> float:
        """The cosine of the angle between both; 1 where both are zero, 0 where only one is."""
        if not self.signal and not self.energy:
            return 1.0
        norm = float(np.sqrt(self.signal) * np.sqrt(self.energy))
        return self.product / norm if norm else 0.0


@dataclass
class Spread:
    """What values a tensor takes.

    >>> spread = Spread()
    >>> spread.add(np.float32([-1, 3]))
    >>> spread.low, spread.high, spread.mean, spread.deviation
    (-1.0, 3.0, 1.0, 2.0)
    """

    count: int = 0
    low: float = np.inf
    high: float = -np.inf
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: Array) -> None:
        """The values of one sample."""
        wide = values.astype("float64").reshape(-1)
        self.count += wide.size
        self.low, self.high = min(self.low, float(wide.min())), max(self.high, float(wide.max()))
        self.total += float(wide.sum())
        self.squares += float(wide @ wide)

    @property
    def mean(self) -> float:
        """The mean."""
        return self.total / max(self.count, 1)

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return float(np.sqrt(max(self.squares / max(self.count, 1) - self.mean**2, 0.0)))
