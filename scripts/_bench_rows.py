"""The results of a race: ratios, limits, the table, and the file that keeps finished races."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

OURS = "ours"
OURS_FLOAT = "ours float"
SMALL = ("tiny_resnet8_cifar10", "tiny_kws_dscnn", "tiny_vww_mobilenetv1_025_96", "tiny_ad_autoencoder")
# Peer / ours has to be at least this much: of the best int8 peer, and of LiteRT's int8 file
BEST_INT8 = {"mobilenet_v1": 1.4, "mobilenet_v2": 1.5, "inception_v3": 1.05, "resnet_v2_101": 1.05}
LITERT_INT8 = {"mobilenet_v2_1.0_224": 1.0, **dict.fromkeys(SMALL, 1.0)}
BEST_FLOAT = 3.3  # the best float peer / our int8, and
SLOWEST_FLOAT = 1.25  # our float / the best float peer, of the networks in BEST_INT8
SCHEMES = ("int16x8", "dynamic")  # what contestants compute in that are neither int8 nor float
# LiteRT with our file / ours of the same scheme, and our int8 / our int16x8
LITERT_SCHEMES = {
    ("mobilenet_v1", "int16x8"): 45.0,
    ("mobilenet_v2", "int16x8"): 45.0,
    ("mobilenet_v2", "dynamic"): 3.0,
    ("inception_v3", "dynamic"): 1.0,
}
INT8_TO_INT16X8 = {"mobilenet_v1": 1 / 2.2, "mobilenet_v2": 1 / 2.2}


@dataclass(frozen=True)
class Result:
    """One contestant: milliseconds (median and minimum of every round), and what it costs.

    ``load_ms``: from the file to the first result, ``memory_bytes``: what the process grew by at its
    peak, ``file_bytes``: of what is loaded.
    """

    contestant: str
    medians: list[float]
    minima: list[float]
    load_ms: float = 0.0
    memory_bytes: int = 0
    file_bytes: int = 0

    @property
    def median(self) -> float:
        """The median of the rounds' medians."""
        return statistics.median(self.medians)

    @property
    def least(self) -> float:
        """The fastest run of all."""
        return min(self.minima)

    @property
    def scheme(self) -> str:
        """What it computes in: "int8", "float" or one of ``SCHEMES``."""
        last = self.contestant.split()[-1]
        return last if last in ("float", *SCHEMES) else "int8"

    @property
    def is_int8(self) -> bool:
        """Whether it computes in int8 altogether."""
        return self.scheme == "int8"

    @property
    def is_ours(self) -> bool:
        """Whether it is no peer."""
        return self.contestant.startswith(OURS)

    def over(self, ours: Result) -> list[float]:
        """Our advantage, round by round."""
        return [peer / own for peer, own in zip(self.medians, ours.medians, strict=True)]


@dataclass(frozen=True)
class Options:
    """How long was measured; a kept race is used again only under equal options."""

    rounds: int = 7
    seconds: float = 0.3
    warmup: float = 0.1


@dataclass(frozen=True)
class Race:
    """All contestants on one model. ``absent``: who did not finish, and why. ``macs`` of the model.

    ``peak``: multiply-adds a second of as many cores as ``threads``; None where that is not known.
    """

    model: str
    threads: int
    options: Options
    macs: int = 0
    peak: float | None = None
    results: list[Result] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Race:
        """The inverse of ``asdict``."""
        results = [Result(**result) for result in data["results"]]
        return cls(**{**data, "options": Options(**data["options"]), "results": results})

    @property
    def ours(self) -> Result | None:
        """Our int8 result."""
        return self._of(OURS)

    def ratio(self, result: Result) -> float | None:
        """Peer / ours, the median over the rounds; above 1 we are faster. None for ours, or without it."""
        ours = self.ours
        return None if ours is None or result is ours else statistics.median(result.over(ours))

    def best_peer(self) -> Result | None:
        """The fastest int8 contestant that is not ours."""
        peers = [result for result in self.results if result.is_int8 and not result.is_ours]
        return min(peers, key=lambda result: result.median, default=None)

    def of_peak(self, result: Result) -> float | None:
        """Percent of the machine's int8 peak that an int8 contestant reaches."""
        if not (self.peak and self.macs and result.is_int8):
            return None
        return 100 * self.macs / (result.median / 1e3) / self.peak

    def best_float(self) -> Result | None:
        """The fastest float contestant that is not ours."""
        peers = [result for result in self.results if result.scheme == "float" and not result.is_ours]
        return min(peers, key=lambda result: result.median, default=None)

    def missed(self) -> list[str]:
        """The limits that this race breaks."""
        ours, litert = self.ours, self._of("LiteRT int8")
        if ours is None:
            return []
        wanted = [
            (self.best_peer(), ours, BEST_INT8.get(self.model)),
            (litert, ours, LITERT_INT8.get(self.model)),
        ]
        if self.model in BEST_INT8:
            wanted += [(self.best_float(), ours, BEST_FLOAT)]
            wanted += [(self.best_float(), self._of(OURS_FLOAT), 1 / SLOWEST_FLOAT)]
        for scheme in SCHEMES:
            limit = LITERT_SCHEMES.get((self.model, scheme))
            wanted.append((self._of(f"LiteRT {scheme}"), self._of(f"{OURS} {scheme}"), limit))
        wanted.append((ours, self._of(f"{OURS} int16x8"), INT8_TO_INT16X8.get(self.model)))
        return [
            f"{self.model}, {self.threads} threads: {peer.contestant} / {own.contestant} is {ratio:.2f}, "
            f"expected {limit:.2f} or more"
            for peer, own, limit in wanted
            if peer and own and limit and (ratio := statistics.median(peer.over(own))) < limit
        ]

    def _of(self, contestant: str) -> Result | None:
        return next((result for result in self.results if result.contestant == contestant), None)

    def covers(self, obstacles: Mapping[str, str]) -> bool:
        """Whether every contestant has a result, or still has the obstacle (contestant -> why, or "")."""
        done = {result.contestant for result in self.results}
        return all(name in done or self.absent.get(name) == why != "" for name, why in obstacles.items())


class Kept:
    """Finished races in a JSON file, beside facts about the machine; written after each race.

    ``fresh`` starts anew. SystemExit where the file is something else.
    """

    def __init__(self, path: Path | None, machine: Mapping[str, Any], fresh: bool = False) -> None:
        self._path, self._machine = path, dict(machine)
        self._races: dict[tuple[str, int], Race] = {}
        if path is not None and path.is_file() and not fresh:
            for race in _read(path):
                self._races[race.model, race.threads] = race

    def find(self, model: str, threads: int, options: Options, obstacles: Mapping[str, str]) -> Race | None:
        """A race that was run under the same options with all of these contestants."""
        race = self._races.get((model, threads))
        usable = race is not None and race.options == options and race.covers(obstacles)
        return race if usable else None

    def add(self, race: Race) -> None:
        """Keep a race."""
        self._races[race.model, race.threads] = race
        if self._path is not None:
            data = {**self._machine, "races": [asdict(race) for race in self._races.values()]}
            temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            temporary.write_text(json.dumps(data, indent=1))
            os.replace(temporary, self._path)


def _read(path: Path) -> list[Race]:
    try:
        return [Race.from_json(data) for data in json.loads(path.read_text())["races"]]
    except (ValueError, KeyError, TypeError):
        raise SystemExit(
            f"{path} does not hold races of bench.py: name another file, or --fresh to replace it"
        ) from None


HEADERS = (
    *("", "median ms", "min ms", "peer / ours", "over the rounds", "of the minima", "% of peak"),
    *("memory MB", "load ms", "file MB"),
)


def cells(race: Race, result: Result) -> list[str]:
    """A line of the table."""
    ours, ratio, part = race.ours, race.ratio(result), race.of_peak(result)
    compared = ["", "", ""]
    if ours is not None and ratio is not None:
        over = result.over(ours)
        compared = [f"{ratio:.2f}", f"{min(over):.2f} .. {max(over):.2f}", f"{result.least / ours.least:.2f}"]
    return [
        result.contestant,
        f"{result.median:.4f}",
        f"{result.least:.4f}",
        *compared,
        "" if part is None else f"{part:.0f}",
        f"{result.memory_bytes / 1e6:.0f}",
        f"{result.load_ms:.0f}",
        f"{result.file_bytes / 1e6:.2f}",
    ]


def as_table(race: Race) -> Table:
    """A race for a terminal: the best peer in the caption, and who is absent."""
    title = f"{race.model}, {race.threads} thread{'s' * (race.threads > 1)}"
    if race.macs:
        title += f", {race.macs / 1e6:.0f} million multiply-adds"
    table = Table(title=title, caption=_caption(race), caption_justify="left")
    for heading in HEADERS:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=heading == "")
    for result in race.results:
        table.add_row(*cells(race, result), style="bold" if result is race.ours else None)
    return table


def _caption(race: Race) -> str:
    best, lines = race.best_peer(), []
    ratio = None if best is None else race.ratio(best)
    if best is not None and ratio is not None:
        lines.append(f"best int8 peer / ours: {ratio:.2f} ({best.contestant})")
    lines += [f"without {name}: {why}" for name, why in race.absent.items()]
    return "\n".join(lines)


def as_summary(races: Iterable[Race]) -> Table:
    """One line a race: ours and the best int8 peer."""
    table = Table(title="ours beside the best int8 peer, medians")
    for heading in ("model", "threads", "ours ms", "peer ms", "peer / ours", "best peer"):
        table.add_column(heading, justify="left" if heading in ("model", "best peer") else "right")
    for race in races:
        best, ours = race.best_peer(), race.ours
        ratio = None if best is None else race.ratio(best)
        table.add_row(
            race.model,
            str(race.threads),
            "" if ours is None else f"{ours.median:.4f}",
            "" if best is None else f"{best.median:.4f}",
            "" if ratio is None else f"{ratio:.2f}",
            "" if best is None else best.contestant,
        )
    return table
