"""Fit image heads of a generator: python -m stylesr_jax.fit_heads."""

import sys

from stylesr_jax.cli.options import fit_heads_parser
from stylesr_jax.errors import exit_code


def main(argv: list[str] | None = None) -> int:
    """The command line; its exit code, see `errors.exit_code`."""
    options = fit_heads_parser().parse_args(argv)
    from stylesr_jax.cli.fit import fit_heads  # no module is loaded for --help

    return exit_code(lambda: print(fit_heads(options)))


if __name__ == "__main__":
    sys.exit(main())
