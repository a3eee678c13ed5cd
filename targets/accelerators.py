"""Devices that run ``.tflite`` files: how a model is made ready for them. Their tables: ``devices.py``."""

from __future__ import annotations

from tvm_qplugin.core.profile import TargetProfile

_PASSES = "tvm_qplugin.passes."
_FIX_BATCH = f"{_PASSES}fix_batch:FixBatch"
_EQUAL_DILATION = f"{_PASSES}equal_dilation:EqualDilation"

EDGETPU = TargetProfile(
    "edgetpu",
    "Coral's Edge TPU",
    {},
    artifact="tflite",
    recipe="edgetpu",
    io="int8",
    per_channel_dense=False,
    float_passes=(
        _FIX_BATCH,
        _EQUAL_DILATION,
        f"{_PASSES}unit_strides:UnitStrides",
        f"{_PASSES}leaky_to_prelu:LeakyToPRelu",
        f"{_PASSES}split_mean:SplitMean",
        f"{_PASSES}dense_on_rows:DenseOnRows",
    ),
    quantized_passes=(
        _FIX_BATCH,
        _EQUAL_DILATION,
        f"{_PASSES}rewrite_hard_swish:RewriteHardSwish",
    ),
)
ETHOS_U = TargetProfile(
    "ethos-u",
    "Arm Ethos-U55 and U65, whose compiler Vela takes .tflite files",
    {},
    artifact="tflite",
    io="int8",
    float_passes=(_FIX_BATCH,),
    quantized_passes=(_FIX_BATCH,),
)
