"""The documentation: its site builds, links lead somewhere, and pages name what there is."""

import ast
import importlib.util
import pkgutil
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml
from PIL import Image
from test_readme import OPTION, options_of_all_commands

from stylesr_jax.degradations.parse import STAGES
from stylesr_jax.methods import METHODS
from where import ROOT

DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|^ {4}.*?$", re.M | re.S)


def _module(name: str):
    """A script of docs/."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = _module("site_hooks")
PAGES = sorted({*DOCS.rglob("*.md"), *(ROOT / name for name in HOOKS.PAGES)})


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _prose(page: Path) -> str:
    """A page without its blocks of code."""
    return CODE.sub("", page.read_text("utf-8"))


def _nav(part) -> list[str]:
    """The pages of mkdocs.yml's nav, in order."""
    if isinstance(part, str):
        return [part]
    values = part.values() if isinstance(part, dict) else part
    return [name for value in values for name in _nav(value)]


# --- Pages and links ------------------------------------------------------------------------


def test_the_site_shows_every_page_once():
    nav = [name for name in _nav(CONFIG["nav"]) if name not in HOOKS.PAGES]
    pages = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")]
    assert sorted(nav) == sorted(pages)
    assert set(HOOKS.PAGES) <= set(_nav(CONFIG["nav"]))


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text("utf-8")), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_within_the_repository_lead_somewhere(page):
    for target in LINK.findall(_prose(page)):
        path, _, anchor = target.partition("#")
        if urlsplit(target).scheme:
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target} is not there"
        assert there.is_relative_to(ROOT)
        if anchor:
            assert anchor in _anchors(there), f"{target} has no such heading"


def test_links_are_moved_to_the_site():
    class Here:
        src_uri = "latents.md"

    class Page:
        file = Here

    class Files:
        def get_file_from_path(self, name):
            return name if name in ("MODEL_CARD.md", "usage.md") else None

    def moved(text):
        return HOOKS.on_page_markdown(text, Page, None, Files())

    assert moved("[a](../MODEL_CARD.md#top)") == "[a](MODEL_CARD.md#top)"
    assert moved("[a](usage.md)") == "[a](usage.md)"
    assert moved("[the licence](../LICENSE) stays") == "the licence stays"
    assert moved("[a](https://example.org/x)") == "[a](https://example.org/x)"
    Here.src_uri = "README.md"
    assert moved("[a](docs/usage.md)") == "[a](usage.md)"


# --- What pages name ------------------------------------------------------------------------


# Slurm's, Ray's and others' options; those of commands are checked by test_readme.
OTHERS_OPTIONS = DOCS / "scaling.md"


@pytest.mark.parametrize("page", sorted({*PAGES} - {OTHERS_OPTIONS}), ids=_name)
def test_options_that_pages_name_exist(page):
    present = re.sub(r"^### Removed$.*?(?=^#)", "", _prose(page), flags=re.M | re.S)
    assert set(OPTION.findall(present)) <= options_of_all_commands()


def _rows(page: str, heading: str = "") -> list[list[str]]:
    """The cells of a page's tables, row by row, from a heading on."""
    text = (DOCS / page).read_text("utf-8").partition(heading)[2] if heading else None
    text = (DOCS / page).read_text("utf-8") if text is None else text
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_every_environment_variable_has_a_row():
    read = set()
    for path in (*ROOT.glob("stylesr_jax/**/*.py"), *ROOT.glob("convert/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call | ast.Subscript) and "environ" in ast.unparse(node):
                read |= set(re.findall(r"environ(?:\.get\(|\[)'(\w+)'", ast.unparse(node)))
    assert {"STYLESR_CACHE", "CXX"} <= read
    rows = _rows("performance.md", "## Environment variables")
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert read <= named


def test_the_grid_of_methods_is_theirs():
    rows = {row[0].strip("`"): row for row in _rows("methods.md", "## How they differ")}
    for name, kind in METHODS.items():
        row = rows[name]
        needs = {"flow": kind.needs_prior, "LPIPS": kind.needs_perceptual}
        assert row[-1] == ", ".join(what for what, needed in needs.items() if needed)
        count = len(tuple(kind().make_stages()))
        assert row[-2].startswith(str(count)), f"{name} has {count} stages"


def test_every_degradation_has_a_row():
    rows = {row[0].strip("`"): row[1] for row in _rows("usage.md", "## Degradations")}
    assert {kind.example: kind.about for kind in STAGES.values()}.items() <= rows.items()


def test_every_package_has_its_page_of_the_api():
    documented = set()
    for page in (DOCS / "api").glob("*.md"):
        documented |= set(re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.M))
    packages = {path.parent.name for path in ROOT.glob("stylesr_jax/*/__init__.py")}
    assert {f"stylesr_jax.{name}" for name in packages - {"cli", "web"}} <= documented
    for name in documented:
        pkgutil.resolve_name(name)


# --- The tutorial's pictures ----------------------------------------------------------------


def test_the_tutorials_photo_is_made_by_the_script():
    made = np.asarray(_module("pictures").make_photo()).astype(int)
    kept = np.asarray(Image.open(DOCS / "images" / "tutorial-photo.png").convert("RGB"))
    np.testing.assert_allclose(made, kept, atol=2)  # versions of Pillow round differently


@pytest.mark.slow
def test_the_script_makes_every_picture_of_the_tutorial(tiny, tiny_prior, tmp_path, monkeypatch):
    pictures = _module("pictures")
    search = pictures.upsample
    settings = {"style_steps": 1, "steps": 1, "tries": 1}
    monkeypatch.setattr(
        pictures, "upsample", lambda image, **options: search(image, settings=settings, **options)
    )
    pictures.write_pictures(tmp_path, generator=tiny, prior=tiny_prior, preset="fast", solutions=1)
    shown = set(re.findall(r"images/(tutorial-[\w.-]+)", (DOCS / "tutorial.md").read_text("utf-8")))
    assert shown == {path.name for path in tmp_path.iterdir()}
    for name in shown:
        with Image.open(tmp_path / name) as made, Image.open(DOCS / "images" / name) as kept:
            assert made.size == kept.size or name == "tutorial-solutions.jpg"


# --- The site -------------------------------------------------------------------------------


class _Page(HTMLParser):
    """What a page of the site refers to, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []  # by the browser, without a click
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") != "canonical":
            self.loaded.append(values.get("href", ""))
        if "src" in values:
            self.loaded.append(values["src"])


@pytest.mark.slow
def test_the_site_builds_and_its_links_lead_somewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    pages = {path.resolve(): _Page(path.read_text("utf-8")) for path in tmp_path.rglob("*.html")}
    assert len(pages) > len(PAGES)
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # has absolute links, as a server may show it anywhere
        outside = [target for target in page.loaded if urlsplit(target).netloc]
        assert not outside, f"{path.name} asks others for {outside}"
        for target in (*page.links, *page.loaded):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            assert there.exists(), f"{path.name}: {target}"
            if parts.fragment and there in pages:
                anchor = unquote(parts.fragment)
                assert anchor in pages[there].anchors, f"{path.name}: {target}"
    assert (tmp_path / "notebook.ipynb").is_file() and not list(tmp_path.glob("*.py"))
    api = (tmp_path / "api" / "methods.html").read_text("utf-8")
    assert "stylesr_jax.methods.rls.RLS" in api and "lambda_w" in api
