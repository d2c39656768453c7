"""Super-resolve face photos: python -m stylesr_jax.upsample."""

import sys

from stylesr_jax.cli.upsample import main

if __name__ == "__main__":
    sys.exit(main())
