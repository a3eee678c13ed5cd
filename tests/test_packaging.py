"""What is installed: every folder, the demo's data, nothing at the top level but our package."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
LINKS = ("passes", "schedules", "targets")


def _packages() -> Iterator[str]:
    for name, folder in SETUPTOOLS["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            if not any(parent.is_symlink() for parent in init.parents):
                yield ".".join([name, *init.parent.relative_to(ROOT / folder).parts])


def test_every_folder_is_packaged():
    assert sorted(_packages()) == sorted(SETUPTOOLS["packages"])


def test_links_point_at_the_top_level_folders():
    for top in LINKS:
        link = ROOT / "tvm_qplugin" / top
        assert link.is_symlink() and not link.readlink().is_absolute()
        assert link.resolve() == ROOT / top


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_importing_the_package_does_not_import_tvm():
    result = _python(
        "import sys, tvm_qplugin; print([m for m in ('tvm', 'onnx', 'numpy') if m in sys.modules])"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_importing_tvm_finds_the_plugin():
    """TVM turns an exception of ours into a warning, so that is what to look for."""
    result = _python("import tvm")
    assert result.returncode == 0, result.stderr
    assert "qplugin" not in result.stderr


def test_tvm_ffi_is_within_its_pin():
    """0.1.15 of apache-tvm-ffi crashes here: when this passes with it, the pin may go."""
    pins = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
    (pin,) = [pin for pin in pins if pin.name == "apache-tvm-ffi"]
    assert pin.specifier.contains(version("apache-tvm-ffi")), f"installed outside of {pin}"
    result = _python(
        "import tvm\n"
        "from tvm import relax\n"
        "x = relax.Var('x', relax.TensorType((4,), 'float32'))\n"
        "builder = relax.BlockBuilder()\n"
        "with builder.function('main', [x]):\n"
        "    y = builder.emit(relax.op.add(x, relax.const([1.0, 2, 3, 4], 'float32')))\n"
        "    builder.emit_func_output(y)\n"
        "module = builder.get()\n"
        "again = tvm.ir.load_json(tvm.ir.save_json(module))\n"
        "tvm.ir.assert_structural_equal(again, module)\n"
        "print('fine')"
    )
    assert result.stdout.strip() == "fine", f"exit code {result.returncode}: {result.stderr[-500:]}"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """Source archive, and the wheel that is built from it, from a copy of the tree."""
    copy = tmp_path_factory.mktemp("source") / "project"
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignore)
    dist = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(dist), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return dist


@pytest.mark.slow
def test_wheel(distributions):
    (wheel,) = distributions.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"tvm_qplugin"}
    expected = [f"{package.replace('.', '/')}/__init__.py" for package in SETUPTOOLS["packages"]]
    expected += [f"tvm_qplugin/demo/{name}" for name in ("digits.onnx", "calibration.npz", "test.npz")]
    expected += ["tvm_qplugin/py.typed", "tvm_qplugin/schedules/db/x86-avx512vnni.jsonl"]
    assert not set(expected) - set(names)
    for folder in LINKS:
        for file in (ROOT / folder).glob("*.py"):
            assert f"tvm_qplugin/{folder}/{file.name}" in names


@pytest.mark.slow
def test_sdist(distributions):
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = ["pyproject.toml", "README.md", "LICENSE", "passes/__init__.py", "tests/conftest.py"]
    needed += ["scripts/train_demo.py", "scripts/test.sh", "tvm_qplugin/demo/digits.onnx"]
    assert not set(needed) - names


@pytest.mark.slow
def test_the_wheel_is_importable_alone(distributions, tmp_path):
    (wheel,) = distributions.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import tvm_qplugin, tvm_qplugin.passes, tvm_qplugin.demo as demo\n"
        f"assert tvm_qplugin.__file__.startswith({str(tmp_path)!r}), tvm_qplugin.__file__\n"
        "print(demo.evaluation()[0].shape)"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-I", "-c", _with_site(code)], capture_output=True, text=True
    )
    assert result.stdout.strip() == "(450, 1, 8, 8)", result.stderr


def _with_site(code: str) -> str:
    """Installed packages, but not the import hook of an editable installation of ours."""
    return f"import sys; sys.path.extend({[p for p in sys.path if p.endswith('-packages')]!r})\n{code}"
