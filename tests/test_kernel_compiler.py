"""Kernels compiled one by one: what the cache saves, and that the model is the same to the last byte."""

import subprocess
import sys
import threading
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import tirx as T

import tvm_qplugin as qp
from tvm_qplugin import demo
from tvm_qplugin.builder import compile_function
from tvm_qplugin.kernel_compiler import KernelCompiler
from tvm_qplugin.object_cache import ObjectCache
from tvm_qplugin.stage import save_module
from tvm_qplugin.targets import find_profile, tvm_target

IMAGE = demo.calibration()[:1]

BUILD = """
import sys
import tvm_qplugin as qp
from tvm_qplugin.stage import load_module
qp.build(load_module(sys.argv[1]), merge=False).save(sys.argv[2])
"""
RUN = """
import sys
import numpy as np, tvm
from tvm import relax
machine = relax.VirtualMachine(tvm.runtime.load_module(sys.argv[1]), tvm.cpu())
result = machine["main"](tvm.runtime.tensor(np.load(sys.argv[2])))
assert "tvm_qplugin.artifact" not in sys.modules
np.save(sys.argv[3], result.numpy())
"""


@I.ir_module
class Kernels:
    """Two kernels that differ in names only, one that differs in a number."""

    @T.prim_func(private=True, s_tir=True)
    def first(x: T.Buffer((8,), "int32"), y: T.Buffer((8,), "int32")):
        for i in range(8):
            y[i] = x[i] * 3

    @T.prim_func(private=True, s_tir=True)
    def second(a: T.Buffer((8,), "int32"), b: T.Buffer((8,), "int32")):
        for j in range(8):
            b[j] = a[j] * 3

    @T.prim_func(private=True, s_tir=True)
    def third(x: T.Buffer((8,), "int32"), y: T.Buffer((8,), "int32")):
        for i in range(8):
            y[i] = x[i] * 5


@pytest.fixture(scope="module")
def module() -> tvm.IRModule:
    return qp.quantize(demo.model_path(), calibration=demo.calibration()[:8])


@pytest.fixture
def compilations(monkeypatch) -> list[str]:
    """The names of what TVM is asked to compile, from now on."""
    names: list[str] = []
    build = tvm.tirx.build

    def counting(mod: tvm.IRModule, *args: object, **options: object) -> object:
        names.extend(var.name_hint for var in mod.get_global_vars())
        return build(mod, *args, **options)

    monkeypatch.setattr(tvm.tirx, "build", counting)
    return names


def compiler(cache: ObjectCache, target: str = "host", **options: int) -> KernelCompiler:
    return KernelCompiler(tvm_target(find_profile(target)), {}, cache, **options)


def functions() -> dict[str, tvm.tirx.PrimFunc]:
    return {var.name_hint: func for var, func in Kernels.functions_items()}


def digest(artifact: qp.Artifact) -> str:
    return artifact.manifest.sha256["model.so"]


def test_the_second_build_compiles_nothing(module, tmp_path, compilations):
    cache = ObjectCache(tmp_path)
    first = qp.build(module, cache=cache, merge=False)
    count = len(compilations)
    assert count == len(set(compilations)) == cache.missed == cache.usage().entries > 5
    again = ObjectCache(tmp_path)
    second = qp.build(module, cache=again, merge=False)
    assert len(compilations) == count and (again.found, again.missed) == (count, 0)
    assert digest(first) == digest(second)


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_without_a_cache_the_model_is_the_same(module, tmp_path, compilations, jobs):
    wanted = digest(qp.build(module, cache=ObjectCache(tmp_path), merge=False))
    count = len(compilations)
    assert digest(qp.build(module, cache=False, jobs=jobs, merge=False)) == wanted
    assert len(compilations) == 2 * count


def test_the_model_computes_what_it_computes_compiled_whole(module, tmp_path):
    cache = ObjectCache(tmp_path)
    for _ in range(2):
        got = qp.build(module, cache=cache, merge=False).run(IMAGE)[0]
        np.testing.assert_array_equal(got, compile_function(module)([IMAGE])[0])
        np.testing.assert_array_equal(got, qp.simulate(module, IMAGE)[0])


def test_damaged_entries_are_compiled_again(module, tmp_path, compilations):
    cache = ObjectCache(tmp_path)
    wanted = digest(qp.build(module, cache=cache, merge=False))
    count = len(compilations)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    files[0].write_bytes(files[1].read_bytes())
    files[2].write_bytes(files[2].read_bytes()[:-1])
    assert digest(qp.build(module, cache=cache, merge=False)) == wanted
    assert len(compilations) == count + 2
    assert digest(qp.build(module, cache=cache, merge=False)) == wanted
    assert len(compilations) == count + 2


def test_a_small_cache_is_never_larger_than_its_limit(module, tmp_path, compilations):
    cache = ObjectCache(tmp_path, limit=30_000)
    wanted = digest(qp.build(module, cache=False, merge=False))
    for _ in range(2):
        assert digest(qp.build(module, cache=cache, merge=False)) == wanted
        assert 0 < cache.usage().bytes <= 30_000
    assert 0 < cache.found


def test_a_cache_that_cannot_be_written_warns_and_the_model_is_the_same(module, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="compiled kernels are not kept"):
        artifact = qp.build(module, cache=ObjectCache(tmp_path / "file"), merge=False)
    assert digest(artifact) == digest(qp.build(module, cache=False, merge=False))


def test_processes_build_at_once_and_the_model_works_in_another(module, tmp_path, monkeypatch):
    monkeypatch.setenv("TVM_QPLUGIN_CACHE", str(tmp_path / "kernels"))
    save_module(module, tmp_path / "quantized")
    commands = [
        [sys.executable, "-c", BUILD, str(tmp_path / "quantized"), str(tmp_path / name)] for name in "ab"
    ]
    running = [subprocess.Popen(command) for command in commands]
    assert [process.wait() for process in running] == [0, 0]
    assert (tmp_path / "a" / "model.so").read_bytes() == (tmp_path / "b" / "model.so").read_bytes()
    np.save(tmp_path / "x.npy", IMAGE)
    paths = [str(tmp_path / name) for name in ("a/model.so", "x.npy", "y.npy")]
    subprocess.run([sys.executable, "-c", RUN, *paths], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), qp.simulate(module, IMAGE)[0])
    again = ObjectCache()
    assert sha256((tmp_path / "a" / "model.so").read_bytes()).hexdigest() == digest(
        qp.build(module, cache=again, merge=False)
    )
    assert again.missed == 0


def test_every_target_has_kernels_of_its_own(tmp_path):
    cache = ObjectCache(tmp_path)
    symbols = {
        symbol
        for target in ("x86-64", "x86-64-v3", "x86-64-v4-vnni")
        for symbol, _ in compiler(cache, target).symbols(functions()).values()
    }
    assert len(symbols) == 3 * 2


def test_the_platform_and_the_configuration_are_part_of_the_key(tmp_path):
    cache, func = ObjectCache(tmp_path), {"third": Kernels["third"]}
    base = {"kind": "llvm", "mcpu": "generic", "mtriple": "aarch64-linux-gnu"}
    targets = [
        tvm.target.Target(t)
        for t in (base, base | {"mtriple": "aarch64-none-elf"}, base | {"mcpu": "cortex-a76"})
    ]
    makers = [KernelCompiler(target, {}, cache) for target in targets]
    makers.append(KernelCompiler(targets[0], {"tirx.disable_assert": True}, cache))
    assert len({maker.symbols(func)["third"][0] for maker in makers}) == 4


def test_kernels_for_another_processor(tmp_path):
    target = tvm.target.Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"})
    made = KernelCompiler(target, {}, ObjectCache(tmp_path), jobs=2)
    for data in made.objects(dict(made.symbols(functions()).values())).values():
        assert data[:4] == b"\x7fELF" and int.from_bytes(data[18:20], "little") == 183  # AArch64


def test_the_profile_names_the_compiler(module, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexec {tvm.support.cc.get_cc()} "$@"\n')
    compiler.chmod(0o755)
    profile = replace(find_profile("host"), compiler=str(compiler))
    assert digest(qp.build(module, target=profile)) == digest(qp.build(module))
    assert "kernels.cc" in (tmp_path / "calls").read_text()


def test_names_do_not_matter_and_numbers_do(tmp_path, compilations):
    made = compiler(ObjectCache(tmp_path))
    symbols = made.symbols(functions())
    assert symbols["first"][0] == symbols["second"][0] != symbols["third"][0]
    objects = made.objects(dict(symbols.values()))
    assert sorted(compilations) == sorted(objects) and len(objects) == 2


@pytest.mark.parametrize("name", ["a_kernel", "kernel-1", "kernel 2"])
def test_a_kernel_may_have_any_name(name):
    @I.ir_module
    class Odd:
        @T.prim_func(private=True, s_tir=True)
        def kernel(x: T.Buffer((8,), "float32"), k: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32")):
            for i in range(8):
                with T.sblock("y"):
                    vi = T.axis.spatial(8, i)
                    y[vi] = x[vi] * k[vi]

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((8,), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            kernel = builder.add_func(Odd["kernel"], name)
            three = relax.const(np.full(8, 3, "float32"))
            y = builder.emit_output(relax.call_tir(kernel, [x, three], relax.TensorType((8,), "float32")))
        builder.emit_func_output(y)
    artifact = qp.build(builder.get())
    np.testing.assert_array_equal(artifact.run(np.arange(8, dtype="float32"))[0], 3 * np.arange(8))


def test_a_function_that_calls_another_cannot_be_compiled_alone(tmp_path):
    @I.ir_module
    class Calling:
        @T.prim_func(private=True, s_tir=True)
        def inner(x: T.Buffer((8,), "int32")):
            x[0] = 1

        @T.prim_func(private=True, s_tir=True)
        def outer(x: T.Buffer((8,), "int32")):
            Calling.inner(x.data)

    given = {var.name_hint: func for var, func in Calling.functions_items()}
    assert compiler(ObjectCache(tmp_path)).symbols(given) == {}


def test_an_interruption_leaves_nothing_behind(module, tmp_path):
    made = compiler(ObjectCache(tmp_path), jobs=2)
    before = threading.active_count()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.objects(dict(made.symbols(functions()).values()), interrupt)
    assert threading.active_count() == before
    assert all(path.suffix == ".kernel" for path in tmp_path.rglob("*") if path.is_file())
    assert compiler(ObjectCache(tmp_path)).objects(dict(made.symbols(functions()).values()))


def test_the_error_of_a_kernel_is_the_error_of_the_build(tmp_path, monkeypatch):
    def fail(*_args: object, **_options: object) -> None:
        raise ValueError("no such instruction")

    made = compiler(ObjectCache(tmp_path), jobs=2)
    monkeypatch.setattr(tvm.tirx, "build", fail)
    with pytest.raises(ValueError, match="no such instruction"):
        made.objects(dict(made.symbols(functions()).values()))
