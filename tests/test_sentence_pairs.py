"""The script that measures sentence encoders: ranks, files of pairs, and the whole way of a small model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import IRModule, relax

from tvm_qplugin.builder import build

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
import sentence_pairs

Array = np.ndarray[Any, Any]
PAIRS, LENGTH, WORDS = 5, 3, 7


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 99], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 2, 3], [1, 3, 2, 4], 0.9486832980505138),
    ],
)
def test_spearman(a: list[float], b: list[float], expected: float) -> None:
    assert sentence_pairs.spearman(np.array(a), np.array(b)) == pytest.approx(expected, abs=1e-12)


def test_files_and_vocabulary(tmp_path: Path) -> None:
    pairs = sentence_pairs.Pairs(pairs_file(tmp_path), vocabulary_file(tmp_path))
    first, second = list(pairs.sentences())[:2]
    assert len(list(pairs.sentences())) == 2 * PAIRS
    assert first[0].tolist() == [[0, 10, 20]] and second[0].tolist() == [[10, 20, 30]]
    assert first[0].dtype == second[1].dtype == "int64"
    assert pairs.samples(2)[1]["mask"].shape == (1, LENGTH)


def test_a_model_whose_cosines_are_known(tmp_path: Path) -> None:
    """An embedding is a row of a table for the first word: cosines rank as the scores, and the other way."""
    artifact = build(lookup())
    for sign in (1, -1):
        pairs = sentence_pairs.Pairs(pairs_file(tmp_path, sign), None)
        correlation, milliseconds = sentence_pairs.measure(artifact, pairs)
        assert correlation == pytest.approx(sign) and milliseconds > 0
    assert sentence_pairs.size_of(artifact) > 1000


def pairs_file(folder: Path, sign: int = 1) -> Path:
    """The first words of a pair are i and i + 1."""
    ids = (np.arange(PAIRS)[:, None] + np.arange(LENGTH)) % WORDS
    mask = np.ones((PAIRS, LENGTH), "uint8")
    path = folder / "pairs.npz"
    scores = np.arange(PAIRS) * sign
    np.savez(path, ids_a=ids, mask_a=mask, ids_b=ids + 1, mask_b=mask, score=scores.astype("float32"))
    return path


def vocabulary_file(folder: Path) -> Path:
    np.save(folder / "ids.npy", np.arange(WORDS + 2, dtype="int32") * 10)
    return folder / "ids.npy"


def lookup() -> IRModule:
    """Angles between successive rows become smaller."""
    angles = np.cumsum(1.0 / np.arange(1, WORDS + 2))
    table = np.stack([np.cos(angles), np.sin(angles)], 1).astype("float32")
    bb = relax.BlockBuilder()
    ids, mask = (relax.Var(name, relax.TensorType((1, LENGTH), "int64")) for name in ("ids", "mask"))
    with bb.function("main", [ids, mask]):
        with bb.dataflow():
            rows = bb.emit(relax.op.take(relax.const(table), ids, 0, mode="wrap"), "rows")
            out = bb.emit_output(bb.emit(relax.op.strided_slice(rows, [1], [0], [1]), "first"))
        bb.emit_func_output(out)
    return bb.get()
