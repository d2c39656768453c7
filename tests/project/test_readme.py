"""What README.md and docs/ tell a user to type works."""

import contextlib
import io
import re
import runpy
import shutil
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylesr_jax.methods import METHODS
from stylesr_jax.priors.flow import priors_folder
from stylesr_jax.runtime import weights
from stylesr_jax.runtime.weights import DEFAULT
from where import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = (".", "docs", "weights", "benchmarks", "benchmarks/studies")
PAGES = tuple(
    page.read_text(encoding="utf-8")
    for folder in FOLDERS
    for page in sorted((ROOT / folder).glob("*.md"))
)

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# The module, and its arguments up to whatever ends a command in a shell or in Markdown; also
# written as a list: [python, -m, MODULE, ...].
COMMAND = re.compile(r"python,? -m,? ([\w.]*\w)([^`\"#;&|\n]*)")


def _commands() -> dict[str, set[str]]:
    """The options that the pages give each module."""
    found: dict[str, set[str]] = {}
    for page in PAGES:
        for module, arguments in COMMAND.findall(page.replace("studies.NAME", "studies.table1")):
            found.setdefault(module, set()).update(OPTION.findall(arguments))
    return found


COMMANDS = _commands()


@cache
def _help(module: str) -> tuple[object, str]:
    """(exit code, output) of `python -m MODULE --help`."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", [module, "--help"])
        # Another test's import would make runpy warn that the module runs twice.
        for name in (module, f"{module}.__main__"):
            patch.delitem(sys.modules, name, raising=False)
        patch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(module, run_name="__main__")
    return stop.value.code, said.getvalue()


def test_the_pages_are_read():
    """Otherwise the tests below would have nothing to check."""
    assert {"--shard", "--resume"} <= COMMANDS["stylesr_jax.upsample"]
    assert {"stylesr_jax.evaluate", "stylesr_jax.fit_prior", "convert.fetch"} <= set(COMMANDS)


@pytest.mark.parametrize("module", sorted(COMMANDS))
def test_commands_have_help_and_the_options_they_are_shown_with(module):
    code, text = _help(module)
    assert code in (0, None)
    assert text.startswith("usage:")
    assert COMMANDS[module] <= set(OPTION.findall(text))


def options_of_all_commands() -> set[str]:
    """The options of every command that a page names."""
    return {option for module in COMMANDS for option in OPTION.findall(_help(module)[1])}


def test_the_readme_is_read_in_two_minutes():
    """Counted with code, tables and addresses."""
    assert len(README.split()) <= 600
    assert len(README.splitlines()) <= 100


def test_links_and_pictures_are_there():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) > 10
    local = [target for target in targets if "://" not in target]
    assert not [target for target in local if not (ROOT / target).exists()]


def _example() -> str:
    """The block of Python under "From Python"."""
    _, found, rest = README.partition("\n## From Python\n")
    assert found
    section = rest.partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return code


@pytest.fixture
def as_default(tiny_files, tmp_path, monkeypatch):
    """The tiny generator is the embedded one, and its prior is where a user's own are found."""
    embedded = weights.find_weights

    def find(name: str) -> Path:
        return tiny_files["generator"] if name == f"{DEFAULT}.safetensors" else embedded(name)

    monkeypatch.setattr(weights, "find_weights", find)
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path / "cache"))

    class Shorter(METHODS["rls"]):
        style_steps: int = 5
        steps: int = 15

    monkeypatch.setitem(METHODS, "rls", Shorter)
    priors_folder().mkdir(parents=True)
    shutil.copy(tiny_files["prior"], priors_folder())


def test_the_python_example(as_default, tmp_path, monkeypatch):
    """Word for word; only the generator is smaller and the search shorter."""
    code = _example()
    assert "load_generator()" in code and 'read_image("small.png")' in code
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(60, 200, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save("small.png")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    solutions = names["result"].solutions  # type: ignore[attr-defined]
    assert len(solutions) == 4
    for i, solution in enumerate(solutions):
        assert solution.residual_l1 < 0.5 and solution.residual_psnr > 0
        assert solution.latents is not None
        with Image.open(f"solution_{i}.png") as picture:
            assert picture.size == (32, 32)
            wanted = np.clip(np.rint((solution.image + 1) * 127.5), 0, 255)
            np.testing.assert_array_equal(np.asarray(picture), wanted)


@pytest.mark.slow
def test_the_python_page(as_default, tmp_path, monkeypatch):
    """docs/python.md, block by block; the faces of its photo are small."""
    text = (ROOT / "docs" / "python.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(60, 200, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save("small.png")
    with Image.open(ROOT / "docs" / "images" / "tutorial-photo.png") as photo:
        photo.save("photo.jpg", quality=95)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "python.md", "exec"), names)
    with Image.open("larger.png") as larger:
        assert larger.width >= photo.width and larger.width % photo.width == 0
    with Image.open("best.png") as best:
        assert best.size == (32, 32)
