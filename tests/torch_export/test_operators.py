"""Operators of torch that have rules of our own or are easily wrong, beside torch: many in one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_qplugin.frontend import load
from tvm_qplugin.passes.rebuild import op_name, straight_bindings, value_of

MASK = torch.tril(torch.ones(6, 6)).bool()
EIGHT, FOUR = torch.rand(8, 4, 3, 3), torch.rand(4)
FUNCTIONS: dict[str, Callable[[Tensor], tuple[Any, ...]]] = {
    "select": lambda z: (z[:, -1], z[:, :, -2, -1], z[-1, -1], z[..., -3], z.select(2, 1), z.unbind(1)[-1]),
    "slices": lambda z: (z[:, -3:-1], z[:, -1:], z[:, :, 1::2, :-1], z[:, [1, -1]], z.narrow(-1, -2, 2)),
    "parts": lambda z: (
        z.chunk(3, -1)[-1],
        *z.split([1, 3], 1),
        z.tensor_split(2, -1)[1],
        z.unflatten(1, (2, 2)),
    ),
    "moved": lambda z: (
        *(torch.roll(z, (1, -1), (2, 3)), z.flip(2), z.transpose(1, -1), z.movedim(1, -1), z.view(2, -1)),
        *(torch.stack([z, z], 1), z.expand(2, -1, -1, -1), z.repeat(1, 2, 1, 1), F.pixel_shuffle(z, 2)),
    ),
    "alpha": lambda z: (
        *(
            torch.add(z, z, alpha=2),
            torch.sub(z, z * z, alpha=0.5),
            torch.rsub(z, z * 2, alpha=2),
            1 - z,
            z + 1,
        ),
        torch.addmm(z[0, 0, 0], z[0, 1], torch.eye(5) * 2, alpha=0.5, beta=2),
    ),
    "reductions": lambda z: (
        *(z.std(), z.std((2, 3)), z.var(1, unbiased=False), z.var((1,), keepdim=True), z.prod(1), z.mean()),
        *(*z.min(1), *z.max(2), z.amin((2, 3)), z.amax(1, keepdim=True), z.argmax(1), z.sum((-1, 1))),
        *(z.any(1), (z > 0).any((1, 2)), (z > 5).any(), (z > -9).all(1)),
    ),
    "norms": lambda z: (
        *(F.layer_norm(z, (5,)), F.layer_norm(z, z.shape[-2:]), F.layer_norm(z, (5,), FOUR.repeat(2)[:5])),
        *(F.group_norm(z, 2), F.group_norm(z, 4, FOUR, FOUR), F.instance_norm(z), F.rms_norm(z, (5,))),
        *(
            F.batch_norm(z, FOUR, FOUR + 1),
            F.batch_norm(z, FOUR, FOUR + 1, FOUR, FOUR),
            F.normalize(z, dim=1),
        ),
    ),
    "pools": lambda z: (
        *(F.max_pool2d(z, 3, 2, 1, ceil_mode=True), F.max_pool2d(z, 2, 1, dilation=2), F.max_pool1d(z[0], 2)),
        *(F.avg_pool2d(z, 3, 2, 1, ceil_mode=True), F.avg_pool2d(z, 3, 2, 1), F.avg_pool1d(z[0], 2, 1, 1)),
        *(F.avg_pool2d(z, 3, 2, 1, ceil_mode=True, count_include_pad=False), F.avg_pool2d(z, 2)),
        *(F.adaptive_avg_pool2d(z, (3, 1)), F.adaptive_max_pool2d(z, 1), F.adaptive_max_pool2d(z, (3, 5))),
    ),
    "windows": lambda z: (
        *(F.conv2d(z, EIGHT, padding=1, stride=2), F.conv2d(z, EIGHT[:, :1], groups=4, padding="same")),
        *(F.conv1d(z[0], torch.ones(3, 6, 2), dilation=2), F.conv_transpose2d(z, EIGHT[:4], stride=2)),
        *(F.pad(z, (1, 0, 2, 0)), F.pad(z, (-1, 0)), F.pad(z, (1, 1), value=2.0)),
        F.pad(z, (1, 1, 1, 1), mode="reflect"),
    ),
    "resized": lambda z: (
        *(F.interpolate(z, size=(3, 3)), F.interpolate(z, size=(7, 12)), F.interpolate(z, scale_factor=3)),
        *(F.interpolate(z, size=(9, 4), mode="bilinear"), F.interpolate(z, size=(8, 7), mode="bicubic")),
        F.interpolate(z, size=(11, 13), mode="bilinear", align_corners=True),
    ),
    "attention": lambda z: (
        *(F.scaled_dot_product_attention(z, z, z), F.scaled_dot_product_attention(z, z, z, scale=0.2)),
        *(F.scaled_dot_product_attention(z, z, z, attn_mask=MASK), F.linear(z, torch.ones(3, 5))),
        F.scaled_dot_product_attention(z, z, z, attn_mask=MASK.float()),
    ),
    "grouped attention": lambda z: (
        F.scaled_dot_product_attention(z.repeat(1, 2, 1, 1) * 2, z, z, enable_gqa=True),
        F.scaled_dot_product_attention(z, z[:, :2], z[:, 2:], is_causal=True, enable_gqa=True),
        F.scaled_dot_product_attention(z, z[:, :1], z[:, 1:2], MASK, enable_gqa=True),
    ),
    "gathered": lambda z: (
        *(z[:, :, [0, -1], [1, 2]], z[:, torch.tril_indices(4, 4)[0], torch.tril_indices(4, 4)[1]]),
        *(z[:, :, z.argmax(2)[0] - 6, 0], z[:, z.argmax(1)[0], z.argmin(2)[0, :1] - 6]),
        *(F.embedding(z.argmax(1), EIGHT[:, :, 0, 0]), z.argmax(1)[:, None, 1:3, [0, 2]]),
    ),
    "bags": lambda z: (
        *(F.embedding_bag(z.argmax(1)[0], EIGHT[:, :, 0, 0], mode=mode) for mode in ("sum", "mean", "max")),
        F.embedding_bag(z.argmax(1).flatten(), EIGHT[:, :, 0, 0], torch.arange(0, 30, 10)),
    ),
    "functions": lambda z: (
        *(
            F.relu6(z * 9),
            F.hardtanh(z),
            F.leaky_relu(z),
            F.elu(z),
            F.softplus(z),
            F.mish(z),
            F.prelu(z, FOUR),
        ),
        *(F.logsigmoid(z), F.log_softmax(z, 1), z.clamp(min=-0.5), z.clamp(max=0.3), z % 0.5, z // 1, 1 / z),
        *(
            torch.where(z > 0, z, -z),
            z.masked_fill(z > 0, -1.0),
            F.glu(z, 1),
            torch.div(z, 0.3, rounding_mode="trunc"),
        ),
    ),
    "changed in place": lambda z: (z.clone().add_(1), z.clone().mul_(2).relu_(), F.relu(z * 2, inplace=True)),
    "made of constants": lambda z: (z + torch.arange(5.0), z * torch.linspace(0, 1, 5), z.new_ones(1) * z),
    "masks": lambda z: (
        *(z.masked_fill(z > 0, float("-inf")).softmax(-1), z.masked_fill(z[:, :1] > 0, 2.0)),
        torch.zeros_like(z > 0, dtype=torch.float32).masked_fill(z > 0, float("-inf")),
        z.argmax(1).masked_fill(z[:, 0] > 0, 7),
    ),
    "made of shapes": lambda z: (
        torch.zeros_like(z > 0, dtype=torch.float32) + z,
        torch.full_like(z, 0.5, dtype=torch.float64).float() * z,
        torch.ones_like(z.argmax(1)).float() - z,
        z.new_full((2, 1, 1, 1), 3.0) + z,
    ),
}


class Of(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[[Tensor], tuple[Any, ...]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> tuple[Any, ...]:
        return self.function(z)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_as_torch(name: str, case_of: Any) -> None:
    torch.manual_seed(3)
    case = case_of(Of(FUNCTIONS[name]), (torch.randn(1, 4, 6, 5),))
    case.check(load(case.program))


def test_an_index_from_the_end_is_counted_from_the_front() -> None:
    """TVM's own conversion reads element -1, in front of the tensor."""
    program = torch.export.export(Of(lambda z: (z[:, -1],)), (torch.zeros(2, 5, 3),))
    (take,) = (v for _, v in straight_bindings(load(program)["main"]) if op_name(v) == "take")
    np.testing.assert_array_equal(value_of(take.args[1]), 4)
