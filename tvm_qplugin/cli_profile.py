"""The commands ``bench`` and ``why-slow``: how fast an artifact is, and why it is not faster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tvm_qplugin import report
from tvm_qplugin.console import bar, step
from tvm_qplugin.core.attrs import MERGED
from tvm_qplugin.core.errors import InputError
from tvm_qplugin.inspection import load_artifact
from tvm_qplugin.report import Report

if TYPE_CHECKING:
    from tvm_qplugin.artifact import Artifact
    from tvm_qplugin.layer_times import LayerTime, Profile
    from tvm_qplugin.measure import Measurement
    from tvm_qplugin.slowness import Finding

NAMED = 3
NOISE = 0.1
ArtifactPath = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="Directory that build wrote.", show_default=False)
]
Repeat = Annotated[
    int | None, typer.Option(min=1, help="Number of runs.", show_default="as many as fit in a second")
]


def bench(
    artifact: ArtifactPath,
    threads: Annotated[
        list[int] | None,
        typer.Option(help="Number of threads; repeat to compare.", show_default="1"),
    ] = None,
    repeat: Repeat = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time every kernel as well, for each number of threads.")
    ] = False,
) -> Report:
    """Time an artifact on random input: median, fastest and 90th percentile of single runs.

    Copying the input in and the output out is not counted. With --profile, each kernel's median, its
    multiply-adds a second, also as a share of what the cores can do (measured), the instruction that it
    multiplies with, and the bytes that it moves.
    Small kernels that were merged are one row; build with --separate-kernels to see their layers one by one.

    Examples:
      tvm-qplugin bench artifact --threads 1 --threads 2
      tvm-qplugin bench artifact --profile --json
    """
    counts = threads or [1]
    _check_threads(counts)
    with step("loading the artifact"):
        loaded = load_artifact(artifact)
    found = []
    with bar("timing", len(counts)) as advance:
        for count in counts:
            found.append(loaded.benchmark(count, repeat=repeat))
            advance()
    title = f"{loaded.manifest.model}  {loaded.manifest.recipe.get('name', 'float')}"
    data: dict[str, Any] = {
        "artifact": str(artifact),
        "model": loaded.manifest.model,
        "measurements": [m.to_json() for m in found],
    }
    parts: list[RenderableType] = [report.columns_table(title, _rows(found), left=0)]
    if profile:
        profiles = [_profiled(loaded, count, repeat) for count in counts]
        data["profiles"] = [p.to_json() for p in profiles]
        parts += [part for p in profiles for part in _profile_parts(p)]
    return Report(data, tuple(parts))


def why_slow(
    artifact: ArtifactPath,
    other: Annotated[
        Path | None,
        typer.Option(
            "--float",
            metavar="ARTIFACT",
            help="The same model built in float, to compare every layer with.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="Number of threads.")] = 1,
    repeat: Repeat = None,
) -> Report:
    """Say why a quantized model is not faster on this machine, and what to do about each reason.

    Layers that stay in float, conversions, instructions that are not used, threads on one core, layers that
    reach less than half of the measured peak; each with its share of the time.

    Examples:
      tvm-qplugin why-slow artifact
      tvm-qplugin why-slow artifact --float float_artifact
    """
    _check_threads([threads])
    with step("loading the artifact"):
        loaded = load_artifact(artifact)
        reference = None if other is None else _float_artifact(other)
    from tvm_qplugin.slowness import compared, findings, machine_of

    profile = _profiled(loaded, threads, repeat)
    float_profile = None if reference is None else _profiled(reference, threads, repeat)
    layers = [] if float_profile is None else compared(profile, float_profile)
    reasons = findings(profile, machine_of(loaded.manifest, threads))
    verdict = _verdict(profile, float_profile, layers)
    data = {
        "artifact": str(artifact),
        "float": None if other is None else str(other),
        "model": loaded.manifest.model,
        "verdict": verdict,
        "findings": [reason.to_json() for reason in reasons],
        "layers": layers,
        "profile": profile.to_json(),
        "float_profile": None if float_profile is None else float_profile.to_json(),
    }
    return Report(data, tuple(_answer(verdict, reasons, layers)))


def _rows(found: Sequence[Measurement]) -> list[dict[str, str]]:
    return [
        {
            "threads": str(m.threads),
            "median ms": f"{m.median_ms:.3f}",
            "min ms": f"{m.min_ms:.3f}",
            "p90 ms": f"{m.p90_ms:.3f}",
            "runs": str(m.runs),
            "peak memory": report.size(m.peak_bytes),
        }
        for m in found
    ]


def _check_threads(counts: list[int]) -> None:
    most = os.cpu_count() or 1
    for count in counts:
        if not 1 <= count <= most:
            raise InputError(f"--threads {count}: expected 1 to {most}, the cores of this machine")


def _float_artifact(path: Path) -> Artifact:
    loaded = load_artifact(path)
    integer = [op.name for op in loaded.manifest.operators if op.integer]
    if integer:
        raise InputError(
            f"--float {path}: {len(integer)} of its operators run on integers ({integer[0]}, ...); give the "
            "artifact that `tvm-qplugin build` makes of the float ONNX file"
        )
    return loaded


def _profiled(artifact: Artifact, threads: int, repeat: int | None) -> Profile:
    from tvm_qplugin.layer_times import profile

    with step("timing every kernel"):
        return profile(artifact, threads, repeat)


def _profile_parts(profile: Profile) -> list[RenderableType]:
    """The tables of a profile, by layer and by kind, and what the shares of the peak refer to."""
    count = profile.threads
    title = f"kernels in the order of execution, {count} thread{'s' if count > 1 else ''}"
    parts: list[RenderableType] = []
    if profile.layers:
        rows = [_layer_cells(layer) for layer in profile.layers]
        parts += [report.columns_table(title, rows, left=2)]
        parts += [report.columns_table("by kind", [_kind_cells(kind) for kind in profile.kinds()], left=2)]
    total = f"kernels {profile.kernels_ms:.3f} ms, whole runs {profile.whole_ms:.3f} ms (medians)"
    lines = [*_near_peak(profile), *_peak_lines(profile), *_merged_lines(profile)]
    return [*parts, report.line(total), *lines]


def _near_peak(profile: Profile) -> list[Text]:
    from tvm_qplugin.layer_times import NEAR

    share = profile.near_peak()
    if share is None:
        return []
    return [report.line(f"{share:.1%} of the multiply-adds run in kernels at {NEAR:.0%} of the peak or more")]


def _layer_cells(layer: LayerTime) -> dict[str, str]:
    return {
        "layer": _layer_name(layer),
        "operator": layer.op if layer.integer else f"{layer.op} (float)",
        "µs": f"{1e3 * layer.ms:.1f}",
        "share": _percent(layer.share),
        "GMAC/s": "-" if layer.gmacs is None else f"{layer.gmacs:.1f}",
        "of peak": _percent(layer.of_peak),
        "by": _mnemonic(layer),
        "moved": report.size(layer.bytes),
    }


def _mnemonic(layer: LayerTime) -> str:
    """A merged function can use several."""
    parts = (layer.instruction or "-").split("; ")
    names = list(dict.fromkeys(part.split(",")[0] for part in parts))
    return names[0] if len(names) == 1 else "several"


def _layer_name(layer: LayerTime) -> str:
    """A merged function is named after its first and last operator."""
    if layer.op != MERGED or len(layer.names) < 2:
        return layer.name
    return f"{layer.names[0]} ... {layer.names[-1]} ({len(layer.names)} operators)"


def _kind_cells(kind: dict[str, Any]) -> dict[str, str]:
    return {
        "operator": kind["op"],
        "in": "integers" if kind["integer"] else "float",
        "calls": str(kind["calls"]),
        "µs": f"{1e3 * kind['ms']:.1f}",
        "share": _percent(kind["share"]),
        "mult-adds": report.amount(kind["macs"]),
        "moved": report.size(kind["bytes"]),
    }


def _peak_lines(profile: Profile) -> list[Text]:
    return [
        report.line(
            f"no share of a peak for {dtype}: {peak.reason}"
            if peak.gmacs is None
            else f"peak for {dtype}: {peak.gmacs:.0f} GMAC/s a core, measured ({peak.instruction})"
        )
        for dtype, peak in profile.peaks.items()
    ]


def _merged_lines(profile: Profile) -> list[Text]:
    if not profile.merged:
        return []
    return [
        report.line(
            "merged: several small kernels in one function; "
            "tvm-qplugin build --separate-kernels makes an artifact whose layers are timed one by one"
        )
    ]


def _verdict(profile: Profile, other: Profile | None, layers: Sequence[dict[str, Any]]) -> str:
    here = f"{profile.whole_ms:.3f} ms"
    if other is None:
        return f"{here} on {profile.threads} thread(s); --float compares it with the float model"
    slower = [row for row in layers if row["speedup"] is not None and row["speedup"] < 1 - NOISE]
    both = [row for row in layers if row["speedup"] is not None]
    factor = other.whole_ms / profile.whole_ms
    words = f"{factor:.2f} times as fast" if factor >= 1 else f"slower, by a factor of {1 / factor:.2f}"
    return (
        f"{here}, in float {other.whole_ms:.3f} ms: {words}; "
        f"{len(slower)} of {len(both)} layers are slower than in float"
    )


def _answer(
    verdict: str, reasons: Sequence[Finding], layers: Sequence[dict[str, Any]]
) -> Iterator[RenderableType]:
    yield report.line(verdict, "bold")
    yield ""
    yield _findings_table(reasons) if reasons else report.line("Nothing stands out.")
    if layers:
        yield _comparison_table(layers)


def _findings_table(reasons: Sequence[Finding]) -> Table:
    """One row for each finding; the layers are named up to a few."""
    table = Table(title="why, and what to do", title_justify="left", header_style="bold", show_lines=True)
    table.add_column("share", justify="right")
    for name in ("reason", "what to do", "layers"):
        table.add_column(name, overflow="fold")
    for reason in reasons:
        more = len(reason.layers) - NAMED
        names = ", ".join(reason.layers[:NAMED]) + (f" and {more} more" if more > 0 else "")
        cells = (_percent(reason.share), reason.title, reason.advice, names or "-")
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _comparison_table(layers: Sequence[dict[str, Any]]) -> Table:
    def number(value: float | None, factor: float, places: int) -> str:
        return "-" if value is None else f"{factor * value:.{places}f}"

    rows = [
        {
            "layer": row["name"],
            "operator": row["op"],
            "µs": number(row["ms"], 1e3, 1),
            "float µs": number(row["float_ms"], 1e3, 1),
            "times as fast": number(row["speedup"], 1, 2),
        }
        for row in layers
    ]
    return report.columns_table("beside float", rows, left=2)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
