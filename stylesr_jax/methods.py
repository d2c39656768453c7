"""Each method as data for the engine: settings, presets, stages.

A method is a `Method`: named settings with their published or measured values, and a function
that turns the structural ones into stages. A stage says how variables begin and what they decode
to (`Coordinates`), which terms are summed, how variables are projected and which optimiser moves
them. To add a method, write one more of these.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from stylesr_jax import objective
from stylesr_jax.errors import UserError
from stylesr_jax.objective import Example, Latents, Shared, View
from stylesr_jax.search import Problem, Rate, Variables

Value = float | int | str | bool


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
        start: (key, index, shared, previous) -> variables. `index` counts an image's solutions,
            `previous` is what the stage before ended with, None in the first.
        decode: (shared, variables) -> latents.
    """

    start: Callable[[Array, Array, Shared, Any], Variables]
    decode: Callable[[Shared, Variables], Latents]


@dataclass(frozen=True)
class Stage:
    """One search of a method; hashable by value, so that equal stages compile once."""

    coordinates: Coordinates
    terms: tuple[Term, ...]
    rate: Rate
    optimiser: Callable[[Shared], optax.GradientTransformation] = field(default=lambda _: ADAM)
    learning_rate: str = "learning_rate"
    steps: str = "steps"
    block: int = 0  # of `Latents.activation`
    project: Callable[..., Variables] | None = None
    couple: Callable[..., dict[str, Array]] | None = None
    keep: str = "best"


ADAM = optax.chain(optax.scale_by_adam(b1=0.9, b2=0.999), optax.scale(-1.0))


def render(shared: Shared, latents: Latents, *, block: int = 0, stop: int | None = None) -> Array:
    """One image (H, W, 3) of decoded latents."""
    generator = shared.generator
    if latents.synthesis is not None:
        params = {**generator.params, "synthesis": latents.synthesis}
        generator = generator.replace(params=params)  # type: ignore[attr-defined]
    start = None
    if latents.activation is not None:
        start = (block, jax.tree.map(lambda x: x[None], latents.activation))
    return generator.synthesise(latents.ws[None], latents.noise, start=start, stop=stop)[0]


@dataclass(frozen=True)
class _Loss:
    """A stage's weighted terms as the engine wants them."""

    stage: Stage

    def __call__(
        self, shared: Shared, example: Example, variables: Variables, progress: Array
    ) -> tuple[dict[str, Array], Array]:
        latents = self.stage.coordinates.decode(shared, variables)
        image = render(shared, latents, block=self.stage.block)
        view = View(shared, example, latents, image)
        terms = {
            term.name: shared.settings[term.weight] * term.function(view)
            for term in self.stage.terms
        }
        return terms, image


@dataclass(frozen=True)
class _LearningRate:
    name: str

    def __call__(self, shared: Shared) -> Array:
        return shared.settings[self.name]


def problem_of(stage: Stage) -> Problem:
    """The engine's problem for a stage; equal stages give equal problems."""
    options: dict[str, Any] = {"couple": stage.couple, "keep": stage.keep}
    if stage.project is not None:
        options["project"] = stage.project
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
        stages: settings -> stages; it looks at the choices (text, flags), numbers are compiled
            arguments, so that changing them compiles nothing.
        needs_prior, needs_perceptual: whether the flow prior or the LPIPS network is used.
    """

    name: str
    summary: str
    source: str
    settings: Mapping[str, Value]
    presets: Mapping[str, Mapping[str, Value]]
    stages: Callable[[Mapping[str, Value]], tuple[Stage, ...]]
    needs_prior: bool = False
    needs_perceptual: bool = False

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
        settings = {**self.settings, **self.presets.get(preset, {})}
        for name, value in (changes or {}).items():
            if name not in settings:
                raise UserError(
                    f"{self.name} has no setting {name!r}; it has {', '.join(sorted(settings))}"
                )
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
        if kind is float and not -1e30 < converted < 1e30:
            raise ValueError
        return converted
    except ValueError:
        what = {int: "a whole number", float: "a finite number"}.get(kind, kind.__name__)
        raise UserError(f"{name} must be {what}, not {value!r}") from None


def traced_settings(settings: Mapping[str, Value]) -> dict[str, Array]:
    """The numbers among the settings as compiled arguments."""
    return {
        name: jnp.asarray(value, jnp.float32)
        for name, value in sorted(settings.items())
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


# --- Rates ----------------------------------------------------------------------------------


def ramped_cosine(progress: Array) -> Array:
    """StyleGAN2's projector schedule: up over the first 5%, a cosine down over the last 25%."""
    up = jnp.minimum(1.0, progress / 0.05 + 0.02)
    down = jnp.clip((1.0 - progress) / 0.25, 0.0, 1.0)
    return up * (0.5 - 0.5 * jnp.cos(jnp.pi * down))


def cosine(progress: Array) -> Array:
    """A half cosine from 1 to 0."""
    return 0.5 + 0.5 * jnp.cos(jnp.pi * progress)


def constant(progress: Array) -> Array:
    """1 throughout."""
    return jnp.ones_like(progress)


RATES: dict[str, Rate] = {
    "cosine": cosine,
    "constant": constant,
    "ramped_cosine": ramped_cosine,
}


def choose(settings: Mapping[str, Value], name: str, options: Mapping[str, Any]) -> Any:
    """The option that a setting names. Raises UserError with the options there are."""
    value = settings[name]
    if value not in options:
        raise UserError(f"setting {name} is one of {', '.join(options)}, not {value!r}")
    return options[str(value)]


# --- Latent coordinates ---------------------------------------------------------------------


def start_style(key: Array, index: Array, shared: Shared) -> Array:
    """w to begin a solution from: (w_dim,).

    The mean w for an image's first solution and, `spread` of the way from there, a mapped
    latent of its own for every other one, in whitened coordinates.
    """
    generator = shared.generator
    mean = generator.statistics["w_mean"]
    drawn = generator.map_latents(jax.random.normal(key, (1, generator.z_dim)))[0]
    share = jnp.where(index == 0, shared.settings["spread_first"], shared.settings["spread"])
    whiten, unwhiten = shared.prior.whiten, shared.prior.unwhiten
    blend = whiten(mean) + share * (whiten(drawn) - whiten(mean))
    return jnp.where(share == 0.0, mean, jnp.where(share == 1.0, drawn, unwhiten(blend)))


def _rows(settings: Mapping[str, Value]) -> Callable[[Shared], int]:
    """How many styles are searched: one for all layers in W, one for each in W+."""
    choose(settings, "space", {"w+": None, "w": None})
    return _all_rows if settings["space"] == "w+" else _one_row


def _all_rows(shared: Shared) -> int:
    return shared.generator.num_ws


def _one_row(shared: Shared) -> int:
    return 1


@dataclass(frozen=True)
class _StartStyles:
    rows: Callable[[Shared], int]
    whitened: bool

    def __call__(self, key: Array, index: Array, shared: Shared, previous: Any) -> Variables:
        w = start_style(key, index, shared)
        point = shared.prior.whiten(w) if self.whitened else w
        return {"latent": jnp.broadcast_to(point, (self.rows(shared), point.shape[-1]))}


@dataclass(frozen=True)
class _DecodeStyles:
    whitened: bool

    def __call__(self, shared: Shared, variables: Variables) -> Latents:
        point = variables["latent"]
        ws = shared.prior.unwhiten(point) if self.whitened else point
        num_ws, w_dim = shared.generator.num_ws, shared.generator.w_dim
        return Latents(ws=jnp.broadcast_to(ws, (num_ws, w_dim)))


def style_coordinates(settings: Mapping[str, Value]) -> Coordinates:
    """Styles in W or W+ ("space"), searched as they are or whitened ("coordinates")."""
    whitened = choose(settings, "coordinates", {"whitened": True, "raw": False})
    return Coordinates(_StartStyles(_rows(settings), whitened), _DecodeStyles(whitened))


# --- RLS ------------------------------------------------------------------------------------


def _rls_stages(settings: Mapping[str, Value]) -> tuple[Stage, ...]:
    likelihood = choose(settings, "reduction", {"sum": objective.l1_sum, "mean": objective.l1_mean})
    terms = (
        Term("l1", likelihood, "lambda_l1"),
        Term("prior", objective.prior, "lambda_w"),
        Term("gauss", objective.gaussian_norm, "lambda_g"),
        Term("cross", objective.cross, "lambda_c"),
    )
    return (
        Stage(
            coordinates=style_coordinates(settings),
            terms=terms,
            rate=choose(settings, "rate", RATES),
            optimiser=_adam,
        ),
    )


def _adam(shared: Shared) -> optax.GradientTransformation:
    return ADAM


RLS = Method(
    name="rls",
    summary="regularised latent search: L1 likelihood and a normalising-flow prior on W+",
    source="Gheisari & Genovesio, NeurIPS 2022 workshop (RLS)",
    settings={
        "steps": 100,
        "learning_rate": 0.1,
        "rate": "cosine",
        "space": "w+",
        "coordinates": "whitened",
        "reduction": "sum",
        "lambda_l1": 1.0,
        "lambda_w": 0.05,
        "lambda_g": 0.0,
        "lambda_c": 0.0,
        "spread": 1.0,
        "spread_first": 0.0,
    },
    presets={
        "fast": {"steps": 50},
        "best": {"steps": 300},
        # Section 4: Adam, 500 steps at 0.5 in w, from the mean; L1 as a sum makes the weights
        # of one order. Several solutions start from mapped latents.
        "paper": {
            "steps": 500,
            "learning_rate": 0.5,
            "rate": "constant",
            "coordinates": "raw",
            "lambda_w": 1e-4,
            "lambda_g": 2e-4,
            "lambda_c": 0.01,
        },
    },
    stages=_rls_stages,
    needs_prior=True,
)

METHODS: dict[str, Method] = {method.name: method for method in (RLS,)}


def method_named(name: str) -> Method:
    """A method by its name. Raises UserError with the names there are."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}; choose one of {', '.join(METHODS)}")
    return METHODS[name]
