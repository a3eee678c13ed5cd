"""Object files, constants and the VM's program to one shared library."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.support import cc as toolchain
from tvm_ffi import libinfo

from tvm_qplugin.kernel_compiler import triple
from tvm_qplugin.static_constants import ALIGNMENT, Constant, Constants

_CONSTANTS = "constants.bin"
_HEAD = """\
#include <tvm/ffi/c_api.h>

#define HIDDEN __attribute__((visibility("hidden")))

typedef int Kernel(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
"""

_DATA = """
asm(".section .rodata\\n"
    ".balign {alignment}\\n"
    "qplugin_constants:\\n"
    ".incbin \\"{file}\\"\\n"
    ".previous");
extern "C" HIDDEN char qplugin_constants[];

static int64_t numbers[] = {{{numbers}}};
static DLTensor constants[] = {{
{rows}}};

// An integer argument is the number of a constant.
template <int32_t count>
static int call(Kernel* kernel, void* self, const TVMFFIAny* args, TVMFFIAny* result) {{
  TVMFFIAny given[count];
  for (int32_t i = 0; i < count; ++i) {{
    given[i] = args[i];
    if (args[i].type_index == kTVMFFIInt) {{
      given[i].type_index = kTVMFFIDLTensorPtr;
      given[i].v_ptr = constants + args[i].v_int64;
    }}
  }}
  return kernel(self, given, count, result);
}}
"""

_KERNEL = """
extern "C" HIDDEN Kernel __tvm_ffi_{symbol};
extern "C" TVM_FFI_DLL_EXPORT Kernel call_{index} asm("__tvm_ffi_{name}");
int call_{index}(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {{
  return {call};
}}
"""


@dataclass(frozen=True)
class Linkable:
    """A compiled model, to be linked as ``relax.VMExecutable`` is.

    ``program``: Relax functions for the VM, with kernels declared as external; ``objects``: object files by
    symbol; ``kernels`` gives the symbol by the name that the VM calls.
    """

    program: IRModule
    target: tvm.target.Target
    objects: Mapping[str, bytes]
    kernels: Mapping[str, str]
    constants: Constants

    def export_library(self, file_name: str, *, cc: str, options: Sequence[str]) -> None:
        """Link with the C++ compiler ``cc``; RuntimeError when it fails."""
        with tempfile.TemporaryDirectory(prefix="tvm-qplugin-") as name:
            folder = Path(name)
            objects = [folder / f"{symbol}.o" for symbol in self.objects]
            for path, data in zip(objects, self.objects.values(), strict=True):
                path.write_bytes(data)
            with (folder / _CONSTANTS).open("wb") as file:
                self.constants.write(file)
            source = folder / "kernels.cc"
            source.write_text("".join(self._source()), encoding="utf-8")
            self._executable(objects[0]).export_library(
                str(Path(file_name).absolute()),
                fcompile=_Linker(cc, tuple(options), folder, triple(self.target)),
                addons=[str(path) for path in (*objects[1:], source)],
                workspace_dir=name,
            )

    def _executable(self, first: Path) -> relax.VMExecutable:
        """The VM's program; that it imports one of the objects makes it look for kernels in the library."""
        library = tvm.runtime.load_static_library(str(first), list(self.kernels))
        others = (self.program.attrs or {}).get("external_mods", [])
        program = self.program.with_attr("external_mods", [library, *others])
        with self.target, tvm.transform.PassContext(2):
            return relax.build(program, self.target, relax_pipeline=None)

    def _source(self) -> Iterator[str]:
        """C++: the table of constants and, for each name, a function that calls the kernel."""
        yield _HEAD
        if items := self.constants.items:
            sizes = [(*item.array.shape, *item.strides) for item in items]
            starts = accumulate((len(numbers) for numbers in sizes), initial=0)
            yield _DATA.format(
                alignment=ALIGNMENT,
                file=_CONSTANTS,
                numbers=", ".join(str(number) for numbers in sizes for number in numbers) or "0",
                rows="".join(_row(item, start) for item, start in zip(items, starts, strict=False)),
            )
        for index, (name, symbol) in enumerate(self.kernels.items()):
            count = self.constants.users.get(name)
            call = f"__tvm_ffi_{symbol}(self, args, count, result)"
            if count is not None:
                call = f"call<{count}>(__tvm_ffi_{symbol}, self, args, result)"
            yield _KERNEL.format(symbol=symbol, index=index, name=name, call=call)


def _row(item: Constant, start: int) -> str:
    """One DLTensor: data, device, rank, type, shape, strides, offset."""
    code, bits, lanes = item.dtype
    rank = item.array.ndim
    return (
        f"  {{qplugin_constants + {item.offset}, {{kDLCPU, 0}}, {rank}, {{{code}, {bits}, {lanes}}}, "
        f"numbers + {start}, numbers + {start + rank}, 0}},\n"
    )


@dataclass(frozen=True)
class _Linker:
    """TVM's caller of compilers; it tells the platform, which TVM would ask a module of LLVM for."""

    compiler: str
    options: tuple[str, ...]
    folder: Path
    platform: str

    def get_target_triple(self) -> str:
        """For the object file that TVM packs the VM's program into."""
        return self.platform

    def __call__(self, output: str, files: list[str], **_: Any) -> None:
        """Compile the C++ source and link."""
        headers = {libinfo.find_include_path(), libinfo.find_dlpack_include_path()}
        options = [*self.options, *(f"-I{path}" for path in sorted(headers))]
        toolchain.create_shared(output, files, options, self.compiler, cwd=str(self.folder))
