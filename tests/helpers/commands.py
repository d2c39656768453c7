"""Commands run as `python -m` would, in this process."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def upsample_command(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]
) -> Callable[..., int | None]:
    """Runs `upsample` with a generator and its prior; returns its exit code."""

    def call(*arguments: Any, generator: bool = True) -> Any:
        own = ["--generator", files["generator"], "--prior", files["prior"]]
        argv = ["upsample", *map(str, arguments), *(map(str, own) if generator else ())]
        monkeypatch.setattr(sys, "argv", argv)
        # Another test's import would make runpy warn that the module runs twice.
        monkeypatch.delitem(sys.modules, "stylesr_jax.upsample", raising=False)
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("stylesr_jax.upsample", run_name="__main__")
        return stop.value.code

    return call
