"""The wheel, installed apart from the checkout, is whole."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from where import PORTRAIT, ROOT

pytestmark = pytest.mark.slow  # builds an archive of all weights

FILES = """
import pathlib, sys
import stylesr_jax, convert
from stylesr_jax.runtime import weights
target = pathlib.Path(sys.argv[1])
for module in (stylesr_jax, convert):
    assert target in pathlib.Path(module.__file__).parents, module.__file__
for name in sys.argv[2:]:
    path = weights.find_weights(name)
    assert path.parent == target / "stylesr_jax" / "weights", path
    print(path.name, path.stat().st_size)
"""

LOAD = """
from stylesr_jax import load_generator, load_prior
from stylesr_jax.generators.mobile.native import compiler
assert compiler.SOURCE.is_file()
generator = load_generator()
prior = load_prior(generator)
print(generator.name, generator.resolution, *generator.config.heads)
print(prior.config.dim)
"""


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _pip("wheel", ".", "--no-deps", "--wheel-dir", folder)
    (path,) = folder.glob("stylesr_jax-*.whl")
    return path


@pytest.fixture(scope="module")
def target(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("target") / "packages"
    _pip("install", wheel, "--no-deps", "--no-index", "--target", folder)
    return folder.resolve()


@pytest.fixture
def run(target, tmp_path):
    """Python in an empty folder, which finds the installed package before the checkout."""
    empty = tmp_path / "empty"
    empty.mkdir()
    hidden = ("PYTHONPATH", "STYLESR_CACHE", "XLA_FLAGS")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    # A checkout that was installed to be edited comes after PYTHONPATH; the test looks which it is.
    environment |= {"PYTHONPATH": str(target), "STYLESR_CACHE": str(tmp_path / "cache")}

    def call(*arguments: str | Path) -> str:
        command = [sys.executable, "-P", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=empty, env=environment)
        assert done.returncode == 0, done.stderr
        assert not list(empty.iterdir())
        return done.stdout

    return call


def _shipped() -> list[str]:
    return sorted(path.name for path in (ROOT / "weights").iterdir() if path.is_file())


def test_every_weight_file_is_found(run, target):
    shipped = _shipped()
    for kind in ("mobile", "heads", "prior"):
        assert any(name.startswith(kind) for name in shipped)
    lines = run("-c", FILES, target, *shipped).splitlines()
    sizes = dict(line.split() for line in lines)
    assert sizes == {name: str((ROOT / "weights" / name).stat().st_size) for name in shipped}


def test_the_page_has_its_portrait(wheel):
    with zipfile.ZipFile(wheel) as archive:
        portrait = archive.read("stylesr_jax/web/astronaut.png")
    assert portrait == PORTRAIT.read_bytes()


def test_the_default_generator_loads_with_its_heads_and_prior(run):
    lines = run("-c", LOAD).splitlines()
    name, resolution, *heads = lines[0].split()
    assert (name, resolution) == ("mobile-ffhq-1024", "1024")
    assert heads, "no image heads were joined to the generator"
    assert lines[1] == "512"


@pytest.mark.parametrize("module", ["stylesr_jax.upsample", "convert.fetch", "convert.stylegan2"])
def test_commands_run(run, module):
    assert run("-m", module, "--help").startswith("usage:")


def test_the_registry_of_published_models_is_there(run):
    assert len(run("-m", "convert.fetch", "--list").splitlines()) > 3


def test_what_the_wheel_holds(wheel):
    """The package, the converters and their licences; no tests, benchmarks or caches."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry,) = (name for name in names if name.endswith("entry_points.txt"))
        scripts = archive.read(entry).decode()
    assert "stylesr-upsample = stylesr_jax.upsample:main" in scripts
    tops = {name.partition("/")[0] for name in names}
    (metadata,) = tops - {"stylesr_jax", "convert"}
    assert metadata.endswith(".dist-info")
    assert f"{metadata}/licenses/LICENSE" in names
    assert f"{metadata}/licenses/weights/README.md" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "stylesr_jax").rglob("*.py")}
    assert modules <= set(names)
