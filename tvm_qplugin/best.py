"""``accuracy="best"``: try the ways to win accuracy back, and keep what helps on samples held back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tvm import relax
from tvm.ir import IRModule

from tvm_qplugin.console import say
from tvm_qplugin.core.calibration import CalibrationTable
from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.profile import TargetProfile
from tvm_qplugin.core.recipe import Recipe
from tvm_qplugin.judge import Judge, Score
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.smooth_quant import smoothable
from tvm_qplugin.quantizer import annotated, converted, stored
from tvm_qplugin.recovery import reservoir_for
from tvm_qplugin.samples import Reservoir, Sample, fit_sample, inputs_of

ATTEMPTS = "qplugin.attempts"
"""Attribute of ``main``: what was tried, a JSON object (``Search.to_json``)."""

HISTOGRAM = "least_mse"
"""The observer to calibrate with: its histograms serve all others."""

EVERY, HELD, FEWEST = 4, 256, 8
"""Every 4th sample is held back, at most 256 of them; of fewer than 8 samples none can be."""

ROUNDS = 2
"""What did not help is tried once more when something behind it has changed the model."""


@dataclass(frozen=True)
class Step:
    """A change of the recipe, its name and what it does."""

    name: str
    about: str
    change: Mapping[str, Any]
    applies: Callable[[relax.Function], Any] = lambda _: True


STEPS = (
    Step("correct-bias", "every layer gets the mean output that it has in float", {"correct_bias": True}),
    Step("least-mse", "ranges with the smallest squared error", {"observer": "least_mse"}),
    Step("percentile", "ranges without the outermost values", {"observer": "percentile"}),
    Step("smooth", "spread of channels moved into the weights behind norms", {"smooth": True}, smoothable),
    Step("equalize", "channels brought to equal range between layers", {"equalize": True}),
    Step(
        "adaptive-rounding",
        "weights rounded so that errors compensate, biases corrected",
        {"adaptive_rounding": True, "correct_bias": True},
    ),
)
PLAIN = Step("plain", "the recipe as it is", {})


@dataclass
class Split:
    """Samples for making a model, and every 4th one for judging it."""

    kept: Reservoir
    held: Reservoir
    seen: int = 0

    @classmethod
    def of(cls, module: IRModule) -> Split:
        """For the samples of a model, as many as fit into memory."""
        kept = reservoir_for(module)
        return cls(kept, Reservoir(min(HELD, kept.size)))

    def offer(self, sample: Sample) -> bool:
        """Take a sample in; True for one that shall not be calibrated with."""
        self.seen += 1
        hold = self.seen % EVERY == 0
        (self.held if hold else self.kept).offer(sample)
        return hold


@dataclass(frozen=True)
class Attempt:
    """One step: how good the module was with it, whether and why it was kept.

    ``error``: why it could not be tried.
    """

    step: str
    about: str
    agreement: float | None
    sqnr_db: float | None
    kept: bool
    seconds: float
    error: str = ""
    why: str = ""


@dataclass
class Search:
    """The best module so far, its recipe, and the attempts that led to it."""

    recipe: Recipe
    held_back: int
    attempts: list[Attempt] = field(default_factory=list)
    module: IRModule | None = None
    score: Score | None = None
    stopped: bool = False

    def to_json(self) -> dict[str, Any]:
        """What the report shows."""
        return {
            "held_back": self.held_back,
            "stopped": self.stopped,
            "recipe": self.recipe.to_json(),
            "attempts": [vars(attempt) for attempt in self.attempts],
        }


def quantize_best(
    module: IRModule,
    recipe: Recipe,
    profile: TargetProfile,
    table: CalibrationTable | None,
    samples: Sequence[Sample],
    held_back: Sequence[Sample],
    *,
    progress: bool = False,
) -> IRModule:
    """The QDQ module (float inputs and outputs) of the best recipe found, with the attribute ``ATTEMPTS``.

    ``module``: the canonical float module, ``table``: its ranges, with the histograms of ``HISTOGRAM`` where
    ranges shall be searched (None for a scheme that needs no ranges). ``samples`` are for recovery,
    ``held_back`` for judging. Ctrl-C stops the search: the best module so far is given. Raises
    CalibrationError for too few samples.
    """
    if not samples or not held_back:
        raise CalibrationError(
            f"accuracy='best' holds back every {EVERY}th sample to judge by: give {FEWEST} samples or more, "
            "200 are good"
        )
    inputs = inputs_of(module)
    judge = Judge(module, [fit_sample(i, sample, inputs) for i, sample in enumerate(held_back)])
    search = Search(recipe, len(held_back))
    try:
        _try(search, PLAIN, module, profile, table, samples, judge, progress)
        for step in _open_steps(search, ir.main_function(module)):
            _try(search, step, module, profile, table, samples, judge, progress)
    except KeyboardInterrupt:
        if search.module is None:
            raise
        search.stopped = True
        say("stopped: the best so far is kept", "yellow")
    assert search.module is not None
    return ir.with_main_attr(search.module, ATTEMPTS, json.dumps(search.to_json()))


def _open_steps(search: Search, func: relax.Function) -> Iterator[Step]:
    """Steps that have not been tried with the recipe as it is at the moment."""
    steps = [step for step in STEPS if step.applies(func)]
    steps = [step for step in steps if not (search.recipe.storage and "observer" in step.change)]
    tried: dict[str, Recipe] = {}
    for _ in range(ROUNDS):
        for step in steps:
            wanted = replace(search.recipe, **step.change)
            if wanted != search.recipe and tried.get(step.name) != search.recipe:
                tried[step.name] = search.recipe
                yield step


def _try(
    search: Search,
    step: Step,
    module: IRModule,
    profile: TargetProfile,
    table: CalibrationTable | None,
    samples: Sequence[Sample],
    judge: Judge,
    progress: bool,
) -> None:
    """One step from the best recipe so far; a step that cannot be taken is noted and left out."""
    start = time.perf_counter()
    recipe = replace(search.recipe, **step.change)
    score, error, quantized = None, "", None
    try:
        if progress:
            say(f"{step.name}: {step.about} ...", "dim")
        quantized = _made(module, recipe, profile, table, samples, progress)
        score = judge.score(quantized)
    except CalibrationError as problem:
        if step is PLAIN:
            raise
        error = str(problem)
    kept = score is not None and (search.score is None or score.better_than(search.score))
    why = error or _why(score, search.score, kept)
    if kept:
        search.recipe, search.module, search.score = recipe, quantized, score
    agreement, sqnr = (None, None) if score is None else (score.agreement, score.sqnr_db)
    seconds = time.perf_counter() - start
    search.attempts.append(Attempt(step.name, step.about, agreement, sqnr, kept, seconds, error, why))
    if progress:
        say(line_of(search.attempts[-1]), "" if kept else "dim")


def _made(
    module: IRModule,
    recipe: Recipe,
    profile: TargetProfile,
    table: CalibrationTable | None,
    samples: Sequence[Sample],
    progress: bool,
) -> IRModule:
    if table is None:
        return stored(module, recipe, samples, progress)
    _, annotation = annotated(module, recipe, profile)
    ranges = table.seen_by(annotation.observers())
    return converted(module, recipe, profile, ranges, samples, progress)


def _why(score: Score | None, best: Score | None, kept: bool) -> str:
    """What the decision was taken from: the differences to the best module before."""
    if score is None or best is None:
        return "what the others are compared with"
    parts = [f"SQNR {score.sqnr_db - best.sqnr_db:+.2f} dB"]
    if score.agreement is not None and best.agreement is not None:
        parts.insert(0, f"agreement {100 * (score.agreement - best.agreement):+.1f} points")
    verdict = "more gain than loss" if kept else "no more gain than loss"
    return f"{', '.join(parts)}: {verdict}"


def attempts_of(module: IRModule) -> dict[str, Any] | None:
    """What was tried to make a module (``Search.to_json``); None where nothing was."""
    text = (ir.main_function(module).attrs or {}).get(ATTEMPTS)
    return json.loads(str(text)) if text else None


def line_of(attempt: Attempt) -> str:
    """An attempt as one line of text."""
    figures = attempt.error or "agreement {}, SQNR {:.2f} dB".format(
        "-" if attempt.agreement is None else f"{100 * attempt.agreement:.1f} %", attempt.sqnr_db or 0.0
    )
    verdict = "kept" if attempt.kept else "not kept"
    reason = "" if attempt.error else f"  ({attempt.why})"
    return f"{attempt.step:<18} {figures:<36} {verdict:<9} {attempt.seconds:5.1f} s{reason}"
