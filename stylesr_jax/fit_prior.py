"""Fit the flow prior of a generator: python -m stylesr_jax.fit_prior."""

import sys

from stylesr_jax.cli.fit_prior import main

if __name__ == "__main__":
    sys.exit(main())
