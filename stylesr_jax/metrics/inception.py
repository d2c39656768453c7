"""The Inception network of FID, for weights that the user gives: they do not come with the package.

Inception v3 as Heusel et al. use it through TensorFlow's 2015 graph, in the layout of pytorch-fid's
port: average pools that leave out the padding, and a maximum pool in the last block.
"""

import os
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from stylesr_jax.degradations import resize
from stylesr_jax.errors import UserError
from stylesr_jax.runtime import weights

Params = dict[str, Any]
SIDE = 299  # pixels of the network's input
WIDTH = 2048  # features


@dataclass(frozen=True)
class _Conv:
    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: Literal["SAME", "VALID"] = "SAME"


@dataclass(frozen=True)
class _Pool:
    kind: Literal["max", "average"]
    stride: int = 1
    padding: Literal["SAME", "VALID"] = "SAME"


@dataclass(frozen=True)
class _Split:
    """Branches side by side, joined along the channels."""

    branches: tuple[tuple["_Conv | _Pool | _Split", ...], ...]
    name: str = ""


_Unit = _Conv | _Pool | _Split
_SHRINK = _Pool("max", stride=2, padding="VALID")
_AVERAGE = _Pool("average")
_ROW, _COLUMN = (1, 7), (7, 1)


def _down(name: str, features: int) -> _Conv:
    return _Conv(name, features, (3, 3), stride=2, padding="VALID")


def _block_a(name: str, pool: int) -> _Split:
    return _Split(
        (
            (_Conv("branch1x1", 64),),
            (_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, (5, 5))),
            (
                _Conv("branch3x3dbl_1", 64),
                _Conv("branch3x3dbl_2", 96, (3, 3)),
                _Conv("branch3x3dbl_3", 96, (3, 3)),
            ),
            (_AVERAGE, _Conv("branch_pool", pool)),
        ),
        name,
    )


def _block_b(name: str) -> _Split:
    return _Split(
        (
            (_down("branch3x3", 384),),
            (
                _Conv("branch3x3dbl_1", 64),
                _Conv("branch3x3dbl_2", 96, (3, 3)),
                _down("branch3x3dbl_3", 96),
            ),
            (_SHRINK,),
        ),
        name,
    )


def _block_c(name: str, width: int) -> _Split:
    return _Split(
        (
            (_Conv("branch1x1", 192),),
            (
                _Conv("branch7x7_1", width),
                _Conv("branch7x7_2", width, _ROW),
                _Conv("branch7x7_3", 192, _COLUMN),
            ),
            (
                _Conv("branch7x7dbl_1", width),
                _Conv("branch7x7dbl_2", width, _COLUMN),
                _Conv("branch7x7dbl_3", width, _ROW),
                _Conv("branch7x7dbl_4", width, _COLUMN),
                _Conv("branch7x7dbl_5", 192, _ROW),
            ),
            (_AVERAGE, _Conv("branch_pool", 192)),
        ),
        name,
    )


def _block_d(name: str) -> _Split:
    return _Split(
        (
            (_Conv("branch3x3_1", 192), _down("branch3x3_2", 320)),
            (
                _Conv("branch7x7x3_1", 192),
                _Conv("branch7x7x3_2", 192, _ROW),
                _Conv("branch7x7x3_3", 192, _COLUMN),
                _down("branch7x7x3_4", 192),
            ),
            (_SHRINK,),
        ),
        name,
    )


def _block_e(name: str, pool: _Pool) -> _Split:
    def pair(prefix: str) -> _Split:
        return _Split(
            ((_Conv(f"{prefix}a", 384, (1, 3)),), (_Conv(f"{prefix}b", 384, (3, 1)),)),
        )

    return _Split(
        (
            (_Conv("branch1x1", 320),),
            (_Conv("branch3x3_1", 384), pair("branch3x3_2")),
            (
                _Conv("branch3x3dbl_1", 448),
                _Conv("branch3x3dbl_2", 384, (3, 3)),
                pair("branch3x3dbl_3"),
            ),
            (pool, _Conv("branch_pool", 192)),
        ),
        name,
    )


_NETWORK: tuple[_Unit, ...] = (
    _down("Conv2d_1a_3x3", 32),
    _Conv("Conv2d_2a_3x3", 32, (3, 3), padding="VALID"),
    _Conv("Conv2d_2b_3x3", 64, (3, 3)),
    _SHRINK,
    _Conv("Conv2d_3b_1x1", 80),
    _Conv("Conv2d_4a_3x3", 192, (3, 3), padding="VALID"),
    _SHRINK,
    _block_a("Mixed_5b", 32),
    _block_a("Mixed_5c", 64),
    _block_a("Mixed_5d", 64),
    _block_b("Mixed_6a"),
    _block_c("Mixed_6b", 128),
    _block_c("Mixed_6c", 160),
    _block_c("Mixed_6d", 160),
    _block_c("Mixed_6e", 192),
    _block_d("Mixed_7a"),
    _block_e("Mixed_7b", _AVERAGE),
    _block_e("Mixed_7c", _Pool("max")),
)


def _collect(units: tuple[_Unit, ...], width: int, prefix: str, shapes: dict[str, Any]) -> int:
    for unit in units:
        if isinstance(unit, _Conv):
            shapes[prefix + unit.name] = (*unit.kernel, width, unit.features)
            width = unit.features
        elif isinstance(unit, _Split):
            inner = f"{prefix}{unit.name}." if unit.name else prefix
            width = sum(_collect(branch, width, inner, shapes) for branch in unit.branches)
    return width


def kernel_shapes() -> dict[str, tuple[int, int, int, int]]:
    """The shape (h, w, in, out) of every convolution's kernel by its published name."""
    shapes: dict[str, tuple[int, int, int, int]] = {}
    _collect(_NETWORK, 3, "", shapes)
    return shapes


def _pool(x: Array, pool: _Pool) -> Array:
    window, strides = (1, 3, 3, 1), (1, pool.stride, pool.stride, 1)
    if pool.kind == "max":
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, pool.padding)
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, pool.padding)
    ones = jnp.ones((1, *x.shape[1:3], 1), jnp.float32)
    return total / jax.lax.reduce_window(ones, 0.0, jax.lax.add, window, strides, pool.padding)


def _run(units: tuple[_Unit, ...], x: Array, prefix: str, params: Params) -> Array:
    for unit in units:
        if isinstance(unit, _Conv):
            weights = params[prefix + unit.name]
            x = jax.lax.conv_general_dilated(
                x,
                weights["kernel"],
                (unit.stride, unit.stride),
                unit.padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = jax.nn.relu(x + weights["bias"])
        elif isinstance(unit, _Pool):
            x = _pool(x, unit)
        else:
            inner = f"{prefix}{unit.name}." if unit.name else prefix
            branches = [_run(branch, x, inner, params) for branch in unit.branches]
            x = jnp.concatenate(branches, axis=-1)
    return x


def inception_features(x: Float[Array, "..."], *, params: Params) -> Float[Array, "2048"]:
    """FID's features of one image (H, W, 3) in [-1, 1]: (2048,), the last pool.

    The image is resized to 299x299 bilinearly without antialiasing, as FID's original graph and
    pytorch-fid do. Raises UserError for other shapes.
    """
    if x.ndim != 3 or x.shape[-1] != 3:
        raise UserError(f"inception takes images (height, width, 3), got {tuple(x.shape)}")
    x = resize(x, (SIDE, SIDE), kernel="bilinear", antialias=False)
    return jnp.mean(_run(_NETWORK, x[None], "", params)[0], axis=(0, 1))


def load_inception(path: str | os.PathLike[str]) -> Params:
    """The parameters of FID's Inception: {name: {"kernel": (h, w, in, out), "bias": (out,)}}.

    path: a file in our format; `loading.inception_path` gives it for pytorch-fid's weights
    (pt_inception-2015-12-05-6726825d.pth). Raises UserError for missing files and other weights.
    """
    tree, header = weights.load(path)
    shapes = {n: {"kernel": shape, "bias": shape[-1:]} for n, shape in kernel_shapes().items()}
    if header.get("kind") != "inception" or jax.tree.map(np.shape, tree) != shapes:
        raise UserError(f"{path} does not hold FID's Inception network")
    return jax.tree.map(lambda array: jnp.asarray(np.asarray(array), jnp.float32), tree)
