"""FID's Inception weights, as pytorch-fid publishes them (.pth), to our format.

    python -m convert.inception FILE_OR_ADDRESS --out inception-fid.safetensors

Each batch normalisation is folded into its convolution; the classifier is left out.
"""

import argparse
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from convert.archive import Archive
from convert.arrays import is_tensor, read_torch_stream, tensor, zip_storages
from convert.detect import map_file
from convert.fetch import Model, download
from convert.safe_pickle import read_pickle
from stylesr_jax.errors import UserError, exit_code
from stylesr_jax.metrics.inception import kernel_shapes
from stylesr_jax.runtime import files, weights

EPSILON = 0.001  # of the batch normalisations
LICENCE = (
    "Apache-2.0 (pytorch-fid's port of TensorFlow's Inception graph of 2015-12-05); trained on "
    "ImageNet, whose images are for non-commercial research."
)


def read_state_dict(data: memoryview) -> dict[str, np.ndarray]:
    """The tensors of a file of `torch.save`, new or old format, by name; other entries are left.

    Raises:
        UserError: it is another file, or damaged.
    """
    if bytes(data[:4]) == b"PK\x03\x04":
        archive = Archive(data)
        roots = [n.removesuffix("data.pkl") for n in archive.names if n.endswith("/data.pkl")]
        if len(roots) != 1:
            raise UserError("this zip archive is no file of torch.save")
        order = f"{roots[0]}byteorder"
        big = order in archive.names and bytes(archive.read(order)) == b"big"
        value, _ = read_pickle(archive.read(f"{roots[0]}data.pkl"))
        storages = zip_storages(archive, roots[0], ">" if big else "<")
    else:
        value, storages = read_torch_stream(data)
    if not isinstance(value, dict):
        raise UserError("the file holds no state dict")
    return {
        name: tensor(entry, storages)
        for name, entry in value.items()
        if isinstance(name, str) and is_tensor(entry)
    }


def fold(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """The parameters as `inception.load_inception` gives them, from pytorch-fid's names.

    Raises:
        UserError: an array is missing or of another shape.
    """
    params: dict[str, Any] = {}
    for name, shape in kernel_shapes().items():
        height, width, channels, features = shape
        expected = {"conv.weight": (features, channels, height, width)} | {
            f"bn.{part}": (features,) for part in ("weight", "bias", "running_mean", "running_var")
        }
        for part, size in expected.items():
            found = state.get(f"{name}.{part}")
            if found is None or found.shape != size:
                raise UserError(
                    f"these are not FID's Inception weights: {name}.{part} is "
                    f"{'missing' if found is None else found.shape}"
                )
        kernel, gain, bias, mean, variance = (state[f"{name}.{part}"] for part in expected)
        scale = gain.astype(np.float64) / np.sqrt(variance.astype(np.float64) + EPSILON)
        params[name] = {
            "kernel": (kernel.transpose(2, 3, 1, 0) * scale).astype(np.float32),
            "bias": (bias - mean * scale).astype(np.float32),
        }
    return params


def convert_file(source: Path, out: Path) -> None:
    """Write the weights in `source` to `out`.

    Raises:
        UserError: it is another file, or damaged.
    """
    params = fold(read_state_dict(map_file(source)))
    header = {
        "kind": "inception",
        "source": source.name,
        "source_sha256": files.sha256(source),
        "licence": LICENCE,
    }
    weights.save(out, params, header)


def download_weights(url: str) -> Path:
    """Download the weights into the user's cache unless they are there.

    Raises:
        UserError: the address does not give the file.
    """
    name = Path(urlsplit(url).path)
    model = Model(
        name=name.stem or "inception",
        title="FID's Inception",
        resolution=299,
        classes=0,
        dataset="ImageNet",
        format="torch",
        licence=LICENCE,
        urls=(url,),
    )
    return download(model, files.cache_dir() / "downloads")


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Convert pytorch-fid's Inception weights.")
    parser.add_argument("source", help="a file, or an address (https://...)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)

    def work() -> None:
        remote = args.source.startswith(("http://", "https://"))
        convert_file(download_weights(args.source) if remote else Path(args.source), args.out)
        print(f"{args.out}: {files.describe_file(args.out)}")

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
