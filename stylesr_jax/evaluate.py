"""Compare methods on a folder of faces: python -m stylesr_jax.evaluate."""

import sys

from stylesr_jax.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
