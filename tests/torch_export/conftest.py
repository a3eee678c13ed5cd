"""Small networks of torch with seeded weights, each with an example of its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_qplugin.builder import compile_function

Example = tuple[Tensor, ...]
Make = Callable[[], nn.Module]


class Residual(nn.Module):
    """What ``layer`` adds to its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(x + self.bn2(self.conv2(out)))


def inverted(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    wide = 4 * inputs
    return nn.Sequential(
        *(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
        *(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
        *(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
    )


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Block(), Block())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(F.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.pool(x), 1))


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, padding="same", dilation=2, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.tall = nn.Conv2d(8, 6, (3, 1), stride=(2, 1), padding=(1, 0))
        self.most, self.mean = nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.tall(F.relu(self.depthwise(self.grouped(x)))), 0.1)
        return self.mean(self.most(x))


class Recurrent(nn.Module):
    """The last step of a recurrent layer into a dense one."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(4, 6, batch_first=True, **options)
        self.fc = nn.Linear(12 if options.get("bidirectional") else 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[0][:, -1])


class WithState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 6, num_layers=2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> dict[str, Tensor]:
        y, (h, c) = self.rnn(x, (h, c))
        return {"last": y[-1], "hidden": h, "cell": c}


class Encoder(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, **options)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(x)[:, 0])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm = nn.Linear(16, 48), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        heads = [t.view(1, -1, 4, 4).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1)]
        return x + F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).reshape(x.shape)


class Functions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(40, 40) for _ in range(5)])

    def forward(self, x: Tensor) -> Tensor:
        functions = (F.gelu, lambda x: F.gelu(x, approximate="tanh"), F.hardswish, F.silu, F.hardsigmoid)
        for layer, function in zip(self.layers, functions, strict=True):
            x = function(layer(x))
        return x


class Words(nn.Module):
    """Token ids, and a buffer of positions."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.words, self.fc = nn.Embedding(20, 8), nn.Linear(8, 4)
        self.register_buffer("positions", torch.randn(5, 8))

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.words(ids) + self.positions).mean(1)


class Resized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv(x)
        near, odd = F.interpolate(x, scale_factor=2), F.interpolate(x, size=(5, 12))
        smooth = F.interpolate(x, scale_factor=2, mode="bilinear")
        return near, odd, smooth, F.interpolate(x, size=(11, 13), mode="bilinear", align_corners=True)


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        left, right = self.wide(x).chunk(2, 1)
        first, rest = torch.split(right, [1, 3], 1)
        y = self.narrow(torch.cat([left, first, rest], 1))
        return y.mean((2, 3)), y.amax((2, 3)), torch.max(y, 1)[0], y[:, -2:, :, 1:-1], y[..., -1]


def images(channels: int, height: int, width: int) -> Example:
    return (torch.randn(1, channels, height, width),)


def mobile_net() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
    ends = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 6))
    return nn.Sequential(stem, Residual(inverted(8, 8, 1)), inverted(8, 16, 2), ends)


def conv1d() -> nn.Module:
    layers = nn.Conv1d(3, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 4))


TWO = {"num_layers": 2, "bidirectional": True}
# name -> network, example of its inputs
NETWORKS: dict[str, tuple[Make, Callable[[], Example]]] = {
    "resnet": (ResNet, lambda: images(3, 16, 16)),
    "mobilenet": (mobile_net, lambda: images(3, 16, 16)),
    "windows": (Windows, lambda: images(4, 13, 12)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), lambda: images(4, 5, 6)),
    "conv1d": (conv1d, lambda: (torch.randn(1, 3, 12),)),
    "lstm": (lambda: Recurrent(nn.LSTM), lambda: (torch.randn(1, 5, 4),)),
    "lstm2": (lambda: Recurrent(nn.LSTM, **TWO), lambda: (torch.randn(2, 3, 4),)),
    "gru": (lambda: Recurrent(nn.GRU), lambda: (torch.randn(1, 5, 4),)),
    "gru2": (lambda: Recurrent(nn.GRU, bias=False, **TWO), lambda: (torch.randn(3, 3, 4),)),
    "rnn": (lambda: Recurrent(nn.RNN), lambda: (torch.randn(1, 5, 4),)),
    "rnn_relu": (lambda: Recurrent(nn.RNN, nonlinearity="relu"), lambda: (torch.randn(1, 5, 4),)),
    "state": (
        WithState,
        lambda: (torch.randn(3, 1, 4), torch.randn(2, 1, 6), torch.randn(2, 1, 6)),
    ),
    "encoder": (Encoder, lambda: (torch.randn(1, 6, 16),)),
    "encoder_gelu": (
        lambda: Encoder(activation="gelu", norm_first=True),
        lambda: (torch.randn(2, 6, 16),),
    ),
    "attention": (Attention, lambda: (torch.randn(1, 6, 16),)),
    "functions": (Functions, lambda: (torch.randn(2, 40),)),
    "words": (Words, lambda: (torch.randint(0, 20, (2, 5)),)),
    "resized": (Resized, lambda: images(3, 9, 8)),
    "parts": (Parts, lambda: images(4, 9, 8)),
}


class Case:
    """A network with the same weights every time, exported, and samples of its inputs."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.model, self.example = model.eval(), example
        self.program = torch.export.export(self.model, example)

    @classmethod
    def named(cls, name: str) -> Case:
        make, example = NETWORKS[name]
        torch.manual_seed(0)
        model = make()
        for key, value in model.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                value.data.uniform_(0.5, 1.5)
        return cls(model, example())

    def samples(self, count: int) -> list[list[Any]]:
        """Inputs like the example."""
        torch.manual_seed(1)
        return [
            [(torch.randn_like(x) if x.is_floating_point() else x.flip(-1)).numpy() for x in self.example]
            for _ in range(count)
        ]

    def wanted(self, sample: list[Any]) -> list[Any]:
        """What torch computes."""
        with torch.no_grad():
            out = self.model(*map(torch.from_numpy, sample))
        return [leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(out)]

    def check(self, module: Any) -> None:
        """The module computes in float what torch does."""
        sample = [x.numpy() for x in self.example]
        for wanted, found in zip(self.wanted(sample), compile_function(module)(sample), strict=True):
            assert wanted.dtype == found.dtype
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture(name="case")
def _case(request: pytest.FixtureRequest) -> Case:
    """The network that the test is parametrized with."""
    return Case.named(request.param)


@pytest.fixture(scope="session")
def case_of() -> type[Case]:
    return Case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", list(NETWORKS), indirect=True)
