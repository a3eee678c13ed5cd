"""Calibration: figures against numpy, every error, memory, interruption."""

import subprocess
import sys
import tracemalloc
from io import StringIO

import numpy as np
import pytest
import tvm
from rich.console import Console
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tvm_qplugin.calibrator import calibrate, float_tensors, model_hash
from tvm_qplugin.core.calibration import CalibrationTable
from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.observers import range_of
from tvm_qplugin.progress import progress_bar

RNG = np.random.default_rng(0)
SAMPLES = list(RNG.normal(size=(8, 1, 4)).astype("float32"))


@I.ir_module
class Model:
    @R.function
    def main(x: R.Tensor((1, 4), "float32")):
        with R.dataflow():
            a = R.nn.relu(x)
            b = R.add(a, R.const([[1.0, 2.0, 3.0, 4.0]], "float32"))
            R.output(b)
        return b


@I.ir_module
class TwoInputs:
    @R.function
    def main(x: R.Tensor((1, 4), "float32"), ids: R.Tensor((1, 2), "int64")):
        with R.dataflow():
            a = R.nn.relu(x)
            b = R.add(ids, ids)
            R.output(a, b)
        return (a, b)


@I.ir_module
class Log:
    @R.function
    def main(x: R.Tensor((1, 4), "float32")):
        with R.dataflow():
            a = R.log(x)
            b = R.nn.relu(a)
            R.output(b)
        return b


def _values():
    x = np.stack(SAMPLES)
    return {"x": x, "a": np.maximum(x, 0), "b": np.maximum(x, 0) + np.float32([1, 2, 3, 4])}


def test_min_max_of_every_float_tensor():
    table = calibrate(Model, SAMPLES)
    assert table.samples == 8 and table.model_hash == model_hash(Model)
    assert float_tensors(Model) == list(table.ranges) == ["x", "a", "b"]
    for name, values in _values().items():
        seen = table.ranges[name]
        assert (seen.low, seen.high) == (values.min(), values.max())
        assert (seen.observer, seen.count) == ("min_max", 8)


def test_an_observer_per_tensor():
    table = calibrate(Model, SAMPLES, observer={"a": "moving_average"})
    highs = _values()["a"].max(axis=(1, 2))
    assert table.ranges["a"].high == pytest.approx(highs.mean(), rel=1e-6)
    assert table.ranges["b"].observer == "min_max"


def test_other_observers_of_the_same_histograms():
    table = calibrate(Model, SAMPLES, observer="least_mse")
    for kind in ("percentile", "entropy", "min_max"):
        wanted = calibrate(Model, SAMPLES, observer=kind)
        found = table.seen_by(dict.fromkeys(table.ranges, kind))
        for name, seen in wanted.ranges.items():
            assert range_of(found.ranges[name]) == range_of(seen)


def test_samples_held_back_are_not_observed():
    seen = []
    table = calibrate(Model, SAMPLES, each=lambda x: seen.append(x) or len(seen) % 2 == 0)
    assert table == calibrate(Model, SAMPLES[::2]) and len(seen) == 8


def test_hooks_see_read_only_values():
    seen = []

    def hook(name, value):
        assert not value.flags.writeable
        seen.append((name, value))

    calibrate(Model, SAMPLES, names=["b", "x"], hooks=[hook])
    assert [name for name, _ in seen] == ["b", "x"] * 8
    for name, values in _values().items():
        mine = [value for tensor, value in seen if tensor == name]
        assert name == "a" or (np.stack(mine) == values).all()


@pytest.mark.parametrize("observer", ["min_max", "moving_average", "percentile", "entropy", "least_mse"])
def test_going_on_from_a_table(observer):
    whole = calibrate(Model, SAMPLES, observer=observer)
    half = calibrate(Model, SAMPLES[:3], observer=observer)
    assert calibrate(Model, SAMPLES[3:], observer=observer, table=half) == whole
    if observer != "moving_average":
        assert half.merge(calibrate(Model, SAMPLES[3:], observer=observer)) == whole


def test_a_table_of_another_kind():
    half = calibrate(Model, SAMPLES[:3])
    with pytest.raises(CalibrationError, match="another model"):
        calibrate(TwoInputs, SAMPLES, names=["x"], table=half)
    with pytest.raises(CalibrationError, match="has observer 'min_max', 'moving_average' is asked"):
        calibrate(Model, SAMPLES, observer="moving_average", table=half)


@pytest.mark.parametrize(
    "samples",
    [
        np.stack(SAMPLES),
        np.concatenate(SAMPLES),
        [s[0] for s in SAMPLES],
        [s.astype("float64") for s in SAMPLES],
        [[s] for s in SAMPLES],
        [{"x": s} for s in SAMPLES],
        (s for s in SAMPLES),
    ],
    ids=["array", "no batch", "list", "float64", "sequences", "mappings", "generator"],
)
def test_forms_of_samples(samples):
    assert calibrate(Model, samples) == calibrate(Model, SAMPLES)


def test_original_names_of_inputs():
    module = Model.clone()
    io = '{"inputs": [{"name": "input:0"}], "outputs": [{"name": "b"}]}'
    module["main"] = module["main"].with_attr("qplugin.io", io)
    assert calibrate(module, [{"input:0": SAMPLES[0]}]).samples == 1


def test_several_inputs_and_limit():
    good = {"x": SAMPLES[0], "ids": np.array([1, 2], "int16")}
    assert calibrate(TwoInputs, [good] * 3, limit=2).samples == 2
    assert float_tensors(TwoInputs) == ["x", "a"]


def _raising():
    yield SAMPLES[0]
    raise OSError("disk gone")


X = SAMPLES[0]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "the calibration set is empty"),
        ([X, X * np.nan], r"sample 1, input 'x': it holds nan at \[0, 0\]"),
        ([np.float32([1, np.inf, 0, 0])], r"sample 0, input 'x': it holds inf at \[0, 1\]"),
        ([np.float64([1, 1e300, 0, 0])], r"it holds inf"),
        ([X, X[:, :3]], r"sample 1, input 'x': shape \[1, 3\] was given, \[1, 4\] is expected"),
        ([X[None]], r"shape \[1, 1, 4\] was given"),
        ([np.float32(1)], r"shape \[\] was given"),
        ([X.astype("uint8")], "dtype uint8 was given, float32 is expected: preprocess"),
        ([X.astype("complex64")], "dtype complex64 was given"),
        (["abc"], "sample 0 is a str"),
        ([None], "sample 0 is a NoneType"),
        ([[X, X]], r"sample 0 has 2 arrays, the model has 1 inputs \(x\)"),
        ([{"y": X}], "inputs unknown: y; missing: x; the model's are: x"),
        ([{}], "sample 0: inputs missing: x"),
        ([{"x": [[1, 2], [3]]}], "sample 0, input 'x': not an array"),
        ({"x": np.stack(SAMPLES)}, "a dict is not a set of samples"),
        ("images", "a str is not a set of samples.*open_samples"),
        (3, "a int is not a set"),
        (np.array(3.0), "single number"),
        (_raising(), "sample 1: reading it failed with OSError: disk gone"),
    ],
)
def test_bad_samples(samples, message):
    with pytest.raises(CalibrationError, match=message):
        calibrate(Model, samples)


def test_other_errors():
    with pytest.raises(CalibrationError, match="dtype float32 was given, int64 is expected"):
        calibrate(TwoInputs, [[X, np.float32([1, 2])]])
    with pytest.raises(CalibrationError, match="no tensor is called 'nope'"):
        calibrate(Model, SAMPLES, names=["nope"])
    with pytest.raises(CalibrationError, match=r"observers are given for .* not observed: z"):
        calibrate(Model, SAMPLES, observer={"z": "min_max"})
    with pytest.raises(CalibrationError, match="'median' is unknown"):
        calibrate(Model, SAMPLES, observer="median")
    with pytest.raises(CalibrationError, match="limit 0"):
        calibrate(Model, SAMPLES, limit=0)


@pytest.mark.parametrize(("value", "word"), [(-1, "NaN"), (0, "Inf")])
def test_a_tensor_that_is_not_finite(value, word):
    bad = np.float32([1, 1, value, 1])
    with pytest.raises(CalibrationError, match=f"sample 1, tensor 'a': it holds {word}"):
        calibrate(Log, [np.ones(4, "float32"), bad])


@pytest.mark.parametrize("observer", ["min_max", "least_mse"])
def test_memory_does_not_grow(observer):
    def samples(n):
        for i in range(n):
            yield np.full((1, 4096, 64), i, "float32")

    x = relax.Var("x", R.Tensor((1, 4096, 64), "float32"))
    bb = relax.BlockBuilder()
    with bb.function("main", [x]):
        with bb.dataflow():
            out = bb.emit_output(relax.op.nn.relu(x))
        bb.emit_func_output(out)
    peaks = []
    for n in (3, 30):
        tracemalloc.start()
        calibrate(bb.get(), samples(n), observer=observer)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + (1 << 20)


def _interrupted():
    yield from SAMPLES[:5]
    raise KeyboardInterrupt


def test_interrupted_and_resumed(tmp_path):
    path = tmp_path / "part.json"
    with pytest.raises(KeyboardInterrupt):
        calibrate(Model, _interrupted(), checkpoint=path, observer="moving_average")
    assert CalibrationTable.load(path).samples == 5
    seen = []
    whole = calibrate(
        Model, SAMPLES, checkpoint=path, observer="moving_average", hooks=[lambda *a: seen.append(a)]
    )
    assert whole == calibrate(Model, SAMPLES, observer="moving_average")
    assert len(seen) == 3 * 3 and not path.exists()


def test_half_a_sample_does_not_count(tmp_path):
    path, calls = tmp_path / "part.json", []

    def hook(name, _value):
        calls.append(name)
        if len(calls) == 3 * 4 + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(Model, SAMPLES, checkpoint=path, hooks=[hook])
    assert CalibrationTable.load(path) == calibrate(Model, SAMPLES[:4])


def test_checkpoints_in_between(tmp_path):
    path = tmp_path / "part.json"
    with pytest.raises(CalibrationError):
        calibrate(Model, [*SAMPLES, None], checkpoint=path, checkpoint_every=3)
    assert CalibrationTable.load(path) == calibrate(Model, SAMPLES[:6])
    with pytest.raises(CalibrationError, match="6 samples, the table to go on from 8"):
        calibrate(Model, SAMPLES, checkpoint=path, table=calibrate(Model, SAMPLES))


def test_hash_is_of_structure_and_weights():
    same, other = Model.clone(), Model.clone()
    assert model_hash(same) == model_hash(Model) != model_hash(Log)
    func = other["main"]
    block = func.body.blocks[0]
    changed = relax.op.add(block.bindings[0].var, relax.const(np.float32([[1, 2, 3, 5]])))
    changed = relax.BlockBuilder().normalize(changed)
    bindings = [block.bindings[0], relax.VarBinding(block.bindings[1].var, changed)]
    body = relax.SeqExpr([relax.DataflowBlock(bindings)], func.body.body)
    other["main"] = relax.Function(func.params, body, func.ret_ty, attrs=func.attrs)
    assert model_hash(other) != model_hash(Model)


def test_hash_is_the_same_in_another_process(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(tvm.ir.save_json(Model))
    code = (
        "import sys, tvm; from tvm_qplugin.calibrator import model_hash;"
        "print(model_hash(tvm.ir.load_json(open(sys.argv[1]).read())))"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == model_hash(Model)


@pytest.mark.parametrize("samples", [[1, 2, 3], iter([1, 2, 3])], ids=["known", "unknown"])
def test_progress(samples):
    drawn = StringIO()
    console = Console(file=drawn, force_terminal=True, width=100)
    with progress_bar(True, samples, console=console) as advance:
        for _ in samples:
            advance()
    assert ("3/3" if isinstance(samples, list) else "3/?") in drawn.getvalue()


def test_no_progress_off_a_terminal(capsys):
    calibrate(Model, SAMPLES, progress=True)
    assert capsys.readouterr() == ("", "")
