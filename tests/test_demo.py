"""bin/demo, as a process in a pipe: what it shows, what it leaves behind, and that it can say no."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from tests.support import LIMIT_S
from tests.support.node import Node
from tests.support.relays import until

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
        timeout=5 * LIMIT_S,
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


def test_demo_pauses_an_index_while_others_flow_and_lists_who_did_it(embedded: Shown) -> None:
    """Its rows wait, are delivered once it is resumed, and the audit has both, the newest first."""
    commands = [line.strip() for line in embedded.lines if line.strip().startswith("$ outbox-relay ")]
    pause, resume = (f"$ outbox-relay {verb} --index demo-deals" for verb in ("pause", "resume"))
    assert [line for line in commands if "search" not in line] == [
        f"{pause} --reason 'new prices'",
        resume,
        "$ outbox-relay audit",
    ]
    (waiting,) = (line for line in embedded.lines if "rows of demo-deals wait" in line)
    assert re.search(r": contacts and accounts flow, [1-9]\d* rows of demo-deals wait\.$", waiting)
    after = embedded.lines[embedded.lines.index("$ outbox-relay audit") + 1 :]
    done = [re.search(r"^[\d-]{10} [\d:]{8}  \S+  (\w+)  (.*)$", line) for line in after[:2]]
    assert [found and found.groups() for found in done] == [
        ("resume", "index=demo-deals"),
        ("pause", "index=demo-deals reason=new prices"),
    ]


def test_demo_with_triggers_notes_what_another_program_writes(tmp_path: Path) -> None:
    shown = demo(tmp_path, "--triggers")
    assert shown.code == 0, shown.errors
    assert says_that_all_is_equal(shown), shown.lines
    (line,) = (line for line in shown.lines if "triggers note it" in line)
    assert re.search(r" [1-9]\d\d rows are changed by plain SQL", line)


@pytest.mark.usefixtures("postgres")  # says whether one can be had
def test_demo_on_a_postgresql_of_its_own_ends_with_the_index_equal_to_the_database(tmp_path: Path) -> None:
    shown = demo(tmp_path, "--postgres")
    assert shown.code == 0, shown.errors
    assert says_that_all_is_equal(shown), shown.lines
    assert any("It delivers from PostgreSQL to search.db" in line for line in shown.lines)
    assert not any("status" in line for line in shown.lines[shown.lines.index("To try next") :])
    assert "database system is shut down" in (tmp_path / "shown" / "postgres.log").read_text()
    compared = demo(tmp_path, "--compare")
    assert (compared.code, "has ended with it" in compared.errors) == (1, True)


def test_demo_in_a_pipe_is_plain_lines_of_at_most_80_columns(embedded: Shown) -> None:
    assert max(map(len, embedded.lines[: embedded.lines.index("To try next")])) <= 80  # below stand paths
    assert not any("\x1b" in line or "\r" in line for line in embedded.lines)


def test_what_the_demo_says_to_try_next_can_be_pasted(embedded: Shown) -> None:
    commands = embedded.lines[embedded.lines.index("To try next") + 1 :]
    script = "\n".join(["set -e", *("cat" + line[4:] if line.startswith("less") else line for line in commands)])
    pasted = subprocess.run(
        ["bash", "-c", script], cwd=embedded.directory, capture_output=True, text=True, timeout=3 * LIMIT_S, check=False
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


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A directory where nothing but a demo works."""
    return tmp_path / "served"


@pytest.mark.parametrize("on", ["embedded", pytest.param("elasticsearch", marks=pytest.mark.elasticsearch)])
def test_served_demo_answers_and_ends_with_all_that_it_started(
    on: str, served: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("clean_node").url if on == "elasticsearch" else None
    given = {"OUTBOX_ELASTICSEARCH_URL": url} if url else {}
    with serving(served, *(["--elasticsearch"] if url else []), **given) as (process, shown):
        api, dashboard = re.findall(r"http://[\d.:]+/(?=docs|$)", shown, re.MULTILINE)
        assert "swagger" in get(f"{api}docs").lower()
        assert "<!doctype html>" in get(dashboard).lower()
        (search,) = re.findall(r"'(http\S+search\S+)'", shown)
        until(lambda: "Tanaka" in get(search, may_fail=True), "people of the CRM can be found")
        until(lambda: counted(served, "dead"), "a document is refused")
        assert len(processes_in(served)) == 3  # the demo itself, the API and the relay
        if url:
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal
        rest, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, rest, errors) == (0, "\nAll of it has ended.\n", "")
    assert processes_in(served) == []
    assert counted(served, "claimed") == 0


@pytest.mark.usefixtures("postgres")  # says whether one can be had
def test_served_demo_on_postgresql_answers_and_ends_with_all_that_it_started(served: Path) -> None:
    with serving(served, "--postgres") as (process, shown):
        (dashboard,) = re.findall(r"http://[\d.:]+/(?=$)", shown, re.MULTILINE)
        assert "<!doctype html>" in get(dashboard).lower()
        (search,) = re.findall(r"'(http\S+search\S+)'", shown)
        until(lambda: "Tanaka" in get(search, may_fail=True), "people of the CRM can be found")
        (url,) = re.findall(r"psql (postgresql:\S+)", shown)
        with closing(psycopg.connect(url, autocommit=True)) as connection:
            dead = "SELECT count(*) FROM outbox_events WHERE state = 'dead'"
            until(lambda: connection.execute(dead).fetchone() != (0,), "a document is refused")
        process.terminate()
        rest, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, rest, errors) == (0, "\nAll of it has ended.\n", "")
    assert "database system is shut down" in (served / "postgres.log").read_text()


def test_served_demo_whose_relay_is_killed_says_so_and_ends(served: Path) -> None:
    with serving(served) as (process, _):
        for each in processes_in(served):
            if b"outbox-relay" in Path(f"/proc/{each}/cmdline").read_bytes():
                os.kill(each, signal.SIGKILL)
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert "the relay ended unexpectedly" in errors
    assert processes_in(served) == []


@contextmanager
def serving(directory: Path, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`bin/demo --serve`, and what it said when all was up."""
    with subprocess.Popen(
        [DEMO, "--serve", "--directory", directory, *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            shown = ""
            while (line := process.stdout.readline() if process.stdout else "") and not line.startswith("Ctrl-C"):
                shown += line
            yield process, shown
        finally:
            process.terminate()


def get(address: str, *, may_fail: bool = False) -> str:
    """What is answered. A busy machine may take longer for a search than the API waits (503)."""
    asked = urllib.request.Request(address, headers={"X-Tenant": "acme"})
    try:
        with urllib.request.urlopen(asked, timeout=LIMIT_S) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        if not may_fail or error.code != 503:
            raise
        return str(error.read().decode())


def counted(directory: Path, state: str) -> int:
    with closing(sqlite3.connect(directory / "crm.db")) as connection:
        count = connection.execute("SELECT count(*) FROM outbox_events WHERE state = ?", (state,)).fetchone()[0]
        return int(count)


def processes_in(directory: Path) -> list[int]:
    """Those that work in a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == directory:
                found.append(int(process.name))
    return found


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
