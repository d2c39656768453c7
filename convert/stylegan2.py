"""Converts a published generator to this project's format.

    python -m convert.stylegan2 IN --out OUT.safetensors

IN is a pickle or a module of stylegan2-ada-pytorch or stylegan3 (StyleGAN2 configurations), also
as PTI saves it, a TensorFlow pickle of StyleGAN2, a checkpoint of rosinality/stylegan2-pytorch,
BasicSR, pSp, e4e, ReStyle or MobileStyleGAN.pytorch, a state dict (.pt, .ckpt, .npz,
.safetensors), or MobileStyleGAN's OpenVINO wheel. Which of them it is, is told from the bytes.
Nothing that a file holds is executed, and NumPy is all that is needed to read it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from convert.raw import refuse_address
from stylesr_jax.errors import exit_code
from stylesr_jax.runtime import weights


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convert.stylegan2",
        description="Convert a published generator. Nothing in the file is executed.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IN", help="the published file")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.safetensors")
    parser.add_argument(
        "--conv-clamp",
        type=float,
        help="clamp of the layers' outputs, for a bare state dict (256 for networks trained "
        "in half precision)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    args = _parser().parse_args(argv)
    return exit_code(lambda: _convert(args))


def _convert(args: argparse.Namespace) -> None:
    refuse_address(args.source)
    from convert.build import convert_file  # not above: the help need not wait for JAX

    for remark in convert_file(args.source, args.out, conv_clamp=args.conv_clamp):
        print(f"note: {remark}", file=sys.stderr)
    header = weights.read_header(args.out)
    config = header["config"]
    print(f"{header['source_format']}, sha256 {header['source_sha256']}")
    print(f"licence: {header['licence']}")
    print(
        f"{args.out}: {config['architecture']} {config['resolution']} px, "
        f"{config['num_ws']} styles of {config['w_dim']}, "
        f"{config['label_dim'] or 'no'} classes, {args.out.stat().st_size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    sys.exit(main())
