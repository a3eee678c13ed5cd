"""The records that come with the package: usable, worth it, and right."""

import json
from dataclasses import replace

import pytest

from tvm_qplugin import trial
from tvm_qplugin.core.attrs import KernelCall, TensorSpec
from tvm_qplugin.core.records import Database, Record
from tvm_qplugin.core.tunable import is_setting
from tvm_qplugin.recorded import SHIPPED
from tvm_qplugin.schedules.x86_isa import VNNI512, supports
from tvm_qplugin.targets import find_profile, tvm_target
from tvm_qplugin.trial import Job
from tvm_qplugin.tuning_tasks import task_for

PROFILE = find_profile("x86-64-v4-vnni")
TARGET = tvm_target(PROFILE)
RECORDS = Database(SHIPPED / "x86-avx512vnni.jsonl").records
ADD = {
    "a_mul": 900_000,
    "b_mul": 700_000,
    "a_zp": 100,
    "b_zp": 7,
    "shift": 20,
    "out_zp": 9,
    "lo": 0,
    "hi": 255,
}
CODES = {"in_zp": 3, "out_zp": 100, "lo": 0, "hi": 255}


def call_of(record: Record) -> KernelCall:
    task = json.loads(record.task)
    *args, out = (TensorSpec(tuple(shape), dtype) for shape, dtype in task["specs"])
    fused = task["kernel"] == "qconv2d_add"
    codes = {**CODES, "add": ADD} if fused else CODES
    call, live = (
        KernelCall(task["kernel"], {**task["params"], **codes}, tuple(args), out),
        (0, 4)[: 1 + fused],
    )
    return trial.call_of(replace(Job.of(call, "", "", None), live=live))


def test_there_are_some_and_each_task_has_one():
    assert len(RECORDS) > 10
    assert len({record.task for record in RECORDS}) == len(RECORDS)


@pytest.mark.parametrize("record", RECORDS, ids=range(len(RECORDS)))
def test_record(record, tmp_path):
    assert record.role == "final" and record.default_seconds is not None
    assert record.seconds < 0.98 * record.default_seconds
    task = task_for(call_of(record), "", PROFILE, TARGET)
    assert task is not None and task.key == record.task
    assert record.knobs is not None and is_setting(record.knobs, task.tunable)


@pytest.mark.slow
@pytest.mark.skipif(not supports(VNNI512, tvm_target(find_profile("host"))), reason="no AVX512-VNNI here")
def test_every_record_gives_the_oracles_result(tmp_path):
    device = trial.Device()
    config = json.dumps({k: v for k, v in TARGET.export().items() if isinstance(v, str | int)})
    for index, record in enumerate(RECORDS):
        task = task_for(call_of(record), "", PROFILE, TARGET)
        assert task is not None and record.knobs is not None
        job = Job.of(task.call, task.rule, config, None)
        folder = tmp_path / str(index)
        folder.mkdir()
        trial.build(job, record.knobs, str(folder))
        assert trial.time(job, str(folder), device) > 0
