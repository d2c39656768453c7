"""Fit the estimate of styles from images: python -m stylesr_jax.fit_estimate."""

import sys

from stylesr_jax.cli.options import fit_estimate_parser
from stylesr_jax.errors import exit_code


def main(argv: list[str] | None = None) -> int:
    """The command line; its exit code, see `errors.exit_code`."""
    options = fit_estimate_parser().parse_args(argv)
    from stylesr_jax.cli.fit import fit_estimate  # no module is loaded for --help

    return exit_code(lambda: print(fit_estimate(options)))


if __name__ == "__main__":
    sys.exit(main())
