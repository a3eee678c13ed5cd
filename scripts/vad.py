"""How far the quantized Silero VAD, which carries its state from frame to frame, strays from float.

python scripts/vad.py [--clips N]: mean absolute error of the speech probability for every recipe, each model
with a state of its own. Exit code 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from real_models import data_root

from tvm_qplugin import frontend
from tvm_qplugin.api import quantize
from tvm_qplugin.builder import build, compile_function

Array = np.ndarray[Any, Any]
Run = Callable[[Sequence[Array]], Sequence[Array]]
CONTEXT, FRAME, STATE = 64, 512, (2, 1, 128)
LIMITS = {"int8": 0.02, "dynamic": 0.01, "int16x8": 0.002}


def frames(clip: Array) -> Iterator[Array]:
    """int16 samples at 16 kHz as float32 [1, 576]: the end of the last frame, then a new one."""
    wave = np.concatenate([np.zeros(CONTEXT, "float32"), clip.astype("float32") / 32768])
    for begin in range(0, len(clip) - FRAME + 1, FRAME):
        yield wave[begin : begin + CONTEXT + FRAME][None]


def listen(run: Run, clip: Array) -> Iterator[tuple[dict[str, Array], float]]:
    """Inputs and probability of every frame; the state starts from zeros."""
    state = np.zeros(STATE, "float32")
    for frame in frames(clip):
        given = {"input": frame, "state": state}
        probability, state = run([frame, state])
        yield given, float(probability.reshape(()))


def probabilities(run: Run, clips: Array) -> Array:
    """Those of all frames of all clips."""
    return np.array([p for clip in clips for _, p in listen(run, clip)])


def main() -> int:
    """Print a line for each recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, help="evaluate only the first N clips")
    clips = parser.parse_args().clips
    module = frontend.load(data_root() / "models" / "silero_vad_16k_576.onnx")
    run = compile_function(module)
    calibration = np.load(data_root() / "data" / "vad_gsc_calib.npz")["x"]
    samples = [given for clip in calibration[:30] for given, _ in listen(run, clip)][::3]
    dev = np.load(data_root() / "data" / "vad_gsc_dev.npz")["x"][:clips]
    exact, missed = probabilities(run, dev), 0
    for recipe, limit in LIMITS.items():
        artifact = build(quantize(module, recipe=recipe, calibration=samples))
        error = float(np.abs(probabilities(lambda given, a=artifact: a.run(*given), dev) - exact).mean())
        missed += error > limit
        print(f"{recipe}: mean absolute error {error:.5f} (<= {limit}) over {len(exact)} frames", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
