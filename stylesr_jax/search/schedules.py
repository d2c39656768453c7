"""Learning-rate schedules: the progress of a search, 0 to 1, to a factor of its rate."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from stylesr_jax.errors import UserError
from stylesr_jax.runtime.pytrees import PyTreeNode


class Schedule(PyTreeNode):
    """A factor of the learning rate along a search."""

    def __call__(self, progress: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The factor at `progress`, a scalar in [0, 1)."""
        raise NotImplementedError


class Constant(Schedule):
    """1 throughout."""

    def __call__(self, progress: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.ones_like(progress)


class Cosine(Schedule):
    """A half cosine from 1 to 0."""

    def __call__(self, progress: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return 0.5 + 0.5 * jnp.cos(jnp.pi * progress)


class Ramps(Schedule):
    """A schedule with a way up, a way down, or both.

    Attributes:
        up, down: shares of the search that they take.
    """

    up: Array | float = 0.0
    down: Array | float = 0.0

    def rising(self, progress: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """0 to 1 on the way up, and on."""
        return progress / jnp.maximum(self.up, 1e-6)

    def falling(self, progress: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Down to 1 before the way down, and to 0 on it."""
        return (1.0 - progress) / jnp.maximum(self.down, 1e-6)


class RampedCosine(Ramps):
    """StyleGAN2's projector schedule: a linear way up, a plateau, and a cosine down to 0."""

    def __call__(self, progress: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        rising = jnp.minimum(1.0, self.rising(progress) + 0.02)  # at 0 a step would be wasted
        falling = jnp.clip(self.falling(progress), 0.0, 1.0)
        return rising * (0.5 - 0.5 * jnp.cos(jnp.pi * falling))


class OneCycleWithDrop(Ramps):
    """PULSE's "linear 1-cycle with drop": 0.1 up to 1 and back, then down to 0.001."""

    def __call__(self, progress: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        cycle = jnp.maximum(1.0 - self.down, 1e-6)
        cycling = (9.0 * (1.0 - jnp.abs(2.0 * progress / cycle - 1.0)) + 1.0) / 10.0
        dropping = 0.1 + (1.0 - self.falling(progress)) * (0.001 - 0.1)
        return jnp.where(progress < cycle, cycling, dropping)


class WarmUpAndDown(Ramps):
    """Ranger21's: linearly up, a plateau, and linearly down to 0."""

    def __call__(self, progress: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        rising = self.rising(progress) + 0.01
        return jnp.minimum(jnp.minimum(1.0, rising), self.falling(progress))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "cosine": Cosine,
    "constant": Constant,
    "ramped_cosine": RampedCosine,
    "one_cycle_with_drop": OneCycleWithDrop,
    "warm_up_and_down": WarmUpAndDown,
}


def schedule(name: str, *, up: Any = 0.0, down: Any = 0.0) -> Schedule:
    """The schedule of a name; `up` and `down` are the shares that its ramps take, if it has any.

    Raises:
        UserError: there is no such schedule, or the ramps take more than the whole search.
    """
    if name not in SCHEDULES:
        raise UserError(f"a rate is one of {', '.join(SCHEDULES)}, not {name!r}")
    if up + down > 1.0:
        raise UserError(f"ramps are shares of the search, together at most 1, not {up} and {down}")
    kind: Any = SCHEDULES[name]
    return kind(up=up, down=down) if issubclass(kind, Ramps) else kind()
