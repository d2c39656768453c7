"""The page: python -m stylesr_jax.web."""

import argparse
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from stylesr_jax.errors import UserError, exit_code, pip_install
from stylesr_jax.web.options import parse

GRADIO = "gradio>=6.31,<7"  # as the extra `web` has it


def main(argv: list[str] | None = None) -> int:
    """The command line; its exit code, see `errors.exit_code`."""
    args = parse(argv)
    return exit_code(lambda: _serve(args), interrupted="stopped")


def _serve(args: argparse.Namespace) -> None:
    if find_spec("gradio") is None:
        raise UserError(f"the page needs Gradio: {pip_install(GRADIO)}")
    with tempfile.TemporaryDirectory(prefix="stylesr-page-", ignore_cleanup_errors=True) as folder:
        # Gradio reads these when it is imported: where files go, and that it reports nothing.
        os.environ |= {
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_OFFLINE": "1",
        }
        from stylesr_jax.web.serve import serve  # no module is loaded for --help

        serve(args, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
