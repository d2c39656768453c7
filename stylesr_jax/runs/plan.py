"""What a run is to do: methods with their settings, and all that decides its numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from stylesr_jax.degradations import Degradation, degradation_identity
from stylesr_jax.errors import UserError
from stylesr_jax.generators.base import Generator
from stylesr_jax.loading import generator_from_file, generator_path
from stylesr_jax.methods import method_named
from stylesr_jax.methods.base import Method, Stage, Value, stages_of
from stylesr_jax.metrics.lpips import load_features
from stylesr_jax.priors.flow import flow_sha256, load_prior
from stylesr_jax.runtime import files
from stylesr_jax.runtime.weights import DEFAULT
from stylesr_jax.solver.covariance import Covariance

EVALUATIONS = 100  # default budget of a variant's solution, in gradient steps


class Shard(NamedTuple):
    """A part of the images, for one of several runs that know nothing of each other.

    Attributes:
        index: number of the part, from 0.
        count: how many there are.
    """

    index: int
    count: int

    def of(self, paths: Sequence[Path]) -> list[Path]:
        """Every `count`-th of the sorted paths."""
        return sorted(paths)[self.index :: self.count]

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


@dataclass(frozen=True)
class Variant:
    """A method with its settings under a name.

    Attributes:
        label: how tables and figures call it.
        method: the method, the budget included.
        preset: which of its presets the settings began with.
    """

    label: str
    method: Method
    preset: str

    @property
    def settings(self) -> dict[str, Value]:
        """All settings of the method."""
        return self.method.settings

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The searches of the method, one after the other."""
        return stages_of(self.method)

    @property
    def evaluations(self) -> int:
        """Gradient steps for one solution."""
        return self.method.steps_in_all


def variant(
    text: str,
    *,
    preset: str = "balanced",
    changes: Mapping[str, Value] | None = None,
    evaluations: int | None = EVALUATIONS,
) -> Variant:
    """A variant from `[LABEL=]NAME[@PRESET][:SETTING=VALUE]...`; `changes` come after its own.

    A `preset` that the method does not have leaves it "balanced", unless the text names it.

    Raises:
        UserError: there is no such method, preset or setting.
    """
    head, *pairs = text.strip().split(":")
    label, equals, name = head.rpartition("=")
    name, at, own_preset = name.partition("@")
    given: dict[str, Any] = {}
    for pair in pairs:
        setting, sign, value = pair.partition("=")
        if not sign:
            raise UserError(f"--methods {text}: write NAME:SETTING=VALUE, e.g. rls:lambda_w=0.1")
        given[setting.strip()] = value.strip()
    kind = method_named(name.strip())
    chosen = own_preset if at else preset if preset in kind.presets else "balanced"
    method = kind.resolve(chosen, {**given, **(changes or {})})
    if evaluations is not None:
        method = method.with_budget(evaluations)
    return Variant(label if equals else text.strip(), method, chosen)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides the numbers of a run, and where they are written.

    Attributes:
        variants: methods that search for each image.
        out: the folder of the results.
        generator, prior, perceptual: as `solve` takes them.
        weights_file: of the generator, in this project's format.
        identity: hashes of the weights, so that other weights do not continue a run.
        lr_size: longer side of the low-resolution image, for plain bicubic data; None where
            originals are not degraded so.
        degradation: of originals brought to the generator's resolution (so that its pixels mean
            the same for every image); None is bicubic.
        truth: whether the search is told the data's degradation, or assumes plain bicubic.
        solutions: starts for each image and variant.
        seed: of the starts and of the data's noise, with the content of each image.
        batch: starts searched together on a device; None is as many as fit, 1 on CPUs.
        mesh: devices to spread starts over, see `solve.device_mesh`; None takes the first one.
        shard: number of this run and how many there are; it does its part of the images.
        noise_std: of the inputs, in [-1, 1]; None reads it from each input.
        start: (num_ws, w_dim) styles that all searches begin from, or None.
        noise_mask: (h, w) in [0, 1], where the setting "noise_std" adds noise; None: everywhere.
    """

    variants: tuple[Variant, ...]
    out: Path
    generator: Generator
    prior: Any = None
    perceptual: Any = None
    weights_file: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    lr_size: int | None
    degradation: Degradation | None = None
    truth: bool = False
    solutions: int = 1
    seed: int = 0
    batch: int | None = None
    mesh: Mesh | None = None
    shard: Shard | None = None
    noise_mask: np.ndarray | None = None
    noise_std: float | None = None
    start: np.ndarray | None = None

    @cached_property
    def degradation_identity(self) -> str:
        """The degradation of the data, with a hash of the masks in it."""
        return degradation_identity(self.degradation)

    @property
    def own_truths(self) -> bool:
        """Whether each image's search inverts a degradation of its own."""
        return self.truth and self.degradation is not None

    @property
    def told_noise(self) -> Covariance | None:
        """Sigma of every input, where it was told."""
        return None if self.noise_std is None else Covariance(variance=self.noise_std**2)

    def part(self, paths: Sequence[Path]) -> Sequence[Path]:
        """The images that this run is to do."""
        return paths if self.shard is None else self.shard.of(paths)

    @property
    def devices(self) -> int:
        """Over how many devices starts are spread."""
        return 1 if self.mesh is None else self.mesh.size


def load_parts(
    variants: Sequence[Variant],
    *,
    generator: str | None = None,
    label: int | None = None,
    prior: str | None = None,
) -> dict[str, Any]:
    """The generator, prior, feature network and their hashes, as `Plan` takes them.

    Raises:
        UserError: a file is missing, a conditional generator has no class, or there is no prior
            for the generator.
    """
    path = generator_path(generator or DEFAULT).absolute()
    loaded = generator_from_file(path)
    if label is not None:
        loaded = loaded.with_class(label, key=jax.random.key(0))
    elif loaded.label_dim:
        raise UserError(f"{loaded.name} is conditional: choose --class 0 to {loaded.label_dim - 1}")
    identity: dict[str, Any] = {"weights_sha256": files.sha256(path)}
    if label is not None:
        identity["class"] = label
    parts: dict[str, Any] = {"generator": loaded, "weights_file": path, "identity": identity}
    if any(v.method.needs_prior for v in variants):
        parts["prior"] = load_prior(loaded, path=prior)
        identity["prior_sha256"] = flow_sha256(parts["prior"])
    if any(v.method.needs_perceptual for v in variants):
        parts["perceptual"] = load_features("vgg16")
    return parts
