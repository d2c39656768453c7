"""Compare methods on a folder of faces: python -m stylesr_jax.evaluate."""

import sys

from stylesr_jax.cli.options import parse_evaluate


def main(argv: list[str] | None = None) -> int:
    """The command line; its exit code, see `errors.exit_code`."""
    args = parse_evaluate(argv)
    from stylesr_jax.cli.start import evaluate  # no module is loaded for --help

    return evaluate(args)


if __name__ == "__main__":
    sys.exit(main())
