"""What methods are made of: terms, coordinates, stages, rates, settings.

A `Method` is named settings with their published or measured values, and a function that turns
the structural ones into stages. A `Stage` says how variables begin and what they decode to
(`Coordinates`), which terms are summed, how variables are projected and which optimiser moves
them. The methods themselves are in `methods.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator, Noise
from stylesr_jax.methods.levers import LEVERS, diversity
from stylesr_jax.methods.terms import Example, Latents, Shared, View, degraded
from stylesr_jax.search.engine import Problem, Rate, Variables
from stylesr_jax.search.optimisers import ADAM, NORMALISED

Value = float | int | str | bool
SKETCH_COST = 0.125  # of a step with a sketch, corrections included, in steps at full resolution


# --- The parts of a stage -------------------------------------------------------------------


class Term(NamedTuple):
    """A function of the objective, multiplied by the setting named `weight`."""

    name: str
    function: Callable[[View], Array]
    weight: str


@dataclass(frozen=True)
class Coordinates:
    """How one start's variables begin, and what they mean.

    Attributes:
        start: (key, index, shared, example, previous) -> variables. `index` counts an image's
            solutions, `previous` is what the stage before ended with, None in the first.
        decode: (shared, variables) -> latents.
    """

    start: Callable[[Array, Array, Shared, Example, Any], Variables]
    decode: Callable[[Shared, Variables], Latents]


def adam(shared: Shared) -> optax.GradientTransformation:
    """Adam with its usual decays."""
    return ADAM


def normalised(shared: Shared) -> optax.GradientTransformation:
    """Descent along gradients of unit length, each style's by itself."""
    return NORMALISED


@dataclass(frozen=True)
class Stage:
    """One search of a method; hashable by value, so that equal stages compile once."""

    coordinates: Coordinates
    terms: tuple[Term, ...]
    rate: Rate
    optimiser: Callable[[Shared], optax.GradientTransformation] = field(default=adam)
    learning_rate: str = "learning_rate"
    steps: str = "steps"
    block: int = 0  # of `Latents.activation`
    project: Callable[..., Variables] | None = None
    couple: Callable[..., dict[str, Array]] | None = None
    keep: Literal["best", "last"] = "best"
    pick: Callable[[Any], Variables] | None = None  # see `search.Problem`
    diagnose: Callable[[Any], dict[str, Array]] | None = None  # optimiser's state -> numbers
    sketch: bool = False  # may search with small images, see `sketched`
    stop: int | None = None  # the small images' resolution; None renders in full


def render(
    generator: Generator, latents: Latents, *, block: int = 0, stop: int | None = None
) -> Array:
    """One image (H, W, 3) of decoded latents, or a sketch of `stop` px."""
    if latents.synthesis is not None:
        params = {**generator.params, "synthesis": latents.synthesis}
        generator = generator.replace(params=params)  # type: ignore[attr-defined]
    start = None
    if latents.activation is not None:
        start = (block, jax.tree.map(lambda x: x[None], latents.activation))
    return generator.synthesise(latents.ws[None], latents.noise, start=start, stop=stop)[0]


def decode(
    coordinates: Coordinates, shared: Shared, example: Example, variables: Variables
) -> Latents:
    """One start's latents, with the noise that its example injects."""
    latents = coordinates.decode(shared, variables)
    if example.injected is None:
        return latents
    maps = shared.generator.stored_noise if latents.noise is None else latents.noise
    return latents._replace(noise=with_injected(maps, example))


def with_injected(maps: Noise, example: Example) -> Noise:
    """Noise maps, and what an example injects."""
    return maps if example.injected is None else tuple(map(jnp.add, maps, example.injected))


def view_of(stage: "Stage", shared: Shared, example: Example, variables: Variables) -> View:
    """One start, decoded and rendered, as a stage's terms see it."""
    latents = decode(stage.coordinates, shared, example, variables)
    image = render(shared.generator, latents, block=stage.block, stop=stage.stop)
    return View(shared, example, latents, image, variables)


@dataclass(frozen=True)
class _Loss:
    """A stage's weighted terms as the engine wants them."""

    stage: Stage

    def __call__(
        self, shared: Shared, example: Example, variables: Variables, progress: Array
    ) -> tuple[dict[str, Array], Array]:
        view = view_of(self.stage, shared, example, variables)
        terms = {
            term.name: shared.settings[term.weight] * term.function(view)
            for term in self.stage.terms
        }
        return terms, view.image


@dataclass(frozen=True)
class _Correct:
    """Measures what the sketch misses at these variables: A(G) - A(sketch)."""

    stage: Stage

    def __call__(self, shared: Shared, example: Example, variables: Variables) -> Example:
        latents = decode(self.stage.coordinates, shared, example, variables)
        whole = render(shared.generator, latents, block=self.stage.block)
        small = render(shared.generator, latents, block=self.stage.block, stop=self.stage.stop)
        correction = degraded(shared, whole) - degraded(shared, small)
        return example._replace(correction=correction)


@dataclass(frozen=True)
class _LearningRate:
    name: str

    def __call__(self, shared: Shared) -> Array:
        return shared.settings[self.name]


def problem_of(stage: Stage) -> Problem:
    """The engine's problem for a stage; equal stages give equal problems."""
    options: dict[str, Any] = {"couple": stage.couple, "keep": stage.keep, "pick": stage.pick}
    if stage.couple is None:
        options["terms"] = tuple(term.name for term in stage.terms)
    if stage.project is not None:
        options["project"] = stage.project
    if stage.stop is not None:
        options["refresh"] = _Correct(stage)
    return Problem(
        loss=_Loss(stage),
        optimiser=stage.optimiser,
        learning_rate=_LearningRate(stage.learning_rate),
        rate=stage.rate,
        **options,
    )


@dataclass(frozen=True)
class Method:
    """A method: what it is, its settings, its presets and its stages.

    Attributes:
        name: as `--method` spells it.
        summary: one line for the help.
        source: the paper.
        settings: every number and choice by name, with its default ("balanced") value.
        presets: changes to `settings` by preset; "paper" holds the published values.
        stages: settings -> stages; it looks at the choices (text, flags, counts), other numbers
            are compiled arguments, so that changing them compiles nothing.
        needs_prior, needs_perceptual: whether the flow prior or the LPIPS network is used.
        measure: generator -> numbers that join the settings before a search, or None.
        draws: whether solutions are random draws, whose spread is worth a map of its own.
        direct: (y (h, w, 3), resolution) -> image, for a method that searches nothing: it has no
            stages, and no levers.
    """

    name: str
    summary: str
    source: str
    settings: Mapping[str, Value]
    presets: Mapping[str, Mapping[str, Value]]
    stages: Callable[[Mapping[str, Value]], tuple[Stage, ...]]
    needs_prior: bool = False
    needs_perceptual: bool = False
    measure: Callable[[Generator], dict[str, Array]] | None = None
    draws: bool = False
    direct: Callable[[Array, int], Array] | None = None

    def resolve(
        self, preset: str = "balanced", changes: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        """Settings of a preset with some of them changed.

        Raises:
            UserError: there is no such preset or setting, or a value has the wrong type.
        """
        if preset != "balanced" and preset not in self.presets:
            known = ", ".join(["balanced", *self.presets])
            raise UserError(f"{self.name} has no preset {preset!r}; choose one of {known}")
        levers = LEVERS if self.direct is None else {}
        settings = {**levers, **self.settings, **self.presets.get(preset, {})}
        for name, value in (changes or {}).items():
            if name not in settings:
                known = ", ".join(sorted(settings)) or "none"
                raise UserError(f"{self.name} has no setting {name!r}; it has {known}")
            settings[name] = _converted(f"{self.name}.{name}", value, type(settings[name]))
        return settings


def _converted(name: str, value: Value, kind: type) -> Value:
    if isinstance(value, str) and kind is bool:
        if value.lower() not in ("true", "false"):
            raise UserError(f"{name} is true or false, not {value!r}")
        return value.lower() == "true"
    try:
        converted = kind(value)
        if kind is int and converted != float(value):
            raise ValueError
        if kind in (int, float) and not 0 <= converted < 1e30:
            raise ValueError
        return converted
    except (TypeError, ValueError):
        numbers = {int: "a whole number, 0 or more", float: "a finite number, 0 or more"}
        what = numbers.get(kind, kind.__name__)
        raise UserError(f"{name} must be {what}, not {value!r}") from None


def stages_of(method: Method, settings: Mapping[str, Value]) -> tuple[Stage, ...]:
    """A method's stages, with the solutions of an image tied together if `diversity` is on.

    Chains that sample stay apart: what ties them would change their density as others move.

    Raises:
        UserError: a setting is not one of its choices.
    """
    stages = method.stages(settings)
    if not settings.get("diversity"):
        return stages
    return tuple(
        stage if stage.pick is not None else replace(stage, couple=diversity) for stage in stages
    )


def sketched(stages: tuple[Stage, ...], generator: Generator, size: int) -> tuple[Stage, ...]:
    """The stages with the resolution of their sketches, for observations of `size` px.

    A sketch is an image with which synthesis stops early, twice the observation's size at least
    and half the generator's at most; its gradient costs a fraction of the full one's. Every few
    steps the full image is rendered, and what the sketch misses of its low-resolution version is
    added from then on, so that the search ends where the full image agrees with the observation.
    (Defect correction: Böhmer, Hemker & Stetter, "The Defect Correction Approach", 1984.) Where
    there is no such image the steps render in full.
    """
    stop = sketch_size(generator, size)
    return tuple(replace(stage, stop=stop if stage.sketch else None) for stage in stages)


def sketch_size(generator: Generator, size: int) -> int | None:
    """The resolution of sketches for observations of `size` px; None where there are none."""
    sizes = generator.config.image_resolutions
    return min((s for s in sizes if 2 * size <= s <= generator.resolution // 2), default=None)


def full_steps(stages: tuple[Stage, ...], settings: Mapping[str, Value]) -> float:
    """What the stages' steps cost, about, in full ones; `sketched` says which are sketches."""
    costs = (1.0 if stage.stop is None else SKETCH_COST for stage in stages)
    return sum(c * int(settings[s.steps]) for c, s in zip(costs, stages, strict=True))


def racers(settings: Mapping[str, Value]) -> int:
    """How many of a solution's tries race for it; 1 is no race."""
    tried = min(int(settings.get("racers", 1)), int(settings.get("tries", 1)))
    return tried if tried > 1 and settings["starts"] == "own" else 1


def race_steps(settings: Mapping[str, Value]) -> int:
    """Steps with which starts race for each solution but an image's first; 0 without a race."""
    count = racers(settings)
    return count * int(settings["race_steps"]) if count > 1 else 0


def with_budget(
    method: Method, settings: Mapping[str, Value], evaluations: int
) -> dict[str, Value]:
    """The settings with the steps of all stages scaled to sum to `evaluations`.

    Stages that share one setting keep sharing it; if the sum cannot be met exactly it is the
    nearest below, but no stage has fewer steps than 1. A method without stages is left as it is,
    and nobody races for a start: that would be beyond the budget.
    """
    names = [stage.steps for stage in method.stages(settings)]
    total = sum(int(settings[name]) for name in names)
    if total == 0:
        return dict(settings)
    scaled = {n: max(int(settings[n]) * evaluations // total, 1) for n in dict.fromkeys(names)}
    rest = evaluations - sum(scaled[name] for name in names)
    for name in sorted(scaled, key=lambda n: -scaled[n]):
        change = max(rest // names.count(name), 1 - scaled[name])
        scaled[name] += change
        rest -= change * names.count(name)
    alone = {"racers": 1} if race_steps(settings) else {}
    return {**settings, **scaled, **alone}


def traced_settings(settings: Mapping[str, Value]) -> dict[str, Array]:
    """The numbers among the settings as compiled arguments."""
    return {
        name: jnp.asarray(value, jnp.float32)
        for name, value in sorted(settings.items())
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


# --- Rates ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ramps(ABC):
    """A schedule with a way up, a way down, or both.

    Attributes:
        up, down: shares of the search that they take.
    """

    up: float = 0.0
    down: float = 0.0

    @abstractmethod
    def __call__(self, progress: Array) -> Array: ...

    def rising(self, progress: Array) -> Array:
        """0 to 1 on the way up, and on."""
        return progress / max(self.up, 1e-6)

    def falling(self, progress: Array) -> Array:
        """Down to 1 before the way down, and to 0 on it."""
        return (1.0 - progress) / max(self.down, 1e-6)


class RampedCosine(Ramps):
    """StyleGAN2's projector schedule: a linear way up, a plateau, and a cosine down to 0."""

    def __call__(self, progress: Array) -> Array:
        rising = jnp.minimum(1.0, self.rising(progress) + 0.02)  # at 0 a step would be wasted
        falling = jnp.clip(self.falling(progress), 0.0, 1.0)
        return rising * (0.5 - 0.5 * jnp.cos(jnp.pi * falling))


class OneCycleWithDrop(Ramps):
    """PULSE's "linear 1-cycle with drop": 0.1 up to 1 and back, then down to 0.001."""

    def __call__(self, progress: Array) -> Array:
        cycle = max(1.0 - self.down, 1e-6)
        cycling = (9.0 * (1.0 - jnp.abs(2.0 * progress / cycle - 1.0)) + 1.0) / 10.0
        dropping = 0.1 + (1.0 - self.falling(progress)) * (0.001 - 0.1)
        return jnp.where(progress < cycle, cycling, dropping)


class WarmUpAndDown(Ramps):
    """Ranger21's: linearly up, a plateau, and linearly down to 0."""

    def __call__(self, progress: Array) -> Array:
        rising = self.rising(progress) + 0.01
        return jnp.minimum(jnp.minimum(1.0, rising), self.falling(progress))


def cosine(progress: Array) -> Array:
    """A half cosine from 1 to 0."""
    return 0.5 + 0.5 * jnp.cos(jnp.pi * progress)


def constant(progress: Array) -> Array:
    """1 throughout."""
    return jnp.ones_like(progress)


RATES: dict[str, Rate] = {
    "cosine": cosine,
    "constant": constant,
    "ramped_cosine": RampedCosine(up=0.05, down=0.25),
    "one_cycle_with_drop": OneCycleWithDrop(down=0.1),
    "warm_up_and_down": WarmUpAndDown(up=0.22, down=0.28),
}


def rate_of(settings: Mapping[str, Value]) -> Rate:
    """The schedule that the setting "rate" names, with the settings "ramp_up" and "ramp_down".

    Raises:
        UserError: there is no such schedule, or its ramps take more than the whole search.
    """
    rate = choose(settings, "rate", RATES)
    if not isinstance(rate, Ramps):
        return rate
    up, down = (
        float(settings.get(f"ramp_{way}", default))
        for way, default in (("up", rate.up), ("down", rate.down))
    )
    if up + down > 1.0:
        raise UserError(f"ramps are shares of the search, together at most 1, not {up} and {down}")
    return replace(rate, up=up, down=down)


def choose(settings: Mapping[str, Value], name: str, options: Mapping[str, Any]) -> Any:
    """The option that a setting names. Raises UserError with the options there are."""
    value = settings[name]
    if value not in options:
        raise UserError(f"setting {name} is one of {', '.join(options)}, not {value!r}")
    return options[str(value)]
