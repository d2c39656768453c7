"""Fit image heads of a generator: python -m stylesr_jax.fit_heads."""

import sys

from stylesr_jax.cli.fit_heads import main

if __name__ == "__main__":
    sys.exit(main())
