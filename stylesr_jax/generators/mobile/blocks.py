"""Whole blocks of MobileStyleGAN, computed by XLA or in native code."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from stylesr_jax.generators.mobile.native import blocks as native
from stylesr_jax.generators.mobile.native import library
from stylesr_jax.generators.mobile.separable import (
    Blocks,
    haar_synthesis,
    modulated_pointwise,
    separable_rows,
)
from stylesr_jax.generators.mobile.strips import Neighbours, map_strips

Params = Mapping[str, Any]


# --- one image's rows -----------------------------------------------------------------------


def image_rows(
    x: Float[Array, "R W C"], style: Float[Array, " C"], weights: Params
) -> Float[Array, "2*R 2*W 3"]:
    """A modulated pointwise convolution to the Haar bands of an RGB image."""
    return haar_synthesis(modulated_pointwise(x, style, weights["weight"]) + weights["bias"])


def block_rows(
    near: Neighbours, rows: Params, shared: Params, saved: Params | None
) -> tuple[Array, Params]:
    """Modulated Haar up-sampling and two separable layers, then perhaps the image.

    rows: "x" (R / 2 + 2, W / 2, C), "noise1" and "noise2" (R + 2, W) -> (R, W, features), and
    what each separable layer put out, without the rows that belong to other strips; `saved` is
    that with one more row on either side.
    """
    styles, weights = shared["styles"], shared["weights"]
    saved = saved or {}
    first = haar_synthesis(rows["x"] * styles["up"])
    second = separable_rows(
        first,
        jnp.ones(first.shape[0]),
        rows["noise1"],
        styles["conv1"],
        weights["conv1"],
        saved.get("conv1"),
    )
    # A row beyond the image's edge is padding for the next layer.
    edges = (near.above[None], jnp.ones(second.shape[0] - 2, bool), near.below[None])
    valid = jnp.concatenate(edges).astype(second.dtype)
    saved_x = saved["conv2"][1:-1] if saved else None
    x = separable_rows(
        second, valid, rows["noise2"][1:-1], styles["conv2"], weights["conv2"], saved_x
    )
    residuals = {"conv1": second[1:-1], "conv2": x}
    if "image" in styles:
        x = image_rows(x, styles["image"], weights["image"])
    return x, residuals


# --- in XLA ---------------------------------------------------------------------------------


def _block(
    strips: int, x: Array, styles: Params, weights: Params, noise1: Array, noise2: Array
) -> Array:
    """`block_rows` of whole images, in so many strips, computed by XLA.

    x (N, H, W, C), styles (N, ...), noise (1 or N, 2H, 2W) -> (N, 2H, 2W, features) or the image.
    """

    def one_image(x: Array, styles: Params, noise1: Array, noise2: Array) -> Array:
        whole = {"x": x, "noise1": noise1, "noise2": noise2}
        return map_strips(block_rows, whole, {"styles": styles, "weights": weights}, strips=strips)

    shared = [len(m) == 1 for m in (noise1, noise2)]
    noise1, noise2 = (m[0] if s else m for s, m in zip(shared, (noise1, noise2), strict=True))
    return jax.vmap(one_image, in_axes=(0, 0, *(None if s else 0 for s in shared)))(
        x, styles, noise1, noise2
    )


def xla_blocks(
    strips: tuple[int, ...], x: Float[Array, "N H W C"], blocks: Blocks
) -> Float[Array, "N h w F"]:
    """One block after the other, computed by XLA, each in so many strips."""
    for count, block in zip(strips, blocks, strict=True):
        x = _block(count, x, *block)
    return x


# --- in native code -------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def native_blocks(
    strips: tuple[int, ...], x: Float[Array, "N H W C"], blocks: Blocks
) -> Float[Array, "N h w F"]:
    """`xla_blocks` in native code; `strips` is for gradients of weights, which XLA computes."""
    return native.forward(x, blocks)[0]


def _native_blocks_forward(strips: tuple[int, ...], x: Any, blocks: Any) -> tuple[Array, tuple]:
    features, values = jax.tree.map(lambda a: a.value, (x, blocks))
    if any(weight.perturbed for block in blocks for weight in jax.tree.leaves(block.weights)):
        out, pull = jax.vjp(partial(xla_blocks, strips), features, values)
        return out, (pull, None)
    out, residuals = native.forward(features, values, for_gradient=True)
    # A noise map goes along, for its shape, only where its gradient is wanted.
    kept = [
        block._replace(
            noise1=block.noise1 if wanted.noise1.perturbed else None,
            noise2=block.noise2 if wanted.noise2.perturbed else None,
        )
        for block, wanted in zip(values, blocks, strict=True)
    ]
    return out, (None, (kept, residuals))


def _native_blocks_backward(strips: tuple[int, ...], saved: tuple, grad: Array) -> tuple:
    pull, kept = saved
    if kept is None:
        return pull(grad)
    blocks, residuals = kept
    return native.backward(blocks, residuals, grad)


native_blocks.defvjp(_native_blocks_forward, _native_blocks_backward, symbolic_zeros=True)


# --- either way -----------------------------------------------------------------------------


def compute_blocks(
    strips: tuple[int, ...], x: Float[Array, "N H W C"], blocks: Blocks, *, in_native: bool
) -> Float[Array, "N h w F"]:
    """One block after the other; in native code where that is wanted, and can be.

    Args:
        strips: in how many strips XLA computes each.
        x: (N, H, W, C), features before the first block's up-sampling.
        blocks: their arguments; only the last may have an image.
        in_native: native code is wanted.

    Returns:
        (N, H', W', features) of the last block, or its image.
    """
    single = all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((x, blocks)))
    run = native_blocks if in_native and single and library.ready() else xla_blocks
    return run(strips, x, blocks)
