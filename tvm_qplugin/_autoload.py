"""Entry point of the group ``tvm.backends``: runs inside ``import tvm``, so it stays light and idempotent."""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Register the ``qplugin.*`` Relax pipelines; a runtime-only TVM has none to register."""
    import tvm

    if getattr(tvm, "_RUNTIME_ONLY", False):
        return
    from tvm.relax import pipeline

    for name, factory in (("qplugin.int8", _int8), ("qplugin.float", _float)):
        if name not in pipeline.PIPELINE_MAP:
            pipeline.register_pipeline(name)(factory)


def _int8(**options: Any) -> Any:
    """Quantize (unless the module is quantized already) and lower to integer kernels."""
    from tvm_qplugin.pipeline import int8_pipeline

    return int8_pipeline(**options)


def _float(**options: Any) -> Any:
    """Lower a float module with the plugin's float kernels."""
    from tvm_qplugin.pipeline import float_pipeline

    return float_pipeline(**options)
