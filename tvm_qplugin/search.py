"""Which settings of a task to measure next: MetaSchedule's evolutionary search over the rule's knobs.

The workload is the portable PrimFunc; a schedule of it is a trace of sampled knobs, kept as annotations of
its root block. The rule turns these into a kernel; the trace is what evolves.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm.ir import IRModule
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule import _ffi_api

from tvm_qplugin.core.attrs import KernelCall
from tvm_qplugin.core.tunable import Knobs, Tunable, canonical, is_setting
from tvm_qplugin.kernels import build_kernel

PREFIX = "qplugin.knob."
BATCH = 16
POPULATION = 128
LEAST_UNMEASURED = 16
GENERATIONS = 3
WARM_UP = 12  # measured settings before the cost model is believed
FEW = 64  # settings that are left: all of them are ranked instead
ENDLESS = 1 << 30


class CostModel:
    """Predicts how fast a setting is, relative to the task's best: XGBoost over a rule's features."""

    def __init__(self) -> None:
        self.spaces: dict[str, _Space] = {}
        self.xgb = ms.cost_model.XGBModel(
            extractor=_Features(self.spaces), num_warmup_samples=WARM_UP, verbose_eval=0, num_tuning_cores=1
        )


class Search:
    """Proposes settings of one task; each is proposed once.

    The rule's own suggestions come first, then what evolution finds. ``known``: seconds of settings that
    were measured before. ``model`` is shared by the tasks of a rule. ``name`` tells its tasks apart.
    """

    def __init__(
        self,
        name: str,
        call: KernelCall,
        tunable: Tunable,
        target: tvm.target.Target,
        model: CostModel,
        known: Sequence[tuple[Knobs, float]] = (),
        seed: int = 0,
    ) -> None:
        self.target, self.model = target, model
        settings = valid_settings(tunable)
        self.size = len(settings)
        self._rest = [*(knobs for knobs in tunable.suggestions() if tunable.valid(knobs)), *settings]
        self._suggestions = len(self._rest) - self.size
        self._seen: set[str] = set()
        self._space = _Space(tunable, settings)
        model.spaces[name] = self._space
        func = build_kernel(call.name, call.params, call.args, call.out)
        self._mod = IRModule({"main": func.with_attr("global_symbol", "main")})
        self._database = ms.database.MemoryDatabase()
        self._workload = self._database.commit_workload(self._mod)
        self._context = _Context(name, self._mod, target, self._space.generator(seed), seed)
        self._context.pre_tuning(ENDLESS, BATCH, None, self._database, model.xgb)
        self._argument_info = ms.arg_info.ArgInfo.from_prim_func(self._mod["main"])
        self.tell(known)

    def propose(self, count: int) -> list[Knobs]:
        """At most ``count`` settings that were not proposed or known before; none: all have been."""
        found = self._take(min(count, self._suggestions))
        if self.size - len(self._seen) <= FEW:
            self._rest = self._ranked([knobs for knobs in self._rest if canonical(knobs) not in self._seen])
        elif len(found) < count:
            found += self._evolved(count - len(found))
        return found + self._take(count - len(found))

    def tell(self, results: Sequence[tuple[Knobs, float]]) -> None:
        """Learn the seconds of settings; wrong and failed ones must not be among them."""
        candidates, outcomes = [], []
        for knobs, seconds in results:
            self._seen.add(canonical(knobs))
            if not is_setting(knobs, self._space.tunable):
                continue  # a record of a rule that had other knobs
            candidate = self._candidate(knobs)
            self._database.commit_tuning_record(
                ms.database.TuningRecord(
                    candidate.sch.trace, self._workload, [seconds], self.target, self._argument_info
                )
            )
            candidates.append(candidate)
            outcomes.append(ms.runner.RunnerResult([seconds], None))
        self.model.xgb.update(self._context, candidates, outcomes)

    def _take(self, count: int) -> list[Knobs]:
        """The next settings in order."""
        taken: list[Knobs] = []
        while self._rest and len(taken) < count:
            knobs = self._rest.pop(0)
            self._suggestions -= self._suggestions > 0
            if self._new(knobs):
                taken.append(knobs)
        return taken

    def _evolved(self, count: int) -> list[Knobs]:
        """New settings among those that evolution would measure next."""
        candidates = self._context.generate_measure_candidates() or []
        unmeasured = ms.runner.RunnerResult(None, "measured elsewhere")
        self._context.notify_runner_results(candidates, [unmeasured] * len(candidates))
        settings = [self._space.knobs(candidate.sch.mod) for candidate in candidates]
        fresh = [knobs for knobs in settings if canonical(knobs) not in self._seen][:count]
        return [knobs for knobs in fresh if self._new(knobs)]

    def _ranked(self, settings: Sequence[Knobs]) -> list[Knobs]:
        """The same, the fastest by the cost model's prediction first."""
        if not settings:
            return []
        candidates = [self._candidate(knobs) for knobs in settings]
        scores = self.model.xgb.predict(self._context, candidates)
        return [settings[int(index)] for index in np.argsort(-np.asarray(scores), kind="stable")]

    def _new(self, knobs: Knobs) -> bool:
        text = canonical(knobs)
        is_new = text not in self._seen
        self._seen.add(text)
        return is_new

    def _candidate(self, knobs: Knobs) -> Any:
        schedule = Schedule(self._mod)
        self._space.apply(schedule, knobs)
        return ms.search_strategy.MeasureCandidate(schedule, self._argument_info)


def valid_settings(tunable: Tunable) -> list[Knobs]:
    """All settings that are worth building."""
    names, values = tunable.choices.keys(), tunable.choices.values()
    settings = (dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values))
    return [knobs for knobs in settings if tunable.valid(knobs)]


class _Space:
    """Knobs as a schedule: one sampled index each, a value as likely as there are valid settings with it."""

    def __init__(self, tunable: Tunable, settings: Sequence[Knobs]) -> None:
        self.tunable, self.choices = tunable, tunable.choices
        counts = {name: Counter(knobs[name] for knobs in settings) for name in self.choices}
        self.odds = {
            name: [counts[name][value] / len(settings) for value in values]
            for name, values in self.choices.items()
        }

    def generator(self, seed: int) -> Any:
        """The space as MetaSchedule takes it."""
        return ms.space_generator.ScheduleFn(
            self.apply,
            sch_rules=[],
            postprocs=[_Valid(self)],
            mutator_probs={_ChangeKnob(seed): 1.0},
        )

    def apply(self, schedule: Schedule, knobs: Knobs | None = None) -> None:
        """Annotate the root block with these settings; None: with sampled ones."""
        root = schedule.get_sblock("root")
        for name, values in self.choices.items():
            decision = None if knobs is None else list(values).index(knobs[name])
            index = schedule.sample_categorical(list(range(len(values))), self.odds[name], decision)
            schedule.annotate(root, PREFIX + name, index)

    def knobs(self, mod: IRModule) -> Knobs:
        """The setting that a schedule of the workload carries."""
        found = mod["main"].body.block.annotations
        return {name: values[int(found[PREFIX + name])] for name, values in self.choices.items()}


class _Context(ms.TuneContext):
    """``TuneContext`` without its constructor, which imports all of TVM's intrinsics (15 s)."""

    def __init__(self, name: str, mod: IRModule, target: tvm.target.Target, space: Any, seed: int) -> None:
        strategy = ms.search_strategy.EvolutionarySearch(
            population_size=POPULATION,
            init_min_unmeasured=LEAST_UNMEASURED,
            genetic_num_iters=GENERATIONS,
            eps_greedy=0.1,
        )
        self.__init_handle_by_constructor__(
            _ffi_api.TuneContext, mod, target, space, strategy, name, 1, seed + 1, _quiet
        )
        _ffi_api.TuneContextInitialize(self)


def _quiet(*_message: Any) -> None:
    """Where MetaSchedule's own log goes."""


@derived_object
class _Valid(ms.postproc.PyPostproc):
    """Turns away what the rule calls invalid."""

    def __init__(self, space: _Space) -> None:
        super().__init__()
        self.space = space

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def apply(self, schedule: Schedule) -> bool:
        """Whether to go on with a schedule."""
        return self.space.tunable.valid(self.space.knobs(schedule.mod))

    def clone(self) -> Any:
        """Another one."""
        return _Valid(self.space)


@derived_object
class _ChangeKnob(ms.mutator.PyMutator):
    """Gives one knob another value, most often a neighbouring one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def apply(self, trace: Any, _seed: Any) -> Any:
        """The trace with one decision changed; None: there is nothing to change."""
        sampled = [(i, len(i.attrs[0])) for i in trace.insts if i.kind.name == "SampleCategorical"]
        open_knobs = [(instruction, count) for instruction, count in sampled if count > 1]
        if not open_knobs:
            return None
        instruction, count = self.random.choice(open_knobs)
        now = int(trace.decisions[instruction])
        near = [index for index in (now - 1, now + 1) if 0 <= index < count]
        others = [index for index in range(count) if index != now]
        chosen = self.random.choice(near if self.random.random() < 0.5 else others)
        return trace.with_decision(instruction, chosen, True)

    def clone(self) -> Any:
        """Another one, with another sequence."""
        return _ChangeKnob(self.random.randrange(1 << 30))


@derived_object
class _Features(ms.feature_extractor.PyFeatureExtractor):
    """The rule's features of candidates, by the name of the task."""

    def __init__(self, spaces: dict[str, _Space]) -> None:
        super().__init__()
        self.spaces = spaces

    def extract_from(self, context: Any, candidates: Sequence[Any]) -> list[Any]:
        """One row for each candidate."""
        space = self.spaces[str(context.task_name)]
        rows = [space.tunable.features(space.knobs(candidate.sch.mod)) for candidate in candidates]
        return [tvm.runtime.tensor(np.array([row], "float32")) for row in rows]
