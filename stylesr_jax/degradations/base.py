"""What a degradation is: y = A(x), then noise, which is apart from A."""

import hashlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from stylesr_jax.degradations.arguments import Argument
from stylesr_jax.degradations.resize import apply_separable
from stylesr_jax.runtime.pytrees import PyTreeNode


class Degradation(PyTreeNode):
    """y = A(x) for one image (H, W, C) float32 in [-1, 1].

    Attributes:
        name: as texts such as "blur(2)" spell it.
        about: one line for the help.
        example: a text that makes one.
        arguments: what stands between the brackets.
        linear: whether A is linear.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    example: ClassVar[str]
    arguments: ClassVar[tuple[Argument, ...]] = ()
    linear: ClassVar[bool] = True

    @classmethod
    def make(cls, **values: Any) -> "Degradation":
        """The degradation with these arguments."""
        return cls(**values)

    def __call__(self, x: Float[Array, "H W C"]) -> Float[Array, "h w c"]:
        """A(x): (H, W, C) -> (h, w, c), deterministic and differentiable."""
        raise NotImplementedError

    def degrade(self, key: Key[Array, ""], x: Float[Array, "H W C"]) -> Float[Array, "h w c"]:
        """A(x) with whatever is random drawn from `key`, for making data. Not clipped."""
        return self.realise(key)(x)

    def realise(self, key: Key[Array, ""]) -> "Degradation":
        """The degradation that `degrade(key, ...)` applies: its random parameters drawn."""
        return self


class Separable(Degradation):
    """A linear degradation that is one matrix on the rows and one on the columns."""

    def matrices(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The matrices (h, height) and (w, width)."""
        raise NotImplementedError

    def __call__(self, x: Float[Array, "H W C"]) -> Float[Array, "h w c"]:
        """A(x): (H, W, C) -> (h, w, C)."""
        return apply_separable(*self.matrices(x.shape[-3], x.shape[-2]), x)


class Noise(Degradation):
    """A stage that only data see: calling it, as a search does, changes nothing."""

    @property
    def variance(self) -> float | None:
        """Of what `sample` adds to each value; None where it adds nothing like that."""
        return None

    def __call__(self, x: Float[Array, "H W C"]) -> Float[Array, "h w c"]:
        """x, unchanged."""
        return x

    def sample(self, key: Key[Array, ""], x: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
        """x (H, W, C) with noise."""
        raise NotImplementedError

    def degrade(self, key: Key[Array, ""], x: Float[Array, "H W C"]) -> Float[Array, "h w c"]:
        """x with noise drawn from `key`. Not clipped."""
        return self.sample(key, x)


class Compose(Degradation):
    """Stages applied from left to right.

    Neighbouring separable stages become one pair of matrices when A is applied, so a blur before
    down-sampling costs nothing. Noise stages do nothing in A.
    """

    stages: tuple[Degradation, ...] = ()

    @property
    def linear(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether every stage of A is linear."""
        return all(stage.linear for stage in self.stages)

    def __call__(self, x: Float[Array, "H W C"]) -> Float[Array, "h w c"]:
        """A(x): (H, W, C) -> (h, w, c)."""
        pair: tuple[np.ndarray, np.ndarray] | None = None
        for stage in self.stages:
            if isinstance(stage, Noise):
                continue
            if isinstance(stage, Separable):
                if pair is None:
                    pair = stage.matrices(x.shape[0], x.shape[1])
                else:
                    rows, columns = stage.matrices(pair[0].shape[0], pair[1].shape[0])
                    pair = (rows @ pair[0], columns @ pair[1])
                continue
            if pair is not None:
                x, pair = apply_separable(*pair, x), None
            x = stage(x)
        return x if pair is None else apply_separable(*pair, x)

    def degrade(self, key: Key[Array, ""], x: Float[Array, "H W C"]) -> Float[Array, "h w c"]:
        """The stages in order, with noise and the true codec. Not clipped."""
        for i, stage in enumerate(self.stages):
            x = stage.degrade(jax.random.fold_in(key, i), x)
        return x

    def realise(self, key: Key[Array, ""]) -> "Compose":
        """Every stage realised, with the same keys as in `degrade`."""
        stages = (s.realise(jax.random.fold_in(key, i)) for i, s in enumerate(self.stages))
        return Compose(tuple(stages))

    def __str__(self) -> str:
        return "|".join(str(stage) for stage in self.stages)


def stages_in(degradation: Degradation) -> tuple[Degradation, ...]:
    """The stages of a composition; a degradation that is none is its only stage."""
    return degradation.stages if isinstance(degradation, Compose) else (degradation,)


def degradation_identity(degradation: Degradation | None) -> str:
    """What a degradation is, with a hash of what it holds: two masks of one name differ."""
    if degradation is None:
        return "None"
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(degradation):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return f"{degradation} {digest.hexdigest()[:16]}"


def output_shape(degradation: Degradation, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """The shape (h, w, c) of A(x) for x of `shape` (H, W, C), without computing it."""
    return jax.eval_shape(degradation, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
