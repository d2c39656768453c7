"""What mkdocs does beyond `mkdocs.yml`: pages of the repository that lie outside docs/.

The README is the site's first page, and the pages of PAGES lie where they lie in the repository.
A link is written as it works in the repository; links to files that are no page become plain text.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "MODEL_CARD.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "weights/README.md",
    "weights/FEATURES.md",
    "weights/REGISTRY.md",
    "benchmarks/README.md",
    "benchmarks/studies/README.md",
)
_LINK = re.compile(r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/."""
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links between files of the repository as links between pages of the site."""
    name = page.file.src_uri
    here = name if name in PAGES else f"docs/{name}"

    def link(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if "://" in target or not target:
            return match[0]
        there = normpath(join(dirname(here), target))
        place = there if there in PAGES else there.removeprefix("docs/")
        if files.get_file_from_path(place) is None and (ROOT / there).exists():
            return match["text"]
        path = relpath(place, dirname(name) or ".")
        return f"{match['mark']}[{match['text']}]({path}{anchor})"

    return _LINK.sub(link, markdown)
