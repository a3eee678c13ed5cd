"""Fixtures for all tests: where the shared models lie, and a check of the IR after every pass."""

import os
from pathlib import Path

import pytest
import tvm
from tvm import relax
from tvm.ir.instrument import pass_instrument
from tvm.ir.transform import PassContext

ROOT = Path(__file__).resolve().parent.parent


# A folder of the tests' own, for subprocesses as well; a second run finds in it what it compiles.
os.environ |= {"TVM_QPLUGIN_CACHE": str(ROOT / ".pytest_cache" / "kernels"), "TVM_QPLUGIN_CACHE_SIZE": "200M"}


def data_directory() -> Path | None:
    """``QPLUGIN_DATA``, default ``../shared`` from the repository; set but empty: no data."""
    setting = os.environ.get("QPLUGIN_DATA", "../shared")
    return (ROOT / setting).resolve() if setting else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory with ``models/`` and ``data/``; without it the test is skipped, in CI it fails."""
    path = data_directory()
    if path is not None and path.is_dir():
        return path
    reason = f"no models and data at {path} (QPLUGIN_DATA)"
    if os.environ.get("CI") and path is not None:
        pytest.fail(f"{reason}; CI needs them, or QPLUGIN_DATA set to the empty string")
    pytest.skip(reason)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``QPLUGIN_SLOW`` set, of the slow tests only those run whose ids start as it says."""
    sample = tuple(os.environ.get("QPLUGIN_SLOW", "").split())
    if not sample:
        return
    for prefix in sample:
        if not (ROOT / prefix.split("::")[0]).exists():
            raise pytest.UsageError(f"QPLUGIN_SLOW names {prefix}, which does not exist")
    dropped = [item for item in items if "slow" in item.keywords and not item.nodeid.startswith(sample)]
    items[:] = [item for item in items if item not in dropped]
    config.hook.pytest_deselected(items=dropped)


@pass_instrument
class WellFormed:
    """Fails the pass after which a Relax module is not well-formed."""

    def run_after_pass(self, mod: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
        try:
            relax.analysis.well_formed(mod)
        except Exception as error:
            raise AssertionError(f"not well-formed after pass {info.name}: {error}") from error


@pytest.fixture(scope="session", autouse=True)
def _well_formed_after_every_pass():
    """On in the default context, for as long as the tests run."""
    PassContext.current().override_instruments([WellFormed()])
    yield
    PassContext.current().override_instruments([])
