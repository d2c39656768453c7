"""docs/notebook.ipynb runs from top to bottom; its first cells do in the fast tests."""

import nbformat
import pytest
from nbclient import NotebookClient

from stylesr_jax.images.files import to_uint8
from where import ROOT

PATH = ROOT / "docs" / "notebook.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def _code(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_kept_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_its_cells_before_the_search_run(notebook, monkeypatch):
    """As the notebook runs them, without a kernel of their own."""
    monkeypatch.chdir(PATH.parent)
    monkeypatch.setattr("stylesr_jax.runtime.startup.configure", lambda: None)  # is the process's
    first = []
    for source in _code(notebook):
        if "load_generator()" in source:
            break
        first.append(source)
    assert len(first) == 2, "photo and face come before the search"
    names: dict = {}
    for source in first:
        exec(compile(source, PATH.name, "exec"), names)
    assert names["observation"].shape == (32, 32, 3)
    picture = names["show"](("observation", names["observation"]))
    assert picture.width > 256 and to_uint8(names["photo"]).ndim == 3


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    """As users run it, with an empty cache; its own assertions are about consistency."""
    monkeypatch.setenv("STYLESR_CACHE", str(tmp_path))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    resources = {"metadata": {"path": str(PATH.parent)}}
    NotebookClient(notebook, timeout=1800, resources=resources).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 7
