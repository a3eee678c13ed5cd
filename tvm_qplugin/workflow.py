"""From a model file and the options of a command to a quantized module and its calibration table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_qplugin.console import say, step
from tvm_qplugin.core.calibration import CalibrationTable
from tvm_qplugin.core.errors import CalibrationError, ModelError, RecipeError
from tvm_qplugin.core.recipe import Recipe, Rule, find_recipe
from tvm_qplugin.given_options import (
    of_all,
    of_ranges,
    of_samples,
    say_flat,
    say_nothing_to_rescale,
    say_unused,
)
from tvm_qplugin.inspection import annotation_of, check_scopes, with_source
from tvm_qplugin.observers import find_observer
from tvm_qplugin.preprocess import Preprocess

if TYPE_CHECKING:
    from tvm.ir import IRModule

    from tvm_qplugin.core.profile import TargetProfile
    from tvm_qplugin.samples import Sample


@dataclass(frozen=True)
class Quantization:
    """The options that calibrating and quantizing have in common; wrong ones are refused at once."""

    recipe_name: str | None
    target: str
    calibration: Path | None
    preprocess: str | None
    key: str | None
    samples: int | None
    observer: str | None
    rules: tuple[Rule, ...] = ()
    adaptive_rounding: bool = False
    correct_bias: bool = False
    equalize: bool = False
    smooth: bool = False
    accuracy: str | None = None
    data_free: bool = False
    workers: int = 1
    cluster: str | None = None
    reduce_range: bool = False
    group: int | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without the model, then import TVM."""
        if self.calibration is not None and not self.calibration.exists():
            raise CalibrationError(
                f"{self.calibration} does not exist: give a folder of images, .npz or .npy"
            )
        recipe = find_recipe(self.recipe_name) if self.recipe_name is not None else None
        for observer in (self.observer, *(recipe.observers if recipe is not None else ())):
            if observer is not None:
                find_observer(observer)
        if recipe is not None and with_rules(recipe, self.rules).schemes == {"float"}:
            raise RecipeError(f"recipe {recipe.name!r} quantizes nothing: use `tvm-qplugin build MODEL`")
        Preprocess.parse(self.preprocess or "")
        if self.data_free and (self.calibration is not None or not self.preprocess):
            raise CalibrationError(
                "--data-free takes no --calibration, and needs --preprocess (raw, unit, tf, imagenet ...), "
                "which tells the range of the model's inputs"
            )
        with step("importing TVM"):
            import tvm  # noqa: F401
        _ = self.profile

    @property
    def profile(self) -> TargetProfile:
        """The profile of the target; TargetError if there is none."""
        from tvm_qplugin.targets import find_profile

        return find_profile(self.target)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that was named, or the target's, with what the options add to it."""
        found = find_recipe(self.profile.recipe if self.recipe_name is None else self.recipe_name)
        found = with_rules(found, self.rules)
        if self.observer is not None and found.integer:
            found = found.with_observer(self.observer)
        return replace(
            found,
            group=found.group if self.group is None else self.group,
            adaptive_rounding=found.adaptive_rounding or self.adaptive_rounding,
            correct_bias=found.correct_bias or self.correct_bias,
            equalize=found.equalize or self.equalize,
            smooth=found.smooth or self.smooth,
            reduce_range=found.reduce_range or self.reduce_range,
        )

    def load(self, model: Path, loading: dict[str, Any]) -> IRModule:
        """The canonical module of a model file, rewritten for the target."""
        from tvm_qplugin.api import prepare

        with step("reading the model"):
            return prepare(model, target=self.target, statistics=self.data_free, **loading)

    def quantized(
        self,
        model: Path,
        table: CalibrationTable | None,
        io: str | None,
        dump: Path | None,
        loading: dict[str, Any],
    ) -> tuple[IRModule, CalibrationTable | None]:
        """The quantized module, and the table it was made with (None: none was needed)."""
        import tvm

        from tvm_qplugin.api import dumping, recipe_of
        from tvm_qplugin.best import Split
        from tvm_qplugin.passes.quantize_io import QuantizeIO
        from tvm_qplugin.pipeline import is_quantized
        from tvm_qplugin.quantizer import check_accuracy, quantize_module, recipe_of_stored

        check_accuracy(self.accuracy, self.recipe)
        io = self.profile.io if io is None else io
        with dumping(dump):
            module = self.load(model, loading)
            stored = None if self._asks(table) else recipe_of_stored(module)
            if stored is not None:
                say(f"{model} is quantized already (scheme {stored.name}): it stays as it is", "yellow")
                say_unused("nothing is quantized", of_all(self, table))
                module = quantize_module(module, recipe=stored, target=self.target, io=io)
                return with_source(module, model, stored), None
            if is_quantized(module):
                say(f"{model} is quantized already: its scales are kept, calibration is not needed", "yellow")
                say_unused("nothing is quantized", of_all(self, table))
                module = tvm.transform.Sequential([QuantizeIO(io)])(module)
                return with_source(module, model, find_recipe(self.profile.recipe)), None
            if self.recipe.storage:
                self._say_what_storing_leaves_out(table)
                self._check_rules(module)
                table, module = None, self._stored(module, io)
            else:
                self._check_rules(module)
                split = Split.of(module)
                if self.data_free:
                    unused = of_ranges(self, table) | of_samples(self) | {"--preprocess": None}
                    say_unused("ranges are estimated from batch norms", unused)
                    return self._estimated(module, model, io), None
                table = self._ranges(module, table, split.offer if self.accuracy else split.kept.offer)
                with step("quantizing", spin=not self.needs_samples):
                    module = quantize_module(
                        module,
                        recipe=self.recipe,
                        target=self.target,
                        calibration=table,
                        io=io,
                        observer=self.observer,
                        samples=split.kept.samples,
                        held_back=split.held.samples,
                        accuracy=self.accuracy,
                        progress=True,
                    )
        return with_source(module, model, recipe_of(module) or self.recipe), table

    def _check_rules(self, module: IRModule) -> None:
        """Raise RecipeError for a rule that matches nothing, and for rules that leave nothing to quantize."""
        say_nothing_to_rescale(module, self.recipe)
        annotation = annotation_of(module, self.recipe, self.profile)
        check_scopes(self.recipe, annotation)
        chosen = {self.recipe.choose(op.kind, op.output).scheme for op in annotation.operators.values()}
        if chosen == {"float"}:
            raise RecipeError(
                f"the rules of recipe {self.recipe.name!r} keep every layer in float: use "
                "`tvm-qplugin build MODEL`"
            )

    def _say_what_storing_leaves_out(self, table: CalibrationTable | None) -> None:
        """Name the options that a recipe that computes in float has no use for."""
        if self.data_free:
            raise RecipeError(
                f"--data-free estimates ranges, and recipe {self.recipe.name!r} has none: leave it out"
            )
        unused = of_ranges(self, table) | ({} if self.needs_samples else of_samples(self))
        say_unused(f"recipe {self.recipe.name} needs no calibration", unused)

    def _stored(self, module: IRModule, io: str) -> IRModule:
        """The module of a scheme that computes in float; samples are read only to win accuracy back."""
        from tvm_qplugin.quantizer import quantize_module

        with step("quantizing", spin=not self.needs_samples):
            return quantize_module(
                module,
                recipe=self.recipe,
                target=self.target,
                calibration=self.samples_of(module) if self.needs_samples else None,
                limit=self.samples,
                io=io,
                accuracy=self.accuracy,
                progress=True,
            )

    def _asks(self, table: CalibrationTable | None) -> bool:
        """Whether something was said of how to quantize, or given to do it with."""
        given = self.recipe_name, self.calibration, table, self.accuracy
        return bool(self.rules or self.data_free) or any(value is not None for value in given)

    def _estimated(self, module: IRModule, model: Path, io: str) -> IRModule:
        """The quantized module with ranges from batch norms."""
        from tvm_qplugin.data_free import DATA_FREE, WARNING
        from tvm_qplugin.quantizer import quantize_module

        with step("estimating ranges", spin=False):
            module = quantize_module(
                module,
                recipe=self.recipe,
                target=self.target,
                calibration=DATA_FREE,
                accuracy=self.accuracy,
                input_range=Preprocess.parse(self.preprocess or "").bounds(),
                io=io,
                progress=True,
            )
        say(WARNING, "yellow")
        return with_source(module, model, self.recipe)

    @property
    def needs_samples(self) -> bool:
        """Whether samples are wanted beside their ranges."""
        return self.recipe.recovers or self.accuracy is not None

    def _ranges(
        self, module: IRModule, table: CalibrationTable | None, offer: Callable[[Sample], object]
    ) -> CalibrationTable:
        """A new table, or the one made before; samples are offered where they are wanted beside it."""
        from tvm_qplugin.samples import numbered

        if table is None:
            return self.table_of(module, offer if self.needs_samples else None)
        if self.needs_samples:
            if self.calibration is None:
                raise CalibrationError(
                    "winning accuracy back needs samples beside the table of ranges: give them with "
                    "--calibration"
                )
            for _, sample in numbered(self.samples_of(module), self.samples):
                offer(sample)
        unused = of_ranges(self, None) | ({} if self.needs_samples else of_samples(self))
        say_unused("ranges are those of the table", unused | {"--observer": None})
        return table

    def table_of(self, module: IRModule, each: Callable[[Sample], object] | None = None) -> CalibrationTable:
        """Run the samples through a float module; ``each`` is called with every one."""
        from tvm_qplugin.best import HISTOGRAM
        from tvm_qplugin.calibrator import calibrate
        from tvm_qplugin.parallel import calibrate_parallel
        from tvm_qplugin.pipeline import is_quantized

        if is_quantized(module):
            raise CalibrationError("the model is quantized already: there is nothing to calibrate")
        if self.recipe.storage:
            raise CalibrationError(
                f"recipe {self.recipe.name!r} needs no calibration: run `tvm-qplugin quantize` at once"
            )
        samples = self.samples_of(module)
        annotation = annotation_of(module, self.recipe, self.profile)
        check_scopes(self.recipe, annotation)
        with step("calibrating", spin=False):
            run: Callable[..., CalibrationTable] = calibrate
            if self.workers > 1 or self.cluster is not None:
                run = partial(calibrate_parallel, workers=self.workers, cluster=self.cluster)
            table = run(
                module,
                samples,
                names=annotation.observed(),
                observer=HISTOGRAM if self.accuracy else annotation.observers(),
                limit=self.samples,
                progress=True,
                each=each,
            )
        say_flat(table)
        return table

    def samples_of(self, module: IRModule) -> Iterable[Sample]:
        """The samples; CalibrationError where none were given."""
        from tvm_qplugin.data import open_samples
        from tvm_qplugin.samples import inputs_of

        if self.calibration is None:
            raise CalibrationError(
                "the model is in float: give samples of what it will see with --calibration (a folder "
                "of images, .npz or .npy)"
            )
        inputs = [item.original for item in inputs_of(module)]
        return open_samples(self.calibration, inputs, self.preprocess, key=self.key)


def with_rules(recipe: Recipe, rules: Sequence[Rule]) -> Recipe:
    """The recipe with more rules behind its own."""
    return replace(recipe, rules=(*recipe.rules, *rules))


def loading_options(batch: int | None, input_layout: str, shapes: Sequence[str] | None) -> dict[str, Any]:
    """Arguments of ``frontend.load`` from those of a command; ``shapes`` are like ``input=1,3,224,224``."""
    return {"batch": batch, "input_layout": input_layout, "shapes": dict(map(_shape, shapes or ()))}


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, extents = text.rpartition("=")
    try:
        found = tuple(int(part) for part in extents.replace("x", ",").split(","))
    except ValueError:
        found = ()
    if not name or not found or min(found) < 1:
        raise ModelError(f"--shape {text!r} is not understood: write for example --shape input=1,3,224,224")
    return name, found
