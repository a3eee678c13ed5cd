"""A third-party package adds a target, an observer and a recipe by entry points alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent / "example_extension"
SCRIPT = """
import json
import numpy as np
import tvm_qplugin as qp
from tvm_qplugin import demo

samples = demo.calibration()[:8]
module = qp.quantize(demo.model_path(), recipe="gentle", target="example-cpu", calibration=samples)
artifact = qp.build(module, target="example-cpu")
x, _ = demo.evaluation()
equal = bool((artifact.run(x[:1])[0] == qp.simulate(module, x[:1])[0]).all())
manifest = artifact.manifest
print(json.dumps([manifest.target["profile"], manifest.recipe["name"], manifest.recipe["observer"], equal]))
"""


def installed(folder: Path) -> None:
    """The package and its entry points in ``folder``, as an installer would leave them."""
    (folder / "qplugin_example.py").write_text((PACKAGE / "qplugin_example.py").read_text())
    info = folder / "qplugin_example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: qplugin-example\nVersion: 1.0\n")
    lines = (PACKAGE / "pyproject.toml").read_text().splitlines()
    entries = []
    for line in lines:
        if line.startswith("[project.entry-points."):
            entries.append("[" + line.split('"')[1] + "]")
        elif "qplugin_example:" in line:
            entries.append(line.replace('"', ""))
    (info / "entry_points.txt").write_text("\n".join(entries) + "\n")


def test_entry_points_are_found(tmp_path):
    installed(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["example-cpu", "gentle", "trimmed", True]
