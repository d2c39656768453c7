"""NIQE's published pristine model, from the PyPI source archive of BasicSR, to our format.

pip download --no-deps --no-binary :all: basicsr==1.4.2
python -m convert.niqe basicsr-1.4.2.tar.gz --out weights/niqe.safetensors
"""

import argparse
import io
import sys
import tarfile
from pathlib import Path

import numpy as np

from stylesr_jax.errors import UserError
from stylesr_jax.runtime import files, weights

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


def convert_file(source: Path, out: Path) -> None:
    """Write the model in the archive `source` to the file `out`.

    Raises:
        UserError: the archive is not the known one.
    """
    digest = files.sha256(source)
    if digest != ARCHIVE_SHA256:
        raise UserError(f"{source} has sha256 {digest}, not that of basicsr-1.4.2.tar.gz")
    with tarfile.open(source, "r:gz") as archive:
        member = archive.extractfile(_MEMBER)
        if member is None:
            raise UserError(f"{source} lacks {_MEMBER}")
        parameters = read_parameters(member.read())
    header = {
        "kind": "niqe",
        "source": "PyPI basicsr 1.4.2, basicsr/metrics/niqe_pris_params.npz",
        "source_sha256": digest,
        "licence": LICENCE,
    }
    weights.save(out, parameters, header)


def main() -> int:
    """Entry point of `python -m convert.niqe`."""
    parser = argparse.ArgumentParser(description="Convert NIQE's pristine model to safetensors.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        convert_file(args.archive, args.out)
    except (UserError, OSError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {args.out.stat().st_size} bytes, sha256 {files.sha256(args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
