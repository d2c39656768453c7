"""Solutions that are consistent by construction: what the observation says is put back in.

A generator's image G misses the observation y by r = y - A G. The correction adds the image that
explains r and is likely a priori, where what a generator misses is taken to be smooth on the scale
of the observation's pixels, with covariance K:

    x = G + F K A^T (A K A^T + Sigma)^-1 (y - A G)

Sigma is the variance of the observation's noise, F in [0, 1] how much of the correction is taken.
K = k B S B^T, with B bicubic interpolation from a grid of twice the observation's resolution, so
that all the linear algebra happens on small images, and S smooth, see `coloured`. The scale k is
such that r has the power that it has: E |r|^2 = k tr(A B S B^T A^T) + tr(Sigma). It decides nothing
where the observation is exact.

Sources: Bahat & Michaeli, "Explorable Super Resolution", CVPR 2020 (consistency enforcing
module); Wang et al., "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model",
ICLR 2023; the formula is the Kalman filter's gain.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from stylesr_jax.degradations import Bicubic, Compose, Degradation, resize
from stylesr_jax.degradations.base import stages_in
from stylesr_jax.solver.covariance import UNKNOWN, Covariance, scaled_blocks

ROUNDS = 8  # of corrections, as clipping to [-1, 1] undoes a little of each
ITERATIONS = 100  # of conjugate gradients at most
FLOOR = 1e-6  # of Sigma, as a share of k
LEAST = 0.1  # share of the residual's power that is never noise
COARSEST = 4  # pixels of the smallest grid
GRID = 2  # the grid's pixels for each of the observation's


def correction(
    image: Float[Array, "H W C"],
    target: Float[Array, "h w c"],
    degradation: Degradation,
    noise: Covariance = Covariance(),  # noqa: B008
    fidelity: Float[Array, ""] | float = 1.0,
) -> Float[Array, "grid_h grid_w C"]:
    """What `corrected` adds to an image so that `degradation` takes it to `target`.

    Args:
        image: G, (H, W, C) in [-1, 1].
        target: y, (h, w, c) in [-1, 1].
        degradation: A, linear, from (H, W, C) to (h, w, c).
        noise: Sigma, of the target.
        fidelity: F in [0, 1].

    Returns:
        (min(2 h, H), min(2 w, W), C): the correction on its grid.
    """
    height, width, channels = image.shape
    grid = (min(GRID * target.shape[0], height), min(GRID * target.shape[1], width), channels)
    observe = Compose((Bicubic(size=(height, width)), *stages_in(degradation)))  # A B
    adjoint = jax.linear_transpose(observe, jax.ShapeDtypeStruct(grid, image.dtype))

    def spread(c: Array) -> Array:
        return coloured(adjoint(c)[0])

    def explained(c: Array) -> Array:
        return observe(spread(c))

    residual = jax.lax.stop_gradient(target - degradation(image))
    powers = powers_of(residual, explained, noise)
    scale = powers.scale
    trust = jax.lax.rsqrt(1.0 + noise.variance / (scale * powers.explained))
    gains = scale * (powers.explained * smooth_gains(*target.shape[:2]) + FLOOR) + powers.noise

    def about_inverse(c: Array) -> Array:
        """The preconditioner: the image is one block, and what is unknown is left alone."""
        return trust * scaled_blocks(trust * c, 1.0 / gains)

    def once(c: Array, _: None) -> tuple[Array, None]:
        residual = target - degradation(corrected(image, scale * spread(c))) - sigma(c)
        more, _ = jax.scipy.sparse.linalg.cg(system, residual, maxiter=ITERATIONS, M=about_inverse)
        return c + more, None

    def system(c: Array) -> Array:
        return scale * explained(c) + sigma(c)

    def sigma(c: Array) -> Array:
        return noise(c) + FLOOR * scale * c

    c = jax.lax.scan(once, jnp.zeros_like(target), None, length=ROUNDS)[0]
    return fidelity * scale * spread(c)


def coloured(grid: Float[Array, "h w C"]) -> Float[Array, "h w C"]:
    """S times values on the grid: interpolations from grids of all halvings, and their adjoints.

    The power of S falls as 1/f^3 with frequency f: a little more steeply than that of images
    (1/f^2, Field 1987), as generators miss fine detail less. So smooth a K tells noise from it.
    """
    height, width, channels = grid.shape
    enlarge = partial(resize, size=(height, width))
    total, rows, columns, weight = grid, height, width, 1.0
    while min(rows, columns) >= 2 * COARSEST:
        rows, columns, weight = rows // 2, columns // 2, 2.0 * weight
        shape = jax.ShapeDtypeStruct((rows, columns, channels), grid.dtype)
        total = total + weight * enlarge(jax.linear_transpose(enlarge, shape)(grid)[0])
    return total


class Powers(NamedTuple):
    """Of an observation's values, on average.

    Attributes:
        scale: k.
        explained: tr(A B S B^T A^T), a value's share.
        noise: tr(Sigma), a value's share.
    """

    scale: Float[Array, ""]
    explained: Float[Array, ""]
    noise: Float[Array, ""]


def powers_of(
    residual: Float[Array, "h w c"],
    explained: Callable[[Array], Array],
    noise: Covariance,
) -> Powers:
    """k by moments; traces are estimated with one fixed probe of +-1 (Hutchinson 1990).

    Args:
        residual: r = y - A G.
        explained: multiplies by A B S B^T A^T.
        noise: Sigma; what it says is unknown does not count.
    """
    seen = jnp.asarray(noise.variance < 0.5 * UNKNOWN, residual.dtype)
    observed = jnp.broadcast_to(seen, residual.shape)
    probe = jax.random.rademacher(jax.random.key(0), residual.shape, residual.dtype) * observed
    count = jnp.maximum(jnp.sum(observed), 1)
    power = jnp.sum(jnp.square(residual) * observed) / count
    noise_power = jnp.sum(probe * noise(probe)) / count
    beside_noise = jnp.maximum(power - noise_power, LEAST * power)
    trace = jnp.maximum(jnp.sum(probe * explained(probe)) / count, 1e-4)
    return Powers(jnp.maximum(beside_noise, 1e-8) / trace, trace, noise_power)


def smooth_gains(height: int, width: int) -> Float[np.ndarray, "{height} {width}"]:
    """About the eigenvalues of A B S B^T A^T by cosine frequency, of mean 1."""
    rows, columns = np.arange(height)[:, None] / height, np.arange(width)[None, :] / width
    gains = np.maximum(np.hypot(rows, columns), COARSEST / min(height, width)) ** -3.0
    return (gains / gains.mean()).astype(np.float32)


def corrected(
    image: Float[Array, "H W C"], correction: Float[Array, "grid_h grid_w C"]
) -> Float[Array, "H W C"]:
    """An image (H, W, C) with a correction of any size added, clipped to [-1, 1]."""
    return jnp.clip(image + resize(correction, (image.shape[0], image.shape[1])), -1.0, 1.0)
