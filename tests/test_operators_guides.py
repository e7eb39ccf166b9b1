"""The guides for operators at work: their commands and calls, one after the other, on rows as they describe them."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy.orm import Session

from outbox.cli import main
from outbox.destinations.embedded.destination import EmbeddedDestination
from tests.admin.world import kill
from tests.support.outbox import Outbox
from tests.support.pages import PAGES, blocks
from tests.support.serving import client_of

NINETY_ONE_DAYS_MS = 91 * 86_400_000
PARSING = "mapper_parsing_exception"


@pytest.fixture
def destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OUTBOX_DESTINATION", "embedded")
    monkeypatch.setenv("OUTBOX_EMBEDDED_PATH", str(tmp_path / "search.db"))
    made = EmbeddedDestination(tmp_path / "search.db")
    yield made
    made.close()


def lines(page: str, beginning: str) -> list[list[str]]:
    """The words of each line of a page's shell blocks that begins so."""
    shell = "\n".join(block.content for block in blocks(PAGES[page]) if block.language == "sh")
    return [shlex.split(line, comments=True) for line in shell.splitlines() if line.startswith(beginning)]


def run(outbox: Outbox, words: list[str]) -> str:
    answer = CliRunner().invoke(main, words[1:], env={"OUTBOX_DATABASE_URL": outbox.url})
    assert answer.exit_code == 0, (words, answer.output)
    return answer.stdout


def dead(outbox: Outbox, document: str, tenant: str, field: str | None = None, age_ms: int = 0) -> int:
    row = outbox.index("contacts", document, {}, tenant_id=tenant)
    kill(outbox, row, PARSING)
    outbox.raw("UPDATE outbox_events SET error_field = :field WHERE id = :row", field=field, row=row)
    return written(outbox, row, age_ms)


def written(outbox: Outbox, row: int, age_ms: int) -> int:
    outbox.raw("UPDATE outbox_events SET created_at = created_at - :age WHERE id = :row", age=age_ms, row=row)
    return row


def there(outbox: Outbox) -> dict[int, str]:
    return {row[0]: row[1] for row in outbox.store().run("SELECT id, state FROM outbox_events")}


def test_rows_are_retried_discarded_and_purged_as_the_guide_says(outbox: Outbox) -> None:
    curable, other = dead(outbox, "c1", "acme", "age"), dead(outbox, "c2", "acme")
    old, of_another = (dead(outbox, f"c{tenant}", tenant, None, NINETY_ONE_DAYS_MS) for tenant in ("acme", "globex"))
    mistake = outbox.index("contacts", "contact-123", {}, tenant_id="globex")
    stale = written(outbox, outbox.index("deals", "d1", {}, tenant_id="acme"), NINETY_ONE_DAYS_MS)
    fresh = outbox.index("deals", "d2", {}, tenant_id="acme")
    said = [run(outbox, words) for words in lines("how-to/some-rows.md", "outbox-relay ")]
    assert "3 dead rows" in said[0] and "1 dead row" in said[1]
    left = there(outbox)
    assert left == {curable: "pending", other: "dead", of_another: "dead", fresh: "pending"}
    assert not {old, mistake, stale} & {*left}


def test_calls_of_the_guide_choose_what_its_commands_choose(outbox: Outbox, destination: EmbeddedDestination) -> None:
    old, curable = dead(outbox, "c0", "acme", None, NINETY_ONE_DAYS_MS), dead(outbox, "c1", "globex", "age")
    mistake = outbox.index("contacts", "contact-123", {})
    with client_of(outbox.engine, destination) as client:
        answers = []
        for words in lines("how-to/some-rows.md", "curl "):
            path = words[1].replace("$api", "/api/v1/admin")
            answers.append(client.post(path, json=json.loads(words[words.index("-d") + 1])))
    assert [each.status_code for each in answers] == [200, 200, 200]
    assert answers[0].json()["selected"] == 1
    assert (there(outbox)[old], there(outbox)[curable]) == ("dead", "pending")
    assert mistake not in there(outbox)


def test_tokens_hidden_fields_and_audit_are_as_the_guide_says(
    outbox: Outbox, destination: EmbeddedDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = {role: f"a-token-of-its-own-to-{role}" for role in ("look", "operate", "administer")}
    for words in lines("how-to/access.md", "export "):
        name, _, value = words[1].partition("=")
        in_order = iter(tokens.values())
        monkeypatch.setenv(name, re.sub("…", lambda _, given=in_order: next(given), value))
    row = outbox.index("contacts", "c1", {"name": "Ada", "email": "ada@example.com", "notes": "a secret"})
    with client_of(outbox.engine, destination) as client:

        def status(role: str, path: str) -> int:
            body = {"reason": "import", "index": "contacts"} if path == "pause" else {"all": True}
            sent = {"Authorization": f"Bearer {tokens[role]}"}
            return int(client.post(f"/api/v1/admin/{path}", json=body, headers=sent).status_code)

        may = [[status(role, path) for path in ("pause", "purge")] for role in ("look", "operate")]
        seen = client.get(f"/api/v1/admin/events/{row}", headers={"Authorization": f"Bearer {tokens['look']}"})
        assert may == [[403, 403], [200, 403]]
        assert status("administer", "purge") == 200
    assert "Ada" in seen.text and "example.com" not in seen.text and "secret" not in seen.text
    newest, of_one, as_json = (run(outbox, words) for words in lines("how-to/access.md", "outbox-relay audit"))
    assert re.findall(r"  (\w+) at testclient  (\w+)", newest) == [("grace", "purge"), ("ada", "pause")]
    assert of_one == "nothing was done so far\n"
    assert [each["action"] for each in json.loads(as_json)] == ["purge", "pause"]


def test_partial_updates_make_change_and_leave_documents_as_the_guide_says(
    guide: Callable[[str], Path], outbox: Outbox, destination: EmbeddedDestination
) -> None:
    guide("docs/how-to/updates.md")
    visits = importlib.import_module("visits_app.visits")
    first, later = datetime(2026, 1, 1), datetime(2026, 1, 2)
    relay = outbox.relay(destination)
    for call, *given in (
        (visits.seen, "v1", first),
        (visits.seen, "v1", later),
        (visits.renamed, "v1", "Ada"),
        (visits.known, "v1", later),
        (visits.known, "v2", later),
        (visits.renamed, "v3", "Bob"),
    ):
        with Session(outbox.engine) as session, session.begin():
            call(session, *given)
        while relay.run_once():
            pass
    found = {hit.document_id: hit.source for hit in destination.search("visitors", None)}
    assert found == {
        "v1": {"first": "2026-01-01T00:00:00", "last": "2026-01-02T00:00:00", "name": "Ada"},
        "v2": {"first": "2026-01-02T00:00:00"},
    }
    died = outbox.store().run("SELECT document_id, error_type FROM outbox_events WHERE state = 'dead'")
    assert [tuple(row) for row in died] == [("v3", "document_missing")]
