"""Terms of objectives: small functions of one start's `View`.

A term returns an unweighted scalar; a method's `objective` weights terms and names them. Signs are
such that less is better: log p enters with a minus sign inside its term.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from stylesr_jax.degradations import resize
from stylesr_jax.methods.view import View
from stylesr_jax.metrics.lpips import lpips


def l1_sum(view: View) -> Float[Array, ""]:
    """||y - A(G(w))||_1, the Laplace likelihood of RLS; images in [-1, 1]."""
    return jnp.sum(jnp.abs(view.residual))


def l1_mean(view: View) -> Float[Array, ""]:
    """The same divided by the number of observed values, whatever the size of y."""
    return l1_sum(view) / view.observed


def negative_log_prior(view: View) -> Float[Array, ""]:
    """-P_w = -(1/L) sum_i log p_F(w_i). Source: RLS, equation 5."""
    return -jnp.mean(view.flow[1])


def negative_log_prior_whitened(view: View) -> Float[Array, ""]:
    """The same with the density of u = whiten(w), for what moves in u and compares densities."""
    whitened = view.context.prior.whiten(view.latents.ws)
    return -jnp.mean(view.context.prior.log_prob_whitened(whitened))


def gaussian_norm(view: View) -> Float[Array, ""]:
    """-P_gauss = (1/L) sum_i (||F(w_i)||_2 - sqrt(d))^2. Source: RLS, equation 6."""
    norms = jnp.sqrt(jnp.sum(jnp.square(view.flow[0]), axis=-1) + 1e-12)
    return jnp.mean(jnp.square(norms - jnp.sqrt(float(view.latents.ws.shape[-1]))))


def whitened_norm(view: View) -> Float[Array, ""]:
    """Mean square of u = whiten(w): -log of a Gaussian fitted to W, up to a factor."""
    return jnp.mean(jnp.square(view.whitened))


def whitened_spread(view: View) -> Float[Array, ""]:
    """Mean square of u_i - mean u: P_cross where all directions are of one scale."""
    return jnp.mean(jnp.square(view.whitened - jnp.mean(view.whitened, axis=0)))


def cross(view: View) -> Float[Array, ""]:
    """-P_cross = sum_{i<j} ||w_i - w_j||_2^2, as L times the spread around the mean style."""
    ws = view.latents.ws
    return ws.shape[0] * jnp.sum(jnp.square(ws - jnp.mean(ws, axis=0)))


# --- Squared errors -------------------------------------------------------------------------


def l2_sum(view: View) -> Float[Array, ""]:
    """||y - A(G)||_2^2; images in [-1, 1]. Source: Bora et al. 2017, equation 3."""
    return jnp.sum(jnp.square(view.residual))


def mse(view: View) -> Float[Array, ""]:
    """Mean squared error over the observed values; images in [-1, 1]."""
    return l2_sum(view) / view.observed


def floored_mse(view: View, eps: Float[Array, ""] | float) -> Float[Array, ""]:
    """max(mean squared error, eps); images in [0, 1]. Source: PULSE's code."""
    return jnp.maximum(0.25 * mse(view), eps)


def mse_255(view: View) -> Float[Array, ""]:
    """Mean squared error on the scale of 8 bits. Source: BRGM's code."""
    return 127.5**2 * mse(view)


# --- Perception -----------------------------------------------------------------------------

SMALLEST = 16  # px that VGG16 needs


def perceptual(view: View) -> Float[Array, ""]:
    """LPIPS-VGG of A(G) and y; what was not observed is taken from y for both.

    Images of less than 16 px are enlarged to that.
    """
    return _lpips_of(view, *_observed_pair(view))


def perceptual_pyramid(view: View) -> Float[Array, ""]:
    """The sum of LPIPS-VGG of A(G) and y at y's size and at every halving to 16 px or more.

    Source: Poirier-Ginter & Lalonde 2023, section 3.3.
    """
    return sum(_lpips_of(view, *pair) for pair in _pyramid(view))  # type: ignore[return-value]


def l1_coarsest(view: View) -> Float[Array, ""]:
    """Mean |A(G) - y| at the coarsest size of the pyramid; images in [0, 1]."""
    degraded, target = _pyramid(view)[-1]
    return 0.5 * jnp.mean(jnp.abs(degraded - target))


def _observed_pair(view: View) -> tuple[Array, Array]:
    """A(G), with y where nothing was observed, and y."""
    target, mask = view.start.target, view.start.mask
    return view.low * mask + target * (1.0 - mask), target


def _pyramid(view: View) -> list[tuple[Array, Array]]:
    """The observed pair at its size and at every halving to `SMALLEST` px or more."""
    pairs = [_observed_pair(view)]
    while (size := pairs[-1][1].shape[0] // 2) >= SMALLEST:
        pairs.append(tuple(resize(image, (size, size)) for image in pairs[-1]))  # type: ignore
    return pairs


def _lpips_of(view: View, degraded: Array, target: Array) -> Float[Array, ""]:
    height, width, channels = target.shape
    if min(height, width) < SMALLEST:
        shape = (max(height, SMALLEST), max(width, SMALLEST), channels)
        degraded, target = (jax.image.resize(x, shape, "linear") for x in (degraded, target))
    return lpips(degraded, target, net="vgg16", params=view.context.perceptual)


# --- Styles ---------------------------------------------------------------------------------


def _pairwise_angles(rows: Array) -> Array:
    """2 atan2(||a - b||, ||a + b||) for all pairs of rows (n, d): (n, n), 0 to pi.

    The square roots' gradient is 0, not infinite, where two rows are equal or opposite.
    """

    def norm(difference: Array) -> Array:
        square = jnp.sum(jnp.square(difference), axis=-1)
        positive = square > 0.0
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)

    return 2.0 * jnp.arctan2(norm(rows[:, None] - rows[None]), norm(rows[:, None] + rows[None]))


def geodesic_cross(rows: Float[Array, "n d"]) -> Float[Array, ""]:
    """Mean over all pairs of rows (n, d) of their angle squared, times d / 8.

    Source: PULSE, section 4.1 (GEOCROSS), with its code's constants.
    """
    return jnp.mean(jnp.square(_pairwise_angles(rows))) * rows.shape[-1] / 8.0


def mean_style(view: View, w_std: Float[Array, ""] | float) -> Float[Array, ""]:
    """mean(((w - mean w) / w_std)^2). Source: BRGM."""
    offset = view.latents.ws - view.context.generator.statistics["w_mean"]
    return jnp.mean(jnp.square(offset / w_std))


def collinear(view: View) -> Float[Array, ""]:
    """mean over all pairs of |1 - cos(w_i, w_j)|. Source: BRGM."""
    ws = view.latents.ws
    unit = ws / jnp.sqrt(jnp.sum(jnp.square(ws), axis=-1, keepdims=True) + 1e-12)
    return jnp.mean(jnp.abs(1.0 - unit @ unit.T))


def latent_norm(view: View) -> Float[Array, ""]:
    """||z||_2^2. Source: Bora et al. 2017, equation 3."""
    return jnp.sum(jnp.square(view.variables["z"]))
