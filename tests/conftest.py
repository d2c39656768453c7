"""Settings of every test: strict dtypes, and fixtures that several files share."""

import os
import tempfile
from pathlib import Path

from where import GOLDEN

# Most of the tests' time is compiling, which takes a third as long like this. XLA_FLAGS="" tests
# what users run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_llvm_disable_expensive_passes=true",
)

import jax
import numpy as np
import pytest

from convert.state_dict import random_state
from stylesr_jax.generators.base import Generator
from stylesr_jax.loading import generator_from_file, load_generator
from stylesr_jax.priors.autoregressive import FlowConfig
from stylesr_jax.priors.flow import Prior, load_prior
from stylesr_jax.runtime import program_cache
from untrained import untrained_files

jax.config.update("jax_numpy_dtype_promotion", "strict")

# What one test has traced and compiled is there for those that search alike, in all workers:
# they begin with the environment of the process that made the folder.
_folder = None
if "STYLESR_TESTS_KEPT" not in os.environ:
    _folder = tempfile.TemporaryDirectory(prefix="stylesr-tests-")
    os.environ["STYLESR_TESTS_KEPT"] = _folder.name
KEPT = Path(os.environ["STYLESR_TESTS_KEPT"])
jax.config.update("jax_compilation_cache_dir", str(KEPT / "compiled"))


def pytest_configure(config):
    # JAX may find what another worker has not written to its end yet, and compiles it then.
    torn = "ignore:Error reading persistent compilation cache entry"
    config.addinivalue_line("filterwarnings", torn)


def pytest_unconfigure():
    if _folder is not None:
        _folder.cleanup()


@pytest.fixture(autouse=True)
def _room():
    """A worker compiles more than a process has memory mappings for."""
    yield
    program_cache.drop_programs_if_full()


@pytest.fixture
def kept_programs():
    """Searches take the programs that other tests have traced, as those of the commands do."""
    program_cache.keep_in(KEPT / "programs")
    yield
    program_cache.keep_in(None)


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


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory) -> dict[str, Path]:
    """An untrained 32 px StyleGAN2 and a prior for it, as files: "generator" and "prior"."""
    state = random_state(seed=0, resolution=32, channel_base=512, z_dim=16, w_dim=16)
    flow_config = FlowConfig(dim=16, blocks=2, width=32)
    folder = tmp_path_factory.mktemp("tiny")
    return untrained_files(folder, "tiny-32", state, flow_config, floor=1e-4, draws=2000)


@pytest.fixture(scope="session")
def tiny(tiny_files) -> Generator:
    """An untrained 32 px StyleGAN2."""
    return generator_from_file(tiny_files["generator"])


@pytest.fixture(scope="session")
def tiny_prior(tiny, tiny_files) -> Prior:
    """A flow prior of the tiny generator: its whitening, and a flow that is the identity."""
    return load_prior(tiny, tiny_files["prior"])
