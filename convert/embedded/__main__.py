"""Makes a file of `weights/` from the archive that it was published in.

python -m convert.embedded {mobile,lpips,niqe,inception,faces} SOURCE --out OUT
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stylesr_jax.errors import exit_code
from stylesr_jax.runtime import files

KINDS = ("mobile", "lpips", "niqe", "inception", "faces")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convert.embedded",
        description="Make a file of weights/ from the archive that it was published in.",
        allow_abbrev=False,
    )
    parser.add_argument("kind", choices=KINDS, help="what to make")
    parser.add_argument("source", help="the archive (inception: or its address)")
    parser.add_argument("--out", type=Path, required=True, help="file (lpips, faces: folder)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    args = _parser().parse_args(argv)

    return exit_code(lambda: _make(args))


def _make(args: argparse.Namespace) -> None:
    # Not above: the help need not wait for JAX.
    from convert.embedded import inception, lpips, niqe, openvino, tflite

    converters = dict(zip(KINDS, (openvino, lpips, niqe, inception, tflite), strict=True))
    for path in converters[args.kind].make(args.source, args.out):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, sha256 {files.sha256(path)}")


if __name__ == "__main__":
    sys.exit(main())
