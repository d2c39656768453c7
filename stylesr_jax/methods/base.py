"""What a method is: typed settings, an objective, and the stages that minimise it.

A `Method` is a pytree: numbers are leaves, so that changing one compiles nothing; choices are
static. Its fields are its settings, with their default ("balanced") values; `presets` change some
of them. A `Stage` says how variables begin, what they decode to, and which optimiser moves them.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from jaxtyping import Float, Shaped

from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator, Noise
from stylesr_jax.methods.levers import diversity
from stylesr_jax.methods.view import Beginning, Context, Latents, Start, View
from stylesr_jax.runtime.pytrees import PyTreeNode, own_fields
from stylesr_jax.search.engine import Problem, Variables
from stylesr_jax.search.optimisers import ADAM
from stylesr_jax.search.schedules import Constant, Schedule

Value = float | int | str | bool
SMALL = 64  # px of small images
Rate = Literal["cosine", "constant", "ramped_cosine", "one_cycle_with_drop", "warm_up_and_down"]


def static(default: Any) -> Any:
    """A field that programs are compiled for: a choice, or a count that decides structure."""
    return struct.field(pytree_node=False, default=default)


# --- Methods --------------------------------------------------------------------------------


class Method(PyTreeNode):
    """A method and its settings.

    Attributes:
        name: as `--method` spells it.
        summary: one line for the help.
        source: the paper.
        presets: changes to the fields by preset; "paper" holds the published values.
        step_fields: the fields that count the steps of its stages.
        needs_prior, needs_perceptual: whether the flow prior or the LPIPS network is used.
        draws: whether solutions are random draws, whose spread is worth a map of its own.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Value]]] = {"fast": {}, "best": {}, "paper": {}}
    step_fields: ClassVar[tuple[str, ...]] = ()
    needs_prior: ClassVar[bool] = False
    needs_perceptual: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    @classmethod
    def resolve(
        cls, preset: str = "balanced", changes: Mapping[str, Value] | None = None
    ) -> "Self":
        """The method with the settings of a preset, and some of them changed.

        Raises:
            UserError: there is no such preset or setting, or a value has the wrong type.
        """
        if preset != "balanced" and preset not in cls.presets:
            choices = ", ".join(["balanced", *cls.presets])
            raise UserError(f"{cls.name} has no preset {preset!r}; choose one of {choices}")
        return cls(**cls.presets.get(preset, {})).changed(changes or {})

    def changed(self, changes: Mapping[str, Value]) -> "Self":
        """With some settings changed; text is read as the setting's type.

        Raises:
            UserError: there is no such setting, or a value has the wrong type.
        """
        kinds = get_type_hints(type(self))
        converted = {}
        for name, value in changes.items():
            if name not in self.settings:
                choices = ", ".join(sorted(self.settings)) or "none"
                raise UserError(f"{self.name} has no setting {name!r}; it has {choices}")
            converted[name] = _converted(f"{self.name}.{name}", value, kinds[name])
        return self.replace(**converted)

    @property
    def settings(self) -> dict[str, Value]:
        """Every setting by name."""
        return {field.name: getattr(self, field.name) for field in own_fields(self)}

    def make_stages(self) -> Iterator["Stage"]:
        """The searches, one after the other; none for a method that searches nothing.

        Raises:
            UserError: settings contradict one another.
        """
        yield from ()

    @property
    def used_step_fields(self) -> tuple[str, ...]:
        """Those of `step_fields` that count with these settings."""
        return self.step_fields

    @property
    def steps_in_all(self) -> int:
        """Gradient steps for one solution."""
        return sum(int(stage.steps) for stage in self.make_stages())

    def with_budget(self, evaluations: int) -> "Self":
        """With the steps of all stages scaled to sum to `evaluations`.

        If the sum cannot be met exactly it is the nearest below, but no stage has fewer steps
        than 1. A method without stages is left as it is.
        """
        steps = {n: int(getattr(self, n)) for n in self.used_step_fields if getattr(self, n)}
        total = self.steps_in_all
        if not total:
            return self
        scaled = {name: max(count * evaluations // total, 1) for name, count in steps.items()}
        rest = evaluations - self.replace(**scaled).steps_in_all
        for name in sorted(scaled, key=lambda n: -scaled[n]):
            change = max(rest, 1 - scaled[name])
            scaled[name] += change
            rest -= change
        return self.replace(**scaled)

    def from_styles(self) -> "Self":
        """The method as it begins from given styles, `Start.styles`.

        Raises:
            UserError: it cannot.
        """
        raise UserError(f"{self.name} cannot begin from given styles; leave out the start")

    def fitted(self, generator: Generator, side: int) -> "Self":
        """With what depends on the generator and on the input's size, the canvas's `side` px."""
        return self


def _converted(name: str, value: Any, kind: Any) -> Value:
    """A value as a setting's type has it."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            choices = ", ".join(get_args(kind))
            raise UserError(f"setting {name} is one of {choices}, not {value!r}")
        return value
    if kind is bool:
        if str(value).lower() not in ("true", "false"):
            raise UserError(f"{name} is true or false, not {value!r}")
        return str(value).lower() == "true"
    if kind is str:
        return str(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    whole = kind is int
    if not 0 <= number < 1e30 or (whole and number != int(number)):
        what = "a whole number, 0 or more" if whole else "a finite number, 0 or more"
        raise UserError(f"{name} must be {what}, not {value!r}")
    return int(number) if whole else number


class Search(Method):
    """A method that searches, with the levers for several different solutions (see `levers`)."""

    starts: Literal["own", "same"] = static("own")  # A: a start for each solution, or the same
    noise_std: float = 0.0  # B: of Gaussian noise on the reference, images in [-1, 1]
    inject_noise: float = 0.0  # C: of Gaussian noise added to activations of synthesis layers
    inject_layers: str = static("all")  # C: "all" or such as "0,3-8", numbered from the input
    diversity: float = 0.0  # D: weight of the distance between an image's solutions
    fidelity: float = 1.0  # how much of what solutions miss of the input is put in

    def objective(self, view: View) -> dict[str, Float[Array, ""]]:
        """The weighted terms of one start, by name: scalars that sum to the loss."""
        raise NotImplementedError


def stages_of(method: Method, generator: Generator | None = None) -> tuple["Stage", ...]:
    """A method's stages, with the solutions of an image tied together if `diversity` is on.

    Chains that sample stay apart: what ties them would change their density as others move. With
    a generator, coarse stages get the size of its small images.
    """
    stages = tuple(method.make_stages())
    if generator is not None:
        small = small_size(generator)
        stages = tuple(stage.replace(stop=small) if stage.coarse else stage for stage in stages)
    if not getattr(method, "diversity", 0.0):
        return stages
    return tuple(stage if stage.samples else stage.replace(tied=True) for stage in stages)


# --- Stages ---------------------------------------------------------------------------------


class Stage(Problem):
    """One search of a method.

    Attributes:
        method: its settings.
        rate, schedule: the learning rate, and its factor along the search.
        block: which block `Latents.activation` enters.
        coarse: whether it searches with small images, which a generator makes at a fraction of
            the cost; `stop`, their resolution, is then set by `stages_of`.
        stop: resolution of small images to search with; None renders in full.
    """

    method: Any = None
    rate: Array | float = 0.0
    schedule: Schedule = Constant()
    block: int = static(0)
    coarse: bool = static(False)
    stop: int | None = static(None)

    def start(self, given: Beginning) -> Variables:
        """Variables to begin from."""
        raise NotImplementedError

    def decode(self, context: Context, variables: Variables) -> Latents:
        """What variables mean."""
        raise NotImplementedError

    def terms(self, view: View) -> dict[str, Float[Array, ""]]:
        """What this stage minimises: the method's objective."""
        return self.method.objective(view)

    def diagnostics(self, optimiser_state: Any) -> dict[str, Shaped[Array, "..."]]:
        """Figures about a finished search, such as a sampler's acceptance rate."""
        return {}

    # What the engine asks for.

    def loss(
        self, context: Context, start: Start, variables: Variables
    ) -> tuple[dict[str, Float[Array, ""]], Float[Array, "H W 3"]]:
        """Weighted terms and the image."""
        view = self.view(context, start, variables)
        return self.terms(view), view.image

    def learning_rate(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        """The rate of a step."""
        return self.rate * self.schedule(progress)

    def optimiser(self) -> optax.GradientTransformation:
        """Adam with its usual decays."""
        return ADAM

    def batch_terms(
        self, context: Context, starts: Start, outputs: Float[Array, "B H W 3"]
    ) -> dict[str, Float[Array, " B"]]:
        """The distance between an image's solutions."""
        return {"diversity": self.method.diversity * diversity(starts.group, outputs)}

    # From variables to images.

    def latents(self, context: Context, start: Start, variables: Variables) -> Latents:
        """What variables mean, with the noise that the start injects."""
        latents = self.decode(context, variables)
        if start.injected is None:
            return latents
        maps = context.generator.stored_noise if latents.noise is None else latents.noise
        return latents._replace(noise=with_injected(maps, start))

    def view(self, context: Context, start: Start, variables: Variables) -> View:
        """One start, decoded and rendered."""
        latents = self.latents(context, start, variables)
        image = render(context.generator, latents, block=self.block, stop=self.stop)
        return View(context, start, latents, image, variables)


def with_injected(maps: Noise, start: Start) -> Noise:
    """Noise maps, and what a start injects."""
    return maps if start.injected is None else tuple(map(jnp.add, maps, start.injected))


def with_stored(context: Context, maps: Noise) -> Noise:
    """The searched noise maps, then the stored ones."""
    return (*maps, *context.generator.stored_noise[len(maps) :])


def render(
    generator: Generator, latents: Latents, *, block: int = 0, stop: int | None = None
) -> Float[Array, "H W 3"]:
    """One image (H, W, 3) of latents, or a small one of `stop` px."""
    if latents.synthesis is not None:
        params = {**generator.params, "synthesis": latents.synthesis}
        generator = generator.replace(params=params)  # type: ignore[attr-defined]
    start = _entry(latents, block)
    return generator.synthesise(latents.ws[None], latents.noise, start=start, stop=stop)[0]


def activation_entering(
    generator: Generator, latents: Latents, *, block: int, before: int = 0
) -> Any:
    """The activation of one image that enters `block`, from latents whose own enters `before`."""
    maps = generator.stored_noise if latents.noise is None else latents.noise
    start = _entry(latents, before)
    entering = generator.features(latents.ws[None], maps, block=block, start=start)
    return jax.tree.map(lambda x: x[0], entering)


def _entry(latents: Latents, block: int) -> tuple[int, Any] | None:
    """Where synthesis begins, for a generator: at latents' activation, or, None, at its input."""
    if latents.activation is None:
        return None
    return block, jax.tree.map(lambda x: x[None], latents.activation)


def small_size(generator: Generator) -> int | None:
    """The resolution of a generator's small images: 64 px or the next size; None: it has none."""
    half = generator.resolution // 2
    sizes = generator.config.image_resolutions
    return min((s for s in sizes if min(SMALL, half) <= s <= half), default=None)
