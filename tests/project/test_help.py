"""The help of every command: it comes at once, and options are not guessed."""

import ast
import subprocess
import sys

import pytest

from stylesr_jax.cli.options import (
    evaluate_parser,
    fit_estimate_parser,
    fit_heads_parser,
    fit_prior_parser,
    upsample_parser,
)
from where import ROOT


def _commands() -> list[str]:
    """The modules of both packages that can be run."""
    files = sorted((*ROOT.glob("stylesr_jax/*.py"), *ROOT.glob("convert/**/*.py")))
    runnable = [path for path in files if 'if __name__ == "__main__"' in path.read_text("utf-8")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in runnable]


def test_the_commands_are_found():
    names = ("upsample", "evaluate", "fit_prior", "fit_heads", "fit_estimate")
    assert {f"stylesr_jax.{name}" for name in names} <= set(_commands())


@pytest.mark.parametrize("module", _commands())
def test_help_does_not_import_jax(module):
    script = (
        "import runpy, sys; sys.argv = ['command', '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'jax' not in sys.modules, 'jax'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")


def _parsers() -> list[tuple[str, ast.Call]]:
    """Every call of ArgumentParser, and where it is."""
    found = []
    for folder in ("stylesr_jax", "convert", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and "ArgumentParser" in ast.unparse(node.func):
                    found.append((f"{path.relative_to(ROOT)}:{node.lineno}", node))
    return found


def test_no_option_is_guessed_from_its_beginning():
    parsers = _parsers()
    assert len(parsers) > 5
    exact = "allow_abbrev=False"
    assert not [place for place, call in parsers if exact not in map(ast.unparse, call.keywords)]


PLACES = ("FILE", "PATH", "DIR", "NPZ", "OUT", "PRIOR", "SHEET")  # in what an option's value is


def _of_places(parser):
    """The options whose values are paths."""
    for action in parser._actions:
        text = str(action.metavar or action.dest.upper())
        if action.option_strings and action.nargs is None and any(p in text for p in PLACES):
            yield action


@pytest.mark.parametrize(
    "parser",
    [upsample_parser, evaluate_parser, fit_heads_parser, fit_prior_parser, fit_estimate_parser],
)
def test_a_tilde_in_any_path_is_the_home_folder(parser, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/someone")
    places = list(_of_places(parser()))
    assert len(places) >= 2
    for action in places:
        read = action.type or str
        assert str(read("~/a.json")) == "/home/of/someone/a.json", action.option_strings
