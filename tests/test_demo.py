"""bin/demo, as a process in a pipe: what it shows, what it leaves behind, and that it can say no."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.node import Node

DEMO = Path(__file__).parents[1] / "bin" / "demo"
INDEXES = ("demo-accounts", "demo-contacts", "demo-deals")
TENANTS = ("acme", "globex", "initech")

pytestmark = pytest.mark.slow


class Shown(NamedTuple):
    """One run of the demo."""

    directory: Path
    code: int
    lines: list[str]
    errors: str


def demo(directory: Path, *arguments: str, **environment: str) -> Shown:
    kept = {name: value for name, value in os.environ.items() if "ELASTICSEARCH" not in name}
    done = subprocess.run(
        [DEMO, "--directory", directory / "shown", *arguments],
        cwd=directory,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Shown(directory, done.returncode, done.stdout.splitlines(), done.stderr)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return demo(tmp_path_factory.mktemp("demo"))


def says_that_all_is_equal(shown: Shown) -> bool:
    """Each index of each tenant, with as many documents as rows; and the verdict."""
    table = [line.split() for line in shown.lines if line.startswith(" demo-")]
    return (
        [(index, tenant) for index, tenant, *_ in table] == [(index, tenant) for index in INDEXES for tenant in TENANTS]
        and all(rows == documents and verdict == ["✓", "equal"] for _, _, rows, documents, *verdict in table)
        and sum(int(documents.replace(",", "")) for _, _, _, documents, *_ in table) > 2_000
        and sum(line.startswith("Equal. ") for line in shown.lines) == 1
    )


def test_demo_without_a_cluster_ends_with_the_index_equal_to_the_database(embedded: Shown) -> None:
    assert embedded.code == 0, embedded.errors
    assert says_that_all_is_equal(embedded), embedded.lines
    assert any("is killed (SIGKILL)" in line for line in embedded.lines)
    assert "no matches" not in embedded.lines


def test_demo_with_triggers_notes_what_another_program_writes(tmp_path: Path) -> None:
    shown = demo(tmp_path, "--triggers")
    assert shown.code == 0, shown.errors
    assert says_that_all_is_equal(shown), shown.lines
    (line,) = (line for line in shown.lines if "triggers note it" in line)
    assert re.search(r" [1-9]\d\d rows are changed by plain sqlite3", line)


def test_demo_in_a_pipe_is_plain_lines_of_at_most_80_columns(embedded: Shown) -> None:
    assert max(map(len, embedded.lines[: embedded.lines.index("To try next")])) <= 80  # below stand paths
    assert not any("\x1b" in line or "\r" in line for line in embedded.lines)


def test_what_the_demo_says_to_try_next_can_be_pasted(embedded: Shown) -> None:
    commands = embedded.lines[embedded.lines.index("To try next") + 1 :]
    script = "\n".join(["set -e", *("cat" + line[4:] if line.startswith("less") else line for line in commands)])
    pasted = subprocess.run(
        ["bash", "-c", script], cwd=embedded.directory, capture_output=True, text=True, timeout=120, check=False
    )
    assert pasted.returncode == 0, pasted.stderr
    assert "account.name: Kite and Sons" in pasted.stdout
    assert says_that_all_is_equal(embedded._replace(lines=pasted.stdout.splitlines())), pasted.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("SET source = json_set(source, '$.email', 'forged')", "email is"),
        ("SET deleted = 1", "is missing in the index"),
        ("SET deleted = 0, document_id = 'left over'", "in the database no longer"),
    ],
)
def test_demo_that_finds_a_difference_names_it_and_exits_1(embedded: Shown, change: str, said: str) -> None:
    path = embedded.directory / "shown" / "search.db"
    before = path.with_name("before.db")
    with closing(sqlite3.connect(path)) as connection, closing(sqlite3.connect(before)) as copy:
        connection.backup(copy)
        connection.execute(f"UPDATE documents {change} WHERE index_name = 'demo-contacts-000001' AND document_id = '2'")
        connection.commit()
        compared = demo(embedded.directory, "--compare")
        copy.backup(connection)
    assert compared.code == 1
    assert any(line.startswith("✗ demo-contacts/") for line in compared.lines)
    assert said in "\n".join(compared.lines)


def test_compare_without_a_demo_says_so(tmp_path: Path) -> None:
    compared = demo(tmp_path, "--compare")
    assert compared.code == 1
    assert "run bin/demo first" in compared.errors


@pytest.mark.elasticsearch
def test_demo_on_elasticsearch_ends_with_the_index_equal_to_the_database(clean_node: Node, tmp_path: Path) -> None:
    for _ in range(2):  # again on the same node: what the first one left is in nobody's way
        shown = demo(tmp_path, "--elasticsearch", OUTBOX_ELASTICSEARCH_URL=clean_node.url)
        assert shown.code == 0, shown.errors
        assert says_that_all_is_equal(shown), shown.lines
    assert sorted(clean_node.indexes()) == [f"{index}-000001" for index in INDEXES]
