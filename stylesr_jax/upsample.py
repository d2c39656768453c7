"""Super-resolve face photos: python -m stylesr_jax.upsample."""

import sys

from stylesr_jax.cli.options import parse_upsample


def main(argv: list[str] | None = None) -> int:
    """The command line; its exit code, see `errors.exit_code`."""
    args = parse_upsample(argv)
    from stylesr_jax.cli.start import upsample  # no module is loaded for --help

    return upsample(args)


if __name__ == "__main__":
    sys.exit(main())
