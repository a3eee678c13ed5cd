"""What commands tell: one JSON object for scripts, and the same as tables for people."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tvm_qplugin.core.manifest import Manifest, OperatorInfo, TensorInfo
from tvm_qplugin.core.qparams import QuantParams

WEIGHTED = ("conv2d", "dense")


@dataclass(frozen=True)
class Report:
    """The result of a command: ``data`` is its JSON form, ``parts`` what a terminal shows.

    ``failure``: why the command ends with exit code 1 after it has shown them; "" if it does not.
    """

    data: dict[str, Any]
    parts: tuple[RenderableType, ...]
    failure: str = ""


def line(text: str, style: str = "") -> Text:
    """Plain text: what looks like markup in it is left alone."""
    return Text(text, style)


def size(count: int) -> str:
    """Bytes as people read them, in powers of 1,000."""
    if count < 1_000:
        return f"{count} B"
    unit, name = (1e3, "KB") if count < 1_000_000 else (1e6, "MB")
    return f"{count / unit:.1f} {name}"


def amount(count: int) -> str:
    """A large number in thousands or millions; a dash for none."""
    if not count:
        return "-"
    if count < 1_000_000:
        return f"{count / 1e3:.1f} k" if count >= 1_000 else str(count)
    return f"{count / 1e6:.1f} M"


def percent(share: float | None) -> str:
    """A share of 1 in percent; a dash for None."""
    return "-" if share is None else f"{100 * share:.2f} %"


def shape(extents: Sequence[int]) -> str:
    """``1x3x224x224``."""
    return "x".join(map(str, extents)) or "scalar"


def grid(params: dict[str, Any] | None) -> str:
    """Scale and zero point (JSON form) in short; a range of scales where they are per channel."""
    if params is None:
        return "-"
    values = QuantParams.from_json(params)
    low, high = float(values.scale.min()), float(values.scale.max())
    scale = f"{low:.4g}" if low == high else f"{low:.3g}..{high:.3g}"
    return f"{scale}, {int(values.zero_point.min())}"


def numbers(params: dict[str, Any] | None) -> dict[str, Any] | None:
    """The JSON form of parameters with plain lists, for programs that do not know how we pack them."""
    if params is None:
        return None
    values = QuantParams.from_json(params)
    return {**params, "scale": values.scale.tolist(), "zero_point": values.zero_point.tolist()}


def artifact_bytes(manifest: Manifest) -> int:
    """What a saved artifact takes: its files and the manifest."""
    return sum(manifest.sizes.get(name, 0) for name in manifest.sha256) + len(manifest.dumps().encode())


def totals(operators: Sequence[OperatorInfo]) -> dict[str, int]:
    """Counts, multiply-adds and weight bytes over all operators."""
    integer = [op for op in operators if op.integer]
    return {
        "operators": len(operators),
        "integer": len(integer),
        "float": len(operators) - len(integer),
        "weight_bytes": sum(op.weight_bytes for op in operators),
        "macs": sum(op.macs for op in operators),
        "integer_macs": sum(op.macs for op in integer),
    }


def islands(operators: Sequence[OperatorInfo]) -> list[dict[str, Any]]:
    """The operators that stay in float, each with its reason."""
    return [{"name": op.name, "op": op.op, "reason": op.reason} for op in operators if not op.integer]


def operators_json(manifest: Manifest, schemes: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Every operator with the parameters of its output and of its weight (None: not quantized).

    ``schemes``: those that are known otherwise, by name.
    """
    return [
        {
            **asdict(op),
            "scheme": (schemes or {}).get(op.name) or scheme_of(op, manifest.tensors.get(op.name)),
            "shape": list(op.shape),
            "qparams": numbers(manifest.tensors.get(op.name)),
            "weight_qparams": numbers(manifest.tensors.get(f"{op.name}_weight")),
        }
        for op in manifest.operators
    ]


def operators_table(manifest: Manifest, schemes: Mapping[str, str] | None = None) -> Table:
    """One row for each operator; ``schemes``: those that are known otherwise, by name."""
    table = Table(title="operators", title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", overflow="fold", ratio=3)
    table.add_column("operator", overflow="fold")
    table.add_column("runs in")
    table.add_column("kernel", overflow="fold")
    table.add_column("output", overflow="fold")
    table.add_column("scale, zero point")
    table.add_column("weights", justify="right")
    table.add_column("mult-adds", justify="right")
    for op in manifest.operators:
        params = manifest.tensors.get(op.name)
        found = (schemes or {}).get(op.name) or scheme_of(op, params)
        table.add_row(*_operator_cells(op, params, found))
    _drop_empty_columns(table)
    return table


def _operator_cells(op: OperatorInfo, params: dict[str, Any] | None, scheme: str) -> list[Text]:
    return [
        Text(op.name),
        Text(op.op),
        Text(scheme, _COLOURS.get(scheme, "green")),
        Text(op.kernel or "-"),
        Text(shape(op.shape)),
        Text(grid(params)),
        Text(size(op.weight_bytes) if op.weight_bytes else "-"),
        Text(amount(op.macs)),
    ]


_COLOURS = {"float": "yellow", "fp16": "yellow", "int16x8": "cyan"}


def scheme_of(op: OperatorInfo, params: dict[str, Any] | None) -> str:
    """``int8``, ``int16x8``, ``dynamic``, ``fp16``, ``float``, as far as the manifest tells.

    ``integer`` where the parameters of the output are not known. In a compiled model, of what is computed in
    float only layers of ``fp16`` have weight bytes.
    """
    if not op.integer:
        return "fp16" if op.kernel and op.weight_bytes else "float"
    if op.kernel in ("dconv2d", "ddense"):
        return "dynamic"
    return {"int16": "int16x8", "": "integer"}.get(str((params or {}).get("dtype", "")), "int8")


def schemes(manifest: Manifest, known: Mapping[str, str] | None = None) -> dict[str, int]:
    """How many operators run in which scheme; conversions between them are not counted.

    ``known``: schemes that are known otherwise, by name.
    """
    found: dict[str, int] = {}
    for op in manifest.operators:
        if op.op not in ("quantize", "dequantize", "requantize"):
            scheme = (known or {}).get(op.name) or scheme_of(op, manifest.tensors.get(op.name))
            found[scheme] = found.get(scheme, 0) + 1
    return dict(sorted(found.items()))


def _drop_empty_columns(table: Table) -> None:
    """Leave out the columns in which nothing is known."""
    filled = [column for column in table.columns if any(str(cell) != "-" for cell in column.cells)]
    table.columns = filled


def islands_table(operators: Sequence[OperatorInfo]) -> Table:
    """The float operators, one row for each reason."""
    table = Table(title="stays in float", title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("operator")
    table.add_column("why", overflow="fold")
    table.add_column("tensors", overflow="fold")
    groups: dict[tuple[str, str], list[str]] = {}
    for op in operators:
        if not op.integer:
            groups.setdefault((op.op, op.reason or ""), []).append(op.name)
    for (kind, reason), names in groups.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        table.add_row(kind, Text(reason), Text(", ".join(names[:3]) + more))
    return table


def tensors_table(manifest: Manifest) -> Table:
    """Inputs and outputs."""
    table = Table(
        title="inputs and outputs", title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for name in ("", "name", "shape", "dtype", "scale, zero point"):
        table.add_column(name, overflow="fold")
    rows: list[tuple[str, TensorInfo]] = [("input", info) for info in manifest.inputs]
    rows += [("output", info) for info in manifest.outputs]
    for side, info in rows:
        table.add_row(side, Text(info.name), shape(info.shape), info.dtype, grid(info.qparams))
    return table


def summary(operators: Sequence[OperatorInfo]) -> Text:
    """One sentence: how much of the model runs on integers."""
    sums = totals(operators)
    if not sums["integer"]:
        return Text(f"{sums['operators']} operators, all in float")
    share = (
        f", {100 * sums['integer_macs'] / sums['macs']:.1f} % of {amount(sums['macs'])} multiply-adds"
        if sums["macs"] and all(op.macs for op in operators if op.op in WEIGHTED)
        else ""
    )
    return Text(f"{sums['integer']} of {sums['operators']} operators run on integers{share}")


def stored(operators: Sequence[OperatorInfo], names: Collection[str]) -> Text:
    """One sentence about the schemes that only store weights in fewer bytes; ``names``: layers that do."""
    layers = [op for op in operators if op.op in WEIGHTED]
    small = [op for op in layers if op.name in names]
    size_of_all = size(sum(op.weight_bytes for op in operators))
    kept = "".join(f"\n  {op.name}: {op.reason}" for op in layers if op not in small)
    more = f"; in float32 stay{kept}" if kept else ""
    return Text(f"{len(small)} of {len(layers)} layers store their weights small, {size_of_all}{more}")


def columns_table(title: str, rows: Sequence[dict[str, str]], left: int = 1) -> Table:
    """A table from rows with equal keys; the first ``left`` columns are text, the others numbers."""
    table = Table(title=Text(title), title_justify="left", header_style="bold")
    for index, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if index < left else "right", no_wrap=index < left)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.values()))
    return table


def plain(value: Any) -> Any:
    """JSON has no infinities and no NaN: they become None, tuples become lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def attempts(search: dict[str, Any]) -> list[RenderableType]:
    """What ``accuracy="best"`` tried: a table, and what its figures are taken from."""
    table = Table("step", "what it does", "agreement", "SQNR, dB", "", "s", box=None, pad_edge=False)
    for item in search["attempts"]:
        sqnr = "-" if item["sqnr_db"] is None else f"{item['sqnr_db']:.2f}"
        verdict = "kept" if item["kept"] else item["error"] or "not kept"
        figures = (percent(item["agreement"]), sqnr, verdict, f"{item['seconds']:.1f}")
        table.add_row(item["step"], item["about"], *figures, style="" if item["kept"] else "dim")
    ended = ", stopped before the end" if search["stopped"] else ""
    return [table, line(f"on {search['held_back']} samples held back from calibration{ended}")]
