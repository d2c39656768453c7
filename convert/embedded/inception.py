"""FID's Inception weights, as pytorch-fid publishes them (.pth), to our format.

    python -m convert.embedded inception FILE_OR_ADDRESS --out inception-fid.safetensors

Each batch normalisation is folded into its convolution; the classifier is left out.
"""

from pathlib import Path
from typing import Any

import numpy as np

from convert.download import download, model_at
from convert.raw import map_file
from convert.torch_files import is_tensor, read_torch, tensor
from stylesr_jax.errors import UserError
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
    value, storages = read_torch(data)
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
    return download(model_at(url), files.cache_dir() / "downloads")


def make(source: str | Path, out: Path) -> list[Path]:
    """Write the weights in a file, or at an address, to the file `out`.

    Raises:
        UserError: it is another file, or damaged.
    """
    text = str(source)
    remote = text.startswith(("http://", "https://"))
    convert_file(download_weights(text) if remote else Path(text), out)
    return [out]
