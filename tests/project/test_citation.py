"""CITATION.cff is one, of this version; the change log has the form it says it has."""

import re
import tomllib

import yaml

from where import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
CHANGES = (ROOT / "CHANGELOG.md").read_text("utf-8")

# Source: the schema of version 1.2.0, https://github.com/citation-file-format
REQUIRED = {"cff-version", "message", "title", "authors"}
OPTIONAL = {"abstract", "type", "version", "license", "keywords", "references"}
OF_REFERENCES = {"type", "title", "authors", "year", "collection-title", "notes"}
KINDS = {"conference-paper", "article", "report"}


def test_the_citation_has_the_fields_of_its_schema():
    assert CITATION["cff-version"] == "1.2.0"
    assert set(CITATION) >= REQUIRED
    assert set(CITATION) <= REQUIRED | OPTIONAL
    assert CITATION["type"] == "software"
    assert all(isinstance(word, str) for word in CITATION["keywords"])
    assert len(set(CITATION["keywords"])) == len(CITATION["keywords"]) > 0
    for author in CITATION["authors"]:
        assert set(author) == {"name"} and author["name"].strip()


def test_the_citation_is_of_this_version():
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["license"] == PROJECT["license"]
    assert CITATION["title"] == PROJECT["name"].replace("-", "_")


def test_references_are_whole():
    assert len(CITATION["references"]) >= 3
    for reference in CITATION["references"]:
        assert set(reference) <= OF_REFERENCES and {"type", "title", "authors"} <= set(reference)
        assert reference["type"] in KINDS
        assert isinstance(reference["year"], int)
        for person in reference["authors"]:
            assert set(person) == {"family-names", "given-names"}


def test_the_change_log_has_its_form():
    """Keep a Changelog 1.1.0."""
    versions = re.findall(r"^## (.*)$", CHANGES, re.M)
    assert versions[0] == "[Unreleased]"
    for version in versions[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version)
    assert f"[{PROJECT['version']}]" in {version.split(" ")[0] for version in versions}
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", CHANGES, re.M)) <= kinds
    assert not re.search(r"^#### ", CHANGES, re.M)
