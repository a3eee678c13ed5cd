"""Rounding weights so that the errors of one compensate those of the others."""

from __future__ import annotations

import numpy as np

from tvm_qplugin.core.qparams import Array

DAMPING = 0.01
"""Of the mean second moment, added to all: keeps directions that the samples never show from moving."""


def round_compensated(codes: Array, moments: Array, bound: int = 127) -> Array:
    """Integers [O, K] for weights ``codes`` [O, K] in units of their scales, within ``bound``.

    ``moments`` [K, K] are the second moments of the inputs (centred, where a bias takes up the mean). Every
    weight is rounded to the nearest, those of the largest inputs first, and what that costs is
    spread over the weights still to come so that the output's squared error grows least: Frantar et
    al., GPTQ (arXiv 2210.17323).
    """
    order = np.argsort(-np.diag(moments), kind="stable")
    left = codes[:, order].astype("float64")
    factor = _inverse_factor(moments[np.ix_(order, order)])
    rounded = np.empty_like(left)
    for i in range(left.shape[1]):
        rounded[:, i] = np.clip(np.rint(left[:, i]), -bound, bound)
        error = (left[:, i] - rounded[:, i]) / factor[i, i]
        left[:, i + 1 :] -= np.outer(error, factor[i, i + 1 :])
    return np.asarray(rounded[:, np.argsort(order)])


def _inverse_factor(moments: Array) -> Array:
    """The upper Cholesky factor of the inverse of the damped moments."""
    damping = DAMPING * float(np.diag(moments).mean()) or 1.0
    inverse = np.linalg.inv(moments.astype("float64") + damping * np.eye(len(moments)))
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)
