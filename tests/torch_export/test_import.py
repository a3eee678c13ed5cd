"""Programs of torch.export against torch: whole networks, names, files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvm_qplugin import torch_program
from tvm_qplugin.core.attrs import STEPS
from tvm_qplugin.core.errors import ModelError
from tvm_qplugin.frontend import check_canonical, load
from tvm_qplugin.passes.canonicalize import IO
from tvm_qplugin.passes.rebuild import straight_bindings


def names(module: Any) -> set[str]:
    return {str(var.name) for var, _ in straight_bindings(module["main"])}


def test_same_as_torch(case: Any) -> None:
    module = load(case.program)
    check_canonical(module)
    assert len(module["main"].params) == len(case.example)
    case.check(module)


def test_a_file_is_the_same_as_the_program(case_of: Any, tmp_path: Path) -> None:
    case = case_of.named("encoder")
    torch.export.save(case.program, tmp_path / "model.pt2")
    module = load(tmp_path / "model.pt2")
    case.check(module)
    assert names(module) == names(load(case.program))


def test_names_are_paths_of_modules(case_of: Any) -> None:
    found = names(load(case_of.named("resnet").program))
    layers = {"conv1", "layer1_0_conv1", "layer1_1_conv2", "layer1_0_add", "layer1_0_relu", "pool", "fc"}
    assert layers <= found
    assert not any("bn" in name for name in found)


def test_gates_have_names_and_know_their_counterparts(case_of: Any) -> None:
    module = load(case_of.named("lstm").program)
    steps = json.loads(str(module["main"].attrs[STEPS]))
    assert {"rnn_inputs", "rnn_forget_gate_t1", "rnn_hidden_t4"} <= names(module)
    assert steps["rnn_hidden_t0"] == steps["rnn_hidden_t4"] == "rnn_hidden"
    assert "rnn_l1_hidden_t2" in names(load(case_of.named("state").program))


def test_inputs_and_outputs_keep_their_names(case_of: Any) -> None:
    interface = json.loads(str(load(case_of.named("state").program)["main"].attrs[IO]))
    assert [entry["name"] for entry in interface["inputs"]] == ["x", "h", "c"]
    assert [entry["name"] for entry in interface["outputs"]] == ["last", "hidden", "cell"]


class Of(nn.Module):
    """A function as a network."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


class Counter(nn.Module):
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x + self.count


def dynamic() -> Any:
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(nn.Linear(3, 2), (torch.zeros(4, 3),), dynamic_shapes=shapes)


def exported(model: nn.Module, *example: Tensor) -> Any:
    return torch.export.export(model, example)


def either(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


IMAGE = torch.zeros(1, 2, 5, 5)
REFUSED = {
    "module": (
        lambda: nn.Linear(3, 2),
        r"a Linear is not an exported program; expected .*torch.export.export",
    ),
    "dynamic": (dynamic, r"input input of dynamic shape \[s\d+, 3\]; export it without dynamic_shapes"),
    "float16": (
        lambda: exported(nn.Linear(3, 2).half(), torch.zeros(1, 3).half()),
        r"in float16; .*model.float",
    ),
    "bfloat16": (lambda: exported(nn.Linear(3, 2).bfloat16(), torch.zeros(1, 3).bfloat16()), "in bfloat16; "),
    "state": (lambda: exported(Counter(), torch.zeros(1)), "changes its state count in every call"),
    "training": (lambda: exported(nn.BatchNorm2d(2).train(), IMAGE), "changes its state.*eval mode"),
    "in_place": (lambda: exported(Of(lambda x: x.add_(1)), torch.zeros(2)), "writes into its input"),
    "branches": (lambda: exported(Of(either), torch.zeros(2)), "control flow over tensors"),
    "operator": (
        lambda: exported(Of(lambda x: x.unfold(0, 2, 1)), torch.zeros(4)),
        r"unfold.default \(unfold\)",
    ),
    "random": (lambda: exported(Of(lambda x: x + torch.randn(2)), torch.zeros(2)), "randn.default"),
    "constant": (
        lambda: exported(Of(lambda x: (x + 1, torch.ones(2) * 2)), torch.zeros(2)),
        "it is a constant",
    ),
    "number": (lambda: exported(Of(lambda x: (x + 1, 3)), torch.zeros(2)), "returns something that is not"),
    "unbatched": (lambda: exported(nn.Conv2d(2, 3, 1), IMAGE[0]), r"no batch dimension; export it with one"),
    "projected": (
        lambda: exported(nn.LSTM(3, 4, proj_size=2), torch.zeros(2, 1, 3)),
        r"lstm.input \(lstm\).*proj_size",
    ),
    "interpolated": (
        lambda: exported(Of(lambda x: nn.functional.interpolate(x, scale_factor=1.3)), IMAGE),
        "do not give whole sizes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        load(make())


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist; expected a file"), (b"no program", "is damaged")]
)
def test_files_that_are_none(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch": 2}, "fixed batch 1"), ({"shapes": {"x": [1]}}, "of this model are fixed")],
)
def test_shapes_are_those_of_the_program(options: Any, message: str, case_of: Any) -> None:
    with pytest.raises(ModelError, match=message):
        load(case_of.named("lstm").program, **options)


def test_without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(torch_program.importlib, "import_module", missing)
    with pytest.raises(ModelError, match=r"pip install 'tvm-qplugin\[torch\]'"):
        load(tmp_path / "model.pt2")


def test_images_may_be_given_as_nhwc(case_of: Any) -> None:
    module = load(case_of.named("resnet").program, input_layout="NHWC")
    assert [int(d) for d in module["main"].params[0].ty.shape] == [1, 16, 16, 3]
