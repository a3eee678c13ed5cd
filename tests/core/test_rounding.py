"""Compensated rounding: integers within bounds whose outputs are closer than those of plain rounding."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tvm_qplugin.core.rounding import round_compensated

SEEDS = st.integers(0, 2**32 - 1)


def correlated(seed: int, inputs: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Weights in units of their scale, and inputs that depend on each other."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, inputs)) @ rng.normal(size=(inputs, inputs)) + rng.normal(size=(400, 1)) * 3
    return rng.uniform(-127, 127, (6, inputs)), x - x.mean(0)


def squared_error(codes: np.ndarray, rounded: np.ndarray, x: np.ndarray) -> float:
    return float((((codes - rounded) @ x.T) ** 2).sum())


@given(SEEDS)
def test_integers_within_the_bound(seed: int) -> None:
    codes, x = correlated(seed)
    rounded = round_compensated(codes * 1.5, x.T @ x)
    np.testing.assert_array_equal(rounded, np.rint(rounded))
    assert np.abs(rounded).max() <= 127


@given(SEEDS)
def test_integers_stay(seed: int) -> None:
    codes, x = correlated(seed)
    np.testing.assert_array_equal(round_compensated(np.rint(codes), x.T @ x), np.rint(codes))


def test_less_error_than_the_nearest_integers() -> None:
    ratios = []
    for seed in range(50):
        codes, x = correlated(seed)
        compensated = squared_error(codes, round_compensated(codes, x.T @ x), x)
        ratios.append(compensated / squared_error(codes, np.rint(codes), x))
    assert np.median(ratios) < 0.5 and max(ratios) < 1


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    codes = np.random.default_rng(0).uniform(-100, 100, (4, 5))
    np.testing.assert_array_equal(round_compensated(codes, np.diag([4.0, 1, 9, 2, 3])), np.rint(codes))


def test_inputs_that_are_never_seen() -> None:
    codes = np.random.default_rng(0).uniform(-100, 100, (4, 5))
    np.testing.assert_array_equal(round_compensated(codes, np.zeros((5, 5))), np.rint(codes))
