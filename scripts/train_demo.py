"""Train the embedded demo: a small CNN on scikit-learn's handwritten digits, exported to ONNX.

Run in an environment with the extra ``train``:  python scripts/train_demo.py [--out DIR].
The same machine and thread count give the same files.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

DEMO = Path(__file__).resolve().parent.parent / "tvm_qplugin" / "demo"
SEED, TEST, CALIBRATION, EPOCHS, BATCH = 7, 450, 200, 30, 64


def conv_bn(
    inputs: int, outputs: int, kernel: int = 3, groups: int = 1, act: type[nn.Module] | None = None
) -> nn.Module:
    """Convolution of stride 1 that keeps the picture's size, batch norm, activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_bn(channels, channels, act=nn.ReLU)
        self.second = conv_bn(channels, channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.second(self.first(x)))


class DigitsNet(nn.Module):
    """Input [N, 1, 8, 8] in [0, 1], output [N, 10] logits; 86,000 weights, 5 million MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 32, act=nn.ReLU6)
        self.depthwise = conv_bn(32, 32, groups=32, act=nn.ReLU6)
        self.pointwise = conv_bn(32, 64, kernel=1, act=nn.ReLU)
        self.residual = Residual(64)
        self.pool = nn.MaxPool2d(2)
        self.depthwise2 = conv_bn(64, 64, groups=64, act=nn.ReLU6)
        self.pointwise2 = conv_bn(64, 128, kernel=1, act=nn.ReLU)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.dense = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise(self.depthwise(self.stem(x)))
        x = self.pool(self.residual(x))
        x = self.pointwise2(self.depthwise2(x))
        return self.dense(torch.flatten(self.mean(x), 1))


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Stratified and disjoint: x_train, x_test [N, 1, 8, 8] float32 in [0, 1], y_train, y_test."""
    digits = load_digits()
    x = (digits.images / 16.0).astype("float32")[:, None]
    split = train_test_split(x, digits.target, test_size=TEST, stratify=digits.target, random_state=SEED)
    x_train, x_test, y_train, y_test = split
    assert not {a.tobytes() for a in x_train} & {a.tobytes() for a in x_test}, "the split overlaps"
    return x_train, x_test, y_train, y_test


def shifted(x: Tensor) -> Tensor:
    """Each batch moved by up to one pixel."""
    return torch.roll(x, (random.randint(-1, 1), random.randint(-1, 1)), dims=(2, 3))


def train(x: np.ndarray, y: np.ndarray) -> nn.Module:
    model, loss = DigitsNet(), nn.CrossEntropyLoss(label_smoothing=0.05)
    data = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    batches = torch.utils.data.DataLoader(data, BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=EPOCHS * len(batches))
    for epoch in range(EPOCHS):
        total = 0.0
        for images, labels in batches:
            optimizer.zero_grad()
            value = loss(model(shifted(images)), labels)
            value.backward()
            optimizer.step()
            schedule.step()
            total += value.item()
        print(f"epoch {epoch + 1:2d}/{EPOCHS}  loss {total / len(batches):.4f}", flush=True)
    return model.eval()


def export(model: nn.Module, path: Path) -> None:
    """ONNX, opset 17, batch 1; BatchNormalization nodes are kept (training mode "preserve")."""
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, 8, 8),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        opset_version=17,
        dynamo=False,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    exported = onnx.load(path)
    exported.producer_version = ""
    exported.doc_string = "Digits 0 to 9 of 8x8 pixels in [0, 1]; made by scripts/train_demo.py"
    onnx.checker.check_model(exported, full_check=True)
    onnx.save(exported, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEMO, help="where the files go (default: the package)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    random.seed(SEED)
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    x_train, x_test, y_train, y_test = load()
    model = train(x_train, y_train)
    with torch.no_grad():
        accuracy = float((model(torch.from_numpy(x_test)).argmax(1).numpy() == y_test).mean())
    print(f"test accuracy {100 * accuracy:.2f} % of {TEST}")
    if accuracy < 0.98:
        raise SystemExit("below 98 %: nothing written")
    export(model, out / "digits.onnx")
    np.savez_compressed(out / "calibration.npz", x=x_train[:CALIBRATION])
    np.savez_compressed(out / "test.npz", x=x_test, y=y_test.astype("int64"))
    for name in ("digits.onnx", "calibration.npz", "test.npz"):
        print(f"{out / name}: {(out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
