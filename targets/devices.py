"""The tables of devices that run ``.tflite`` files, by name."""

from __future__ import annotations

from tvm_qplugin.core.device_rules import DeviceRules
from tvm_qplugin.core.errors import TargetError
from tvm_qplugin.core.registry import Registry

DEVICES: Registry[DeviceRules] = Registry(
    "device",
    {
        "edgetpu": "tvm_qplugin.targets.edgetpu:EDGETPU",
        "ethos-u": "tvm_qplugin.targets.ethosu:ETHOS_U",
        "litert-gpu": "tvm_qplugin.targets.litert:GPU",
        "litert-hexagon": "tvm_qplugin.targets.litert:HEXAGON",
    },
)


def find_device(name: str) -> DeviceRules:
    """A table by name; TargetError lists what is known."""
    if name not in DEVICES:
        raise TargetError(f"device {name!r} is unknown; use one of {', '.join(sorted(DEVICES))}")
    return DEVICES[name]
