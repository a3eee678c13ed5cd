"""Programs that were quantized in torch already: the operators that PT2E leaves become a QDQ module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn

from tvm_qplugin.api import quantize
from tvm_qplugin.builder import build
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.frontend import load
from tvm_qplugin.pipeline import is_quantized
from tvm_qplugin.simulator import simulate

Q = torch.ops.quantized_decomposed
FULL = (-128, 127, torch.int8)


def near(x: Tensor, scale: float, zero: int, limits: Any = FULL) -> Tensor:
    return Q.dequantize_per_tensor(Q.quantize_per_tensor(x, scale, zero, *limits), scale, zero, *limits)


class Quantized(nn.Module):
    """A convolution and a dense layer between fake quantizations, the weights as integers or in float."""

    def __init__(self, stored: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.stored = stored
        for name, layer in (("conv", self.conv), ("fc", self.fc)):
            weight = layer.weight.detach()
            scales = weight.abs().flatten(1).amax(1) / 127
            self.register_buffer(f"{name}_scales", scales)
            self.register_buffer(f"{name}_zeros", torch.zeros(len(scales), dtype=torch.int64))
            codes = torch.round(weight / scales.view(-1, *[1] * (weight.ndim - 1))).to(torch.int8)
            self.register_buffer(f"{name}_codes", codes)

    def weight(self, name: str) -> Tensor:
        scales, zeros = getattr(self, f"{name}_scales"), getattr(self, f"{name}_zeros")
        limits = (0, -127, 127, torch.int8)
        if self.stored:
            codes = getattr(self, f"{name}_codes")
        else:
            codes = Q.quantize_per_channel(getattr(self, name).weight, scales, zeros, *limits)
        return Q.dequantize_per_channel(codes, scales, zeros, *limits)

    def forward(self, x: Tensor) -> Tensor:
        x = near(x, 0.03, 4)
        x = nn.functional.conv2d(x, self.weight("conv"), self.conv.bias)
        x = near(torch.relu(x), 0.01, -128)
        x = near(x.mean((2, 3)), 0.008, -128)
        return near(nn.functional.linear(x, self.weight("fc"), self.fc.bias), 0.006, 3)


@pytest.mark.parametrize("stored", [True, False])
def test_a_quantized_program(stored: bool) -> None:
    model = Quantized(stored).eval()
    program = torch.export.export(model, (torch.zeros(1, 3, 6, 6),))
    module = load(program)
    assert is_quantized(module)
    artifact = build(quantize(program))
    assert all(op.integer for op in artifact.manifest.operators)
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.randn(1, 3, 6, 6)
        (found,) = artifact.run(x.numpy())
        np.testing.assert_array_equal(found, simulate(module, x.numpy())[0])
        with torch.no_grad():
            steps = np.rint((found - model(x).numpy()) / 0.006)
        assert np.abs(steps).max() <= 1


def test_a_file_of_a_quantized_program(tmp_path: Path) -> None:
    program = torch.export.export(Quantized(True).eval(), (torch.zeros(1, 3, 6, 6),))
    torch.export.save(program, tmp_path / "model.pt2")
    assert is_quantized(load(tmp_path / "model.pt2"))


class Narrow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return near(x, 0.1, 0, (-127, 127, torch.int8))


class Dynamic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        scale, zero = Q.choose_qparams(x, *FULL[:2], 1e-5, torch.int8)
        return Q.dequantize_per_tensor.tensor(
            Q.quantize_per_tensor.tensor(x, scale, zero, *FULL), scale, zero, *FULL
        )


@pytest.mark.parametrize(
    ("model", "message"),
    [(Narrow(), r"it clips to \[-127, 127\], but all of int8"), (Dynamic(), "choose_qparams.tensor")],
)
def test_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(torch.export.export(model, (torch.zeros(1, 4),)))
