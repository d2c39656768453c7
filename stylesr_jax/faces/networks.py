"""What both face networks are made of: depthwise and pointwise convolutions with a shortcut.

Parameters are read from the embedded files as float16 and computed with as float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from stylesr_jax.errors import UserError
from stylesr_jax.runtime import weights

Params = dict[str, Any]


def load_params(name: str, kind: str) -> Params:
    """The float32 parameters in an embedded file.

    Raises:
        UserError: there is no such file, or it holds another network.
    """
    path = weights.find_weights(name)
    tree, header = weights.load(path)
    if header.get("kind") != kind:
        raise UserError(f"{path} does not hold a {kind}; reinstall the package")
    return jax.tree.map(lambda value: jnp.asarray(np.asarray(value, np.float32)), tree)


def convolve(x: Array, params: Params, *, stride: int = 1, padding: str = "SAME") -> Array:
    """x (B, H, W, C) with kernel (k, k, C, F) and bias (F,): (B, H / stride, W / stride, F)."""
    y = jax.lax.conv_general_dilated(
        x,
        params["kernel"],
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + params["bias"]


def pointwise(x: Array, params: Params) -> Array:
    """x (..., C) times kernel (C, F), plus bias (F,)."""
    return jnp.dot(x, params["kernel"]) + params["bias"]


def depthwise(x: Array, params: Params, *, stride: int = 1) -> Array:
    """x (B, H, W, C) with kernel (3, 3, C) and bias (C,), zero-padded as TensorFlow's SAME.

    Nine shifted products: XLA's grouped convolution is over ten times slower on CPUs.
    """
    height, width = x.shape[1] // stride, x.shape[2] // stride
    before = 1 if stride == 1 else 0
    padded = jnp.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
    # Stored: XLA's CPU backend would compute it again for each of its nine readers.
    padded = jax.lax.platform_dependent(
        padded, cpu=jax.lax.optimization_barrier, default=lambda x: x
    )
    total = params["bias"]
    for i in range(3):
        for j in range(3):
            rows = slice(i, i + stride * (height - 1) + 1, stride)
            columns = slice(j, j + stride * (width - 1) + 1, stride)
            total = total + padded[:, rows, columns] * params["kernel"][i, j]
    return total


def halve(x: Array) -> Array:
    """x (B, H, W, C) with the largest of every two by two: (B, H / 2, W / 2, C)."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def activate(x: Array, params: Params) -> Array:
    """ReLU, with a slope (C,) below zero where the network has one (PReLU)."""
    if "slope" not in params:
        return jax.nn.relu(x)
    return jnp.where(x >= 0.0, x, params["slope"] * x)


def block(x: Array, params: Params, *, stride: int = 1) -> Array:
    """x (B, H, W, C) plus its separable convolution, activated: (B, H / stride, W / stride, F).

    The shortcut takes the largest of every two by two if the stride is 2, and zeros for new
    channels. Source: Bazarevsky et al., "BlazeFace", 2019.
    """
    y = pointwise(depthwise(x, params["depthwise"], stride=stride), params["pointwise"])
    shortcut = x if stride == 1 else halve(x)
    new = y.shape[-1] - x.shape[-1]
    shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, new)))
    return activate(shortcut + y, params)
