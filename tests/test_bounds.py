"""The page of versions says what pyproject.toml admits, and what .ci runs the tests with."""

from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement

from tests.support.node import ELASTICSEARCH_9, OPENSEARCH
from tests.support.pages import PAGES, ROOT

PAGE = PAGES["reference/versions.md"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NIGHTLY = (ROOT / ".ci" / "nightly").read_text()


def said(name: str) -> tuple[str, str]:
    """From and below, in the row of that name."""
    (row,) = re.findall(rf"^\| {re.escape(name)} \| ([^|]*?) ?\| ([^|]*?) ?\|", PAGE, re.MULTILINE)
    return row


def admitted(requirement: Requirement) -> tuple[str, str]:
    bounds = {each.operator: each.version for each in requirement.specifier}
    return bounds.get(">=", ""), bounds.get("<", "")


def test_packages_are_all_in_the_table_with_their_bounds_and_no_others() -> None:
    of_extras = [each for extra in ("admin", "opensearch", "postgres") for each in EXTRAS[extra]]
    needed = [Requirement(each) for each in (*PROJECT["dependencies"], *of_extras)]
    by_applications = ("aiosqlite", "flask", "flask-sqlalchemy", "flask-migrate", "sqlmodel")
    needed += [each for each in map(Requirement, EXTRAS["dev"]) if each.name in by_applications]
    listed = re.findall(r"^\| (\S+) \|", PAGE.split("| package |")[1], re.MULTILINE)
    assert {each.name: admitted(each) for each in needed} == {name: said(name) for name in listed if name != "---"}


def test_python_from_and_to_are_those_of_the_project_and_of_the_nightly_tests() -> None:
    (pythons,) = re.findall(r"for python in ((?:python3\.\d+ ?)+);", NIGHTLY)
    oldest, *_, newest = [each.removeprefix("python") for each in pythons.split()]
    assert (PROJECT["requires-python"], said("Python")) == (f">={oldest}", (oldest, newest))


def test_elasticsearch_from_and_to_are_those_of_the_tests() -> None:
    (oldest,) = re.findall(r'TEST_ELASTICSEARCH_VERSION", "(\d+\.\d+)', (ROOT / "tests/support/node.py").read_text())
    assert said("Elasticsearch") == (oldest, ELASTICSEARCH_9.version.rpartition(".")[0])
    assert said("OpenSearch")[0] == OPENSEARCH.version.rpartition(".")[0]


def test_oldest_versions_are_installed_all_at_once_and_each_sqlalchemy_alone() -> None:
    assert "--resolution lowest-direct" in (ROOT / ".ci" / "run").read_text()
    for version in ("2.0,<2.1", "2.1,<2.2"):
        assert f"sqlalchemy>={version}" in NIGHTLY
