"""Solutions that are consistent by construction: what the observation says is put back in.

A generator's image G misses the observation y by r = y - A G. The correction adds the image that
explains r and is likely a priori, where what a generator misses is taken to be smooth on the scale
of the observation's pixels, with covariance K:

    x = G + F K A^T (A K A^T + Sigma)^-1 (y - A G)

Sigma is the variance of the observation's noise, F in [0, 1] how much of the correction is taken.
K = B B^T, with B bicubic interpolation from a grid of twice the observation's resolution, so that
all the linear algebra happens on small images.

Sources: Bahat & Michaeli, "Explorable Super Resolution", CVPR 2020 (consistency enforcing
module); Wang et al., "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model",
ICLR 2023; the formula is the Kalman filter's gain.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from stylesr_jax.degradations import Bicubic, Compose, Degradation, resize
from stylesr_jax.solver.covariance import Covariance

ROUNDS = 8  # of corrections, as clipping to [-1, 1] undoes a little of each
ITERATIONS = 60  # of conjugate gradients at most
FLOOR = 1e-5  # of Sigma: 8-bit rounding's variance on [-1, 1] is 5e-6
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
    stages = degradation.stages if isinstance(degradation, Compose) else (degradation,)
    observe = Compose((Bicubic(size=(height, width)), *stages))  # A B
    adjoint = jax.linear_transpose(observe, jax.ShapeDtypeStruct(grid, image.dtype))

    noise = noise.replace(variance=noise.variance + FLOOR)

    def once(c: Array, _: None) -> tuple[Array, None]:
        (z,) = adjoint(c)
        residual = target - degradation(corrected(image, z)) - noise(c)
        more, _ = jax.scipy.sparse.linalg.cg(system, residual, maxiter=ITERATIONS)
        return c + more, None

    def system(c: Array) -> Array:
        return observe(adjoint(c)[0]) + noise(c)

    c = jax.lax.scan(once, jnp.zeros_like(target), None, length=ROUNDS)[0]
    return fidelity * adjoint(c)[0]


def corrected(
    image: Float[Array, "H W C"], correction: Float[Array, "grid_h grid_w C"]
) -> Float[Array, "H W C"]:
    """An image (H, W, C) with a correction of any size added, clipped to [-1, 1]."""
    return jnp.clip(image + resize(correction, (image.shape[0], image.shape[1])), -1.0, 1.0)
