"""The picture of bench.py: a panel for each number of threads, a bar for each contestant and model."""

from __future__ import annotations

import os
from pathlib import Path

from _bench_rows import OURS, Race


def plot(races: list[Race], path: Path, title: str) -> None:
    """Write a PNG of peer / ours, int8 filled and float hatched; above 1 we are faster."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = sorted({race.threads for race in races})
    models, names = list(dict.fromkeys(race.model for race in races)), list(series(races))
    size = (max(7.0, 2.2 * len(models)), 3.4 * len(counts) + 1)
    figure, axes = pyplot.subplots(len(counts), 1, figsize=size, squeeze=False, layout="constrained")
    for axis, threads in zip(axes[:, 0], counts, strict=True):
        _panel(axis, [race for race in races if race.threads == threads], models, names)
        axis.set_title(f"{threads} thread{'s' * (threads > 1)}")
    figure.legend(*_legend(axes[:, 0]), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(temporary, format="png", dpi=150)
    pyplot.close(figure)
    os.replace(temporary, path)


def series(races: list[Race]) -> dict[str, dict[str, float]]:
    """Contestant -> model -> peer / ours, without ours."""
    found: dict[str, dict[str, float]] = {}
    for race in races:
        for result in race.results:
            ratio = race.ratio(result)
            if ratio is not None:
                found.setdefault(result.contestant, {})[race.model] = ratio
    return found


def _panel(axis: object, races: list[Race], models: list[str], names: list[str]) -> None:
    bars, width = series(races), 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        ratios = bars.get(name, {})
        places = [models.index(model) + (i - (len(names) - 1) / 2) * width for model in ratios]
        hatch = "//" if name.endswith(" float") else None
        style = {"color": f"C{i % 10}", "hatch": hatch, "edgecolor": "white"}
        axis.bar(places, list(ratios.values()), width, label=name, **style)
    axis.axhline(1, color="black", linewidth=1, label=OURS)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xticks(range(len(models)), models, rotation=15, ha="right")
    axis.set_ylabel("time / ours")


def _legend(axes: object) -> tuple[list[object], list[str]]:
    """Every name once, over all panels."""
    found: dict[str, object] = {}
    for axis in axes:
        handles, names = axis.get_legend_handles_labels()
        found |= {n: h for n, h in zip(names, handles, strict=True) if n not in found}
    return list(found.values()), list(found)
