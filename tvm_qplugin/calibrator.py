"""Run samples through a float model and note the range of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst, IRModule

from tvm_qplugin.builder import compile_function
from tvm_qplugin.core.calibration import CalibrationHook, CalibrationTable, TensorRange
from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.core.qparams import Array
from tvm_qplugin.core.recipe import DEFAULT_OBSERVER
from tvm_qplugin.observers import Observer, find_observer, resumed
from tvm_qplugin.passes import ir
from tvm_qplugin.passes.insert_observers import InsertObservers
from tvm_qplugin.progress import progress_bar
from tvm_qplugin.samples import Sample, fit_sample, inputs_of, numbered


def model_hash(module: IRModule) -> str:
    """sha256 over the structure of all functions and the bytes of all constants; stable over processes."""
    digest = sha256()

    def add_constant(expr: Any) -> None:
        if isinstance(expr, GenericConst):
            array = np.ascontiguousarray(expr.value.numpy())
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.data)

    for var, func in sorted(module.functions_items(), key=lambda item: item[0].name_hint):
        digest.update(f"{var.name_hint}\n{func.script(show_meta=False)}\n".encode())
        if isinstance(func, relax.Function):
            relax.analysis.post_order_visit(func, add_constant)
    return digest.hexdigest()


hash_of = model_hash  # the parameter of ``calibrate`` hides the function's name


def float_tensors(module: IRModule) -> list[str]:
    """The names of all float32 tensors of ``main``: inputs, then bindings in order."""
    func = ir.main_function(module)
    variables = [*func.params, *ir.definitions(func)]
    return [v.name for v in variables if isinstance(v.ty, relax.TensorType) and v.ty.dtype == "float32"]


def calibrate(
    module: IRModule,
    samples: Iterable[Sample],
    *,
    names: Sequence[str] | None = None,
    observer: str | Mapping[str, str] = DEFAULT_OBSERVER,
    hooks: Sequence[CalibrationHook] = (),
    limit: int | None = None,
    progress: bool = False,
    model_hash: str | None = None,
    table: CalibrationTable | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 50,
    each: Callable[[Sample], object] | None = None,
) -> CalibrationTable:
    """Observe the tensors ``names`` (default: all float32 tensors) of a canonical float module.

    ``samples``: an iterable of arrays (one input), sequences (one array per input) or mappings
    (input -> array); of an array the first axis counts. Only one sample is in memory at a time.
    ``observer`` is a name, or a mapping from tensor to name. ``table``: go on from an earlier result.
    ``checkpoint``: a file that gets the table every ``checkpoint_every`` samples and on Ctrl-C; a run
    that finds it skips the samples in it; it is removed at the end. ``each`` is called with every
    sample as it was given; one that it answers with True is held back, not observed. Raises CalibrationError.
    """
    identity = model_hash or hash_of(module)
    chosen = tuple(dict.fromkeys(float_tensors(module) if names is None else names))
    observers = fresh_observers(chosen, observer)
    if table is not None:
        observers = _resumed(table, observers, identity)
    run = ObservedModel(module, identity, chosen, observers, tuple(hooks))
    run.total = table.samples if table else 0
    skip = run.resume(checkpoint) if checkpoint is not None else 0
    try:
        with progress_bar(progress, samples, limit) as advance:
            for index, sample in numbered(samples, limit):
                held = each is not None and each(sample) is True
                if index >= skip and not held:
                    run.observe(index, sample)
                    if checkpoint is not None and (index + 1) % checkpoint_every == 0:
                        run.table().save(checkpoint)
                advance()
    except KeyboardInterrupt:
        if checkpoint is not None and run.total:
            run.table().save(checkpoint)
        raise
    result = run.table()
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return result


def observe(
    module: IRModule, samples: Iterable[Sample], names: Sequence[str], observer: str
) -> dict[str, Any]:
    """The observers of tensors after all samples, by name: for what a table does not keep."""
    found = fresh_observers(names, observer)
    run = ObservedModel(module, "", tuple(found), found, ())
    for index, sample in numbered(samples):
        run.observe(index, sample)
    return {name: seen for name, (_, seen) in run.state[0].items()}


def fresh_observers(names: Sequence[str], choice: str | Mapping[str, str]) -> dict[str, tuple[str, Observer]]:
    """A kind and an observer for every name; CalibrationError for other names or unknown kinds."""
    if not isinstance(choice, str) and set(choice) - set(names):
        unknown = ", ".join(sorted(set(choice) - set(names)))
        raise CalibrationError(f"observers are given for tensors that are not observed: {unknown}")
    kinds = {n: choice if isinstance(choice, str) else choice.get(n, DEFAULT_OBSERVER) for n in names}
    return {name: (kind, find_observer(kind)()) for name, kind in kinds.items()}


def _resumed(
    table: CalibrationTable, observers: Mapping[str, tuple[str, Observer]], identity: str
) -> dict[str, tuple[str, Observer]]:
    table.check(identity, observers)
    found = {}
    for name, (kind, _) in observers.items():
        seen = table.ranges[name]
        if seen.observer != kind:
            raise CalibrationError(
                f"tensor {name!r}: the table to go on from has observer {seen.observer!r}, {kind!r} is asked "
                "for; use the same observer or start without the table"
            )
        found[name] = (kind, resumed(seen))
    return found


@dataclass
class ObservedModel:
    """Observers and how many samples they have seen; a sample counts as a whole or not at all."""

    module: IRModule
    identity: str
    names: tuple[str, ...]
    observers: dict[str, tuple[str, Observer]]
    hooks: tuple[CalibrationHook, ...]

    def __post_init__(self) -> None:
        """Compile the observed model."""
        self.inputs = inputs_of(self.module)
        self.outputs = len(ir.output_vars(ir.main_function(self.module)))
        observed = tvm.transform.Sequential([InsertObservers(self.names)])(self.module)
        self.function = compile_function(observed, merge=False)
        self.state = (self.observers, 0)

    @property
    def total(self) -> int:
        """Samples seen."""
        return self.state[1]

    @total.setter
    def total(self, value: int) -> None:
        self.state = (self.state[0], value)

    def resume(self, checkpoint: Path) -> int:
        """Go on from a checkpoint if it exists; how many samples of the set it holds."""
        if not checkpoint.exists():
            return 0
        saved = CalibrationTable.load(checkpoint)
        skip = saved.samples - self.total
        if skip < 0:
            raise CalibrationError(
                f"{checkpoint} holds {saved.samples} samples, the table to go on from {self.total}: "
                "the checkpoint is of another run; remove it"
            )
        self.state = (_resumed(saved, self.observers, self.identity), saved.samples)
        return skip

    def observe(self, index: int, sample: Sample) -> None:
        """Run one sample; an exception in the middle leaves the ranges as they were."""
        values = self.function(fit_sample(index, sample, self.inputs))[self.outputs :]
        observers, total = deepcopy(self.state[0]), self.state[1]
        for name, value in zip(self.names, values, strict=True):
            self._see(index, name, value, observers[name][1])
        self.state = (observers, total + 1)

    def _see(self, index: int, name: str, value: Array, observer: Observer) -> None:
        value.setflags(write=False)
        try:
            observer.update(value)
        except CalibrationError as error:
            raise CalibrationError(
                f"sample {index}, tensor {name!r}: {error}; remove the sample, or check that the model and "
                "the preprocessing belong together"
            ) from None
        for hook in self.hooks:
            hook(name, value)

    def table(self) -> CalibrationTable:
        """What was seen so far."""
        observers, total = self.state
        if not total:
            raise CalibrationError(
                "the calibration set is empty: at least 1 sample is needed, 100 or more are good"
            )
        ranges = {}
        for name, (kind, observer) in observers.items():
            histogram = getattr(observer, "histogram", None)
            low, high = observer.range() if histogram is None else (histogram.low, histogram.high)
            ranges[name] = TensorRange(float(low), float(high), kind, observer.count, histogram)
        return CalibrationTable(self.identity, total, ranges)
