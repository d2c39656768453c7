"""Settings of every test: strict dtypes, and fixtures that several files share."""

from pathlib import Path

import jax
import numpy as np
import pytest

from stylesr_jax.generators import Generator, load_generator

jax.config.update("jax_numpy_dtype_promotion", "strict")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """Reads a file of reference values from tests/golden."""

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / name, allow_pickle=False) as file:
            return dict(file)

    return read


@pytest.fixture(scope="session")
def mobile() -> Generator:
    """The embedded default generator."""
    return load_generator()
