"""NIQE's published pristine model, from the PyPI source archive of BasicSR, to our format.

pip download --no-deps --no-binary :all: basicsr==1.4.2
python -m convert.embedded niqe basicsr-1.4.2.tar.gz --out weights/niqe.safetensors
"""

import io
from pathlib import Path

import numpy as np

from convert.embedded.sdist import read_members
from stylesr_jax.errors import UserError
from stylesr_jax.runtime import weights

RELEASE = "basicsr-1.4.2.tar.gz"
ARCHIVE_SHA256 = "b89b595a87ef964cda9913b4d99380ddb6554c965577c0c10cb7b78e31301e87"
_MEMBER = "basicsr-1.4.2/basicsr/metrics/niqe_pris_params.npz"
LICENCE = "BasicSR, Apache-2.0; the model is that of the authors' NIQE release (LIVE, UT Austin)."


def read_parameters(data: bytes) -> dict[str, np.ndarray]:
    """{"mean": (36,), "covariance": (36, 36), "window": (7,)} from the npz file's bytes.

    Raises:
        UserError: the window is not separable, so this is another file.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        mean, covariance, window = (
            file[name] for name in ("mu_pris_param", "cov_pris_param", "gaussian_window")
        )
    line = window.sum(axis=0)
    if not np.allclose(np.outer(line, line), window, atol=1e-6):
        raise UserError("the smoothing window is not a product of two lines; download it again")
    return {"mean": mean.reshape(36), "covariance": covariance, "window": line / line.sum()}


def make(source: str | Path, out: Path) -> list[Path]:
    """Write the model in the archive `source` to the file `out`.

    Raises:
        UserError: the archive is not the known one.
    """
    (data,) = read_members(Path(source), [_MEMBER], release=RELEASE, sha256=ARCHIVE_SHA256)
    header = {
        "kind": "niqe",
        "source": "PyPI basicsr 1.4.2, basicsr/metrics/niqe_pris_params.npz",
        "source_sha256": ARCHIVE_SHA256,
        "licence": LICENCE,
    }
    weights.save(out, read_parameters(data), header)
    return [out]
