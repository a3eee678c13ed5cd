"""Pictures of what quantization does to every layer (extra: debug)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_qplugin.core.distance import Distance
from tvm_qplugin.core.errors import QPluginError

if TYPE_CHECKING:
    from tvm_qplugin.layer_errors import LayerErrors

ERRORS, RANGES = "layers.png", "ranges.png"


def check_pictures() -> None:
    """Raise QPluginError where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise QPluginError(
            "pictures need matplotlib, which is not installed: pip install 'tvm-qplugin[debug]', or leave "
            "them out with --no-pictures"
        )


def draw(layers: Sequence[LayerErrors], folder: Path) -> list[Path]:
    """Write ``layers.png`` (SQNR, MSE, cosine) and ``ranges.png`` into ``folder``. Raises QPluginError."""
    check_pictures()
    import matplotlib

    matplotlib.use("Agg")
    return [_errors(layers, folder / ERRORS), _ranges(layers, folder / RANGES)]


def _errors(layers: Sequence[LayerErrors], path: Path) -> Path:
    """Three panels over the layers in order of execution."""
    figure, panels = _figure(layers, 3)
    names = {"as deployed": "cumulative", "alone": "alone", "alone, at the model's outputs": "effect"}
    for label, field in names.items():
        found: list[Distance] = [getattr(layer, field) for layer in layers]
        style = {"marker": ".", "label": label}
        panels[0].plot([_or_nan(d, d.sqnr_db) for d in found], **style)
        panels[1].plot([_or_nan(d, d.mse or None) for d in found], **style)
        panels[2].plot([_or_nan(d, 1 - d.cosine if d.noise else None) for d in found], **style)
    for panel, title in zip(panels, ("SQNR, dB", "mean squared error", "1 - cosine"), strict=True):
        panel.set_ylabel(title)
        panel.grid(alpha=0.3)
    panels[1].set_yscale("log")
    panels[2].set_yscale("log")
    panels[0].legend()
    return _save(figure, panels[-1], layers, path)


def _ranges(layers: Sequence[LayerErrors], path: Path) -> Path:
    """What each grid covers, what the float model's values span, and mean and deviation."""
    figure, (panel,) = _figure(layers, 1)
    for i, layer in enumerate(layers):
        if layer.covered is not None:
            low, high = layer.covered
            panel.bar(i, high - low, bottom=low, color="lightgrey", width=0.8)
        if layer.seen.count:
            panel.bar(i, layer.seen.high - layer.seen.low, bottom=layer.seen.low, color="C0", width=0.4)
            panel.errorbar(i, layer.seen.mean, layer.seen.deviation, color="black", capsize=2)
    panel.set_yscale("symlog", linthresh=0.1)
    panel.set_ylabel("grey: the grid, blue: values seen, black: mean and deviation")
    return _save(figure, panel, layers, path)


def _figure(layers: Sequence[LayerErrors], rows: int) -> tuple[Any, Any]:
    from matplotlib import pyplot

    width = min(max(8.0, 0.28 * len(layers)), 60.0)
    figure, panels = pyplot.subplots(rows, 1, figsize=(width, 3.5 * rows + 2), sharex=True, squeeze=False)
    return figure, list(panels[:, 0])


def _or_nan(distance: Distance, value: float | None) -> float:
    return float("nan") if value is None or not distance.count else value


def _save(figure: Any, last: Any, layers: Sequence[LayerErrors], path: Path) -> Path:
    from matplotlib import pyplot

    last.set_xticks(range(len(layers)), [layer.name for layer in layers], rotation=90, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return path
