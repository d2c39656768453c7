"""The command line of the page."""

import html
import json
import shlex
import subprocess
import sys
import tomllib
import urllib.request
from importlib.util import find_spec

import pytest

from browser import running_server
from stylesr_jax.web.__main__ import main
from stylesr_jax.web.options import parse
from untrained import with_notes
from where import ROOT


def test_help_comes_without_jax_and_gradio():
    script = (
        "import runpy, sys; sys.argv = ['web', '--help']\n"
        "try: runpy.run_module('stylesr_jax.web', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print({'jax', 'gradio', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python -m stylesr_jax.web")
    assert done.stdout.endswith("set()\n")


def test_a_missing_extra_is_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    how = shlex.split(line.removeprefix("error: the page needs Gradio: "))
    assert how[:4] == [sys.executable, "-m", "pip", "install"]  # where this Python looks
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert how[4:] == project["optional-dependencies"]["web"]


def test_it_listens_on_this_machine_alone_unless_told():
    args = parse([])
    assert (args.host, args.port, args.allow_host) == ("127.0.0.1", 7860, [])


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_ports_are_checked(port, capsys):
    with pytest.raises(SystemExit):
        parse(["--port", port])
    assert "whole number 0 to 65535" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("gradio") is None, reason="needs pip install '.[web]'")
def test_what_the_converter_noted_is_said_in_the_terminal_and_on_the_page(tiny_files, tmp_path):
    noted = with_notes(tiny_files["generator"], tmp_path, ["noise drawn", "read from 'G'"])
    folder = tmp_path / "tmp"
    folder.mkdir()
    with running_server(folder, "--generator", noted) as server:
        with urllib.request.urlopen(f"{server.address}/config") as answer:
            components = json.load(answer)["components"]
        (status,) = [one for one in components if one["props"].get("elem_id") == "status"]
        lines = (tmp_path / "errors.txt").read_text().splitlines()
    assert lines == ["note: noise drawn", "note: read from 'G'"]
    said = html.unescape(status["props"]["value"])
    assert "shipped one. Of the generator's file: noise drawn; read from 'G'.<" in said
