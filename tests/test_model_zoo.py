"""The networks of the zoo have the size and work of their papers, stay sane, and go the whole way."""

import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest

from tvm_qplugin import frontend
from tvm_qplugin.api import quantize
from tvm_qplugin.builder import build
from tvm_qplugin.exporter import export_tflite
from tvm_qplugin.samples import inputs_of

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
import _zoo_graph
import model_zoo

SMALL = ("mobilenet_v1", "mobilenet_v2")
MILLION_MACS = {"mobilenet_v1": 569, "mobilenet_v2": 301, "inception_v3": 5713, "resnet_v2_101": 13388}
NAMES = [pytest.param(n, marks=[] if n in SMALL else [pytest.mark.slow]) for n in model_zoo.ZOO]


@pytest.mark.parametrize("name", NAMES)
def test_whole_way(name, tmp_path):
    path = model_zoo.write(name, tmp_path)
    megabytes = model_zoo.ZOO[name].megabytes
    assert path.stat().st_size / 1e6 == pytest.approx(megabytes, rel=0.02)
    folded = export_tflite(frontend.load(path, input_layout="NHWC"))
    assert len(folded) / 1e6 == pytest.approx(megabytes, rel=0.003)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    shape, rng = inputs_of(frontend.load(path))[0].spec.shape, np.random.default_rng(0)
    samples = [rng.uniform(-1, 1, shape).astype("float32") for _ in range(3)]
    ranges: dict[str, float] = {}
    quantized = quantize(
        path,
        calibration=samples[:2],
        hooks=[lambda tensor, value: ranges.update({tensor: float(np.ptp(value))})],
    )
    assert 0.1 < min(ranges.values()) and max(ranges.values()) < 100, ranges
    artifact = build(quantized)
    assert all(op.integer for op in artifact.manifest.operators)
    assert round(sum(op.macs for op in artifact.manifest.operators) / 1e6) == MILLION_MACS[name]
    first, other = (artifact.run(sample)[0] for sample in samples[1:])
    assert first.shape == (1, 1001) and np.any(first != other)


def test_command_writes_the_same_bytes_and_says_what(tmp_path, capsys):
    hashes = set()
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert model_zoo.main(["mobilenet_v2", "-o", str(folder)]) == 0
        assert [path.name for path in folder.iterdir()] == ["mobilenet_v2.onnx"]
        hashes.add(sha256((folder / "mobilenet_v2.onnx").read_bytes()).hexdigest())
        assert "mobilenet_v2.onnx: 14.2 MB, 301 million MACs" in capsys.readouterr().out
    assert len(hashes) == 1


def test_unknown_network_is_a_clear_message(capsys):
    with pytest.raises(SystemExit):
        model_zoo.main(["alexnet"])
    assert "no network alexnet; they are: mobilenet_v1, mobilenet_v2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads"), [(224, 3, 2, (0, 1)), (35, 5, 1, (2, 2)), (5, 1, 2, (0, 0))]
)
def test_same_padding_is_tensorflows(size, kernel, stride, pads):
    assert _zoo_graph.same(size, kernel, stride) == pads
