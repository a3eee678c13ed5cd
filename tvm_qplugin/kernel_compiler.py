"""PrimFuncs to object files: each compiled alone, in parallel, and only if the cache has none like it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from tvm_qplugin.core.attrs import KERNEL, PARAMS, TUNED
from tvm_qplugin.measure import cores
from tvm_qplugin.object_cache import ObjectCache

_FORMAT = 1  # of the cache's entries; another number makes all older ones unknown
_UNUSED = (KERNEL, PARAMS, TUNED, "op_pattern", "global_symbol")  # attributes that no machine code depends on
_NAME = re.compile(r"[\w.$]+", re.ASCII)
_KEY = 32  # hexadecimal digits of sha256


@dataclass(frozen=True)
class KernelCompiler:
    """Compiles kernels for one target.

    ``config``: of the pass context; ``jobs``: threads, default one for each core; TVM and LLVM work outside
    Python's lock and share nothing.
    """

    target: tvm.target.Target
    config: Mapping[str, Any]
    store: ObjectCache
    jobs: int | None = None

    def symbols(self, functions: Mapping[str, tirx.PrimFunc]) -> dict[str, tuple[str, tirx.PrimFunc]]:
        """For each function the symbol of its kernel, which says what it computes, and the kernel.

        Functions that differ in nothing but the names of variables have one symbol. Nothing is given if they
        cannot be compiled alone: one calls another, or has a name that assemblers refuse.
        """
        if not all(map(_NAME.fullmatch, functions)):
            return {}
        first: dict[Any, tuple[str, tirx.PrimFunc]] = {}
        named = {}
        for name, func in functions.items():
            plain = _plain(func)
            shape = tvm_ffi.StructuralKey(plain)
            if shape not in first:
                text = tvm.ir.save_json(plain)
                if '"ir.GlobalVar"' in text:
                    return {}
                first[shape] = (self._symbol(text), plain)
            named[name] = first[shape]
        return named

    def objects(
        self, kernels: Mapping[str, tirx.PrimFunc], advance: Callable[[], object] = lambda: None
    ) -> dict[str, bytes]:
        """The object file of each kernel by its symbol; ``advance`` is called after each of them."""
        done: dict[str, bytes] = {}
        for symbol, data in self._known(kernels):
            done[symbol] = data
            advance()
        missing = [(symbol, kernels[symbol]) for symbol in kernels if symbol not in done]
        for symbol, data in self._compile_all(missing):
            self.store.put(symbol, data)
            done[symbol] = data
            advance()
        if missing:
            self.store.trim()
        return {symbol: done[symbol] for symbol in kernels}

    def _known(self, symbols: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        for symbol in symbols:
            if (data := self.store.get(symbol)) is not None:
                yield symbol, data

    def _compile_all(self, kernels: Sequence[tuple[str, tirx.PrimFunc]]) -> Iterator[tuple[str, bytes]]:
        jobs = min(self.jobs or len(cores()), len(kernels))
        if jobs <= 1:
            yield from ((symbol, self._compile(symbol, func)) for symbol, func in kernels)
            return
        pool = ThreadPoolExecutor(jobs, thread_name_prefix="tvm-qplugin-compile")
        try:
            running: dict[Future[bytes], str] = {
                pool.submit(self._compile, symbol, func): symbol for symbol, func in kernels
            }
            yield from ((running[future], future.result()) for future in as_completed(running))
        finally:
            pool.shutdown(cancel_futures=True)

    def _compile(self, symbol: str, func: tirx.PrimFunc) -> bytes:
        module = tvm.IRModule({symbol: func.with_attr("global_symbol", symbol)})
        with self.target, tvm.transform.PassContext(2, config=dict(self.config)):
            library = tvm.tirx.build(module, target=self.target)
        with tempfile.TemporaryDirectory(prefix="tvm-qplugin-") as folder:
            path = Path(folder) / "kernel.o"
            library.write_to_file(str(path))
            return path.read_bytes()

    def _symbol(self, text: str) -> str:
        return f"k{sha256(f'{self._setting}{text}'.encode()).hexdigest()[:_KEY]}"

    @cached_property
    def _setting(self) -> str:
        """Everything but the function that decides about the machine code."""
        target = {key: str(value) for key, value in self.target.export().items()}
        config = {key: str(value) for key, value in self.config.items()}
        return json.dumps([_FORMAT, target, triple(self.target), config, *_compilers()], sort_keys=True)


def triple(target: tvm.target.Target) -> str:
    """LLVM's name of the platform that a target means."""
    named = target.attrs.get("mtriple") if target.attrs else None
    return str(named or tvm.target.codegen.llvm_get_system_triple())


def _plain(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function without what only the passes read."""
    for name in _UNUSED:
        func = func.without_attr(name)
    return func


@cache
def _compilers() -> tuple[str, ...]:
    """Versions of what compiles; the size of TVM's library tells builds of one version apart."""
    try:
        own = version("tvm-qplugin")
    except PackageNotFoundError:
        own = "unknown"
    folders = tvm.libinfo.package_lib_paths()
    sizes = sorted(
        f"{path.name} {path.stat().st_size}" for folder in folders for path in folder.glob("libtvm*")
    )
    return own, tvm.__version__, str(tvm.target.codegen.llvm_version_major(False)), *sizes
