"""The IR after every pass, as files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tvm.ir import IRModule
from tvm.ir.instrument import pass_instrument

from tvm_qplugin.console import say


@pass_instrument
class DumpIR:
    """Writes every module that a pass gives into a directory, numbered.

    TVM's own tells on standard output of a file that it could not write, which belongs to results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self.complete = folder, 0, True

    def run_after_pass(self, mod: IRModule, info: Any) -> None:
        """Write one file; the first that cannot be written is told."""
        name = re.sub(r'[<>:"/\\|?*]', "_", str(info.name))
        path = self.folder / f"{self.count:03d}_{name}.py"
        self.count += 1
        try:
            path.write_text(mod.script(), encoding="utf-8")
        except Exception as error:
            if self.complete:
                say(f"cannot write {path} ({error}): what is in {self.folder} is not complete", "yellow")
            self.complete = False
