"""Fit the flow prior of a generator: python -m stylesr_jax.fit_prior."""

import sys

from stylesr_jax.cli.options import fit_prior_parser
from stylesr_jax.errors import exit_code


def main(argv: list[str] | None = None) -> int:
    """The command line; its exit code, see `errors.exit_code`."""
    options = fit_prior_parser().parse_args(argv)
    from stylesr_jax.cli.fit import fit_prior  # no module is loaded for --help

    return exit_code(lambda: print(fit_prior(options)))


if __name__ == "__main__":
    sys.exit(main())
