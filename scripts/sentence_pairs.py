"""Measure a sentence encoder on pairs of sentences with scores, in every scheme.

python scripts/sentence_pairs.py minilm.onnx dev.npz --calibration calib.npz [--vocabulary ids.npy]. The
``.npz`` files hold ids_a, mask_a, ids_b, mask_b [pairs, length] and score [pairs]; ``--vocabulary``, an int32
array, gives the model's id of each of theirs. Prints Spearman's correlation of the scores with the cosines of
the embeddings, the median time of a sentence on one thread, and the bytes of the saved artifact.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tvm_qplugin.api import quantize
from tvm_qplugin.artifact import Artifact
from tvm_qplugin.builder import build
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.frontend import load

Array = np.ndarray[Any, Any]
RECIPES = {
    "float": None,
    "dynamic": Recipe("dynamic", "dynamic"),
    "int8": Recipe("int8"),
    "int8+smooth": Recipe("int8+smooth", smooth=True),
    "int16x8": Recipe("int16x8", "int16x8"),
    "weight_int8": Recipe("weight_int8", "weight_int8"),
    "weight_int4": Recipe("weight_int4", "weight_int4"),
}


class Pairs:
    """Sentences of a file as the model takes them, and the scores of their pairs."""

    def __init__(self, path: Path, vocabulary: Path | None) -> None:
        with np.load(path) as data:
            known = np.load(vocabulary) if vocabulary else np.arange(1 << 16)
            self.ids = [known[data[f"ids_{side}"].astype("int64")].astype("int64") for side in "ab"]
            self.masks = [data[f"mask_{side}"].astype("int64") for side in "ab"]
            self.scores: Array = data["score"]

    def samples(self, count: int) -> list[dict[str, Array]]:
        """The first sentences of the first ``count`` pairs."""
        return [{"ids": self.ids[0][i : i + 1], "mask": self.masks[0][i : i + 1]} for i in range(count)]

    def sentences(self) -> Iterator[tuple[Array, Array]]:
        """Ids and mask of both sentences of every pair in turn."""
        for i in range(len(self.scores)):
            for side in (0, 1):
                yield self.ids[side][i : i + 1], self.masks[side][i : i + 1]


def spearman(a: Array, b: Array) -> float:
    """The correlation of ranks; equal values share the mean of theirs."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Array) -> Array:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])


def measure(artifact: Artifact, pairs: Pairs) -> tuple[float, float]:
    """Spearman's correlation, and the median of milliseconds a sentence."""
    found, seconds = [], []
    for sentence in pairs.sentences():
        start = time.perf_counter()
        (embedding,) = artifact.run(*sentence)
        seconds.append(time.perf_counter() - start)
        found.append(embedding.reshape(-1))
    both = np.array(found).reshape(len(pairs.scores), 2, -1)
    norms = np.linalg.norm(both, axis=2)
    cosines = np.einsum("pi,pi->p", both[:, 0], both[:, 1]) / (norms[:, 0] * norms[:, 1])
    return spearman(cosines, pairs.scores), statistics.median(seconds) * 1e3


def size_of(artifact: Artifact) -> int:
    """Bytes of the saved artifact."""
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(folder)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


def main() -> None:
    """Build the model by each recipe and print a line for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--recipe", action="append", choices=list(RECIPES), help="default: all")
    parser.add_argument("--samples", type=int, default=100, help="sentences to calibrate with")
    args = parser.parse_args()
    pairs, calibration = (Pairs(path, args.vocabulary) for path in (args.pairs, args.calibration))
    module = load(args.model)
    print(f"{'recipe':12} {'Spearman':>8} {'ms':>7} {'MB':>6}")
    for name in args.recipe or RECIPES:
        recipe, samples = RECIPES[name], calibration.samples(args.samples)
        artifact = build(quantize(module, recipe=recipe, calibration=samples) if recipe else module)
        correlation, milliseconds = measure(artifact, pairs)
        megabytes = size_of(artifact) / 2**20
        print(f"{name:12} {correlation:8.4f} {milliseconds:7.2f} {megabytes:6.1f}", flush=True)


if __name__ == "__main__":
    main()
