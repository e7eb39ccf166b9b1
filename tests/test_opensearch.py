"""OpenSearch as the destination: how it is chosen, and what tells it from Elasticsearch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from outbox import check, settings
from outbox.destinations import address_of, destination_of
from outbox.destinations.base import Destination, Health
from outbox.destinations.cluster.wire import Answer, Cluster, Unanswered
from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from outbox.destinations.opensearch.destination import OPENSEARCH, OpenSearchDestination
from outbox.errors import ConfigurationError, DestinationError
from tests.support import LIMIT_S
from tests.support.proxy import FaultProxy, Reply, anything, reply

URL = "http://ada:s3cret@search.example:9200"


@pytest.fixture
def server() -> Iterator[FaultProxy]:
    """Answers what a test tells it, and nothing else."""
    running = FaultProxy("http://127.0.0.1:1")
    yield running
    running.close()


def test_address_is_taken_from_its_own_variables_and_shown_without_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_DESTINATION", "opensearch")
    monkeypatch.setenv("OUTBOX_OPENSEARCH_URL", f"{URL}, http://other.example")
    monkeypatch.setenv("OUTBOX_ELASTICSEARCH_URL", "http://not-this.example:9200")
    loaded = settings.load()
    made = destination_of(loaded)
    made.close()
    assert isinstance(made, OpenSearchDestination)
    assert address_of(loaded) == "http://search.example:9200, http://other.example:80"
    assert {"OUTBOX_OPENSEARCH_PASSWORD"} <= settings.SECRET


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"OUTBOX_DESTINATION": "opensearch"}, "set OUTBOX_OPENSEARCH_URL, e.g. http://localhost:9200"),
        ({"OUTBOX_OPENSEARCH_URL": "http://localhost:1"}, "set OUTBOX_DESTINATION=opensearch, too"),
        ({"OUTBOX_OPENSEARCH_URL": "http://u:a/b@localhost"}, "OUTBOX_OPENSEARCH_USERNAME and OUTBOX_OPENSEARCH_PASSW"),
    ],
)
def test_address_that_is_missing_or_wrong_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], says: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=says):
        destination_of(settings.load())


def test_extra_that_is_not_installed_is_named_with_its_command(engine: Engine) -> None:
    without = "import sys; sys.modules['opensearchpy'] = None; from outbox.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", without, "run", "--drain", "--database-url", str(engine.url)],
        env={**os.environ, "OUTBOX_DESTINATION": "opensearch", "OUTBOX_OPENSEARCH_URL": "http://localhost:1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ended.returncode == 2
    assert "OpenSearch needs opensearchpy: pip install" in ended.stderr
    assert "[opensearch]" in ended.stderr


@pytest.mark.parametrize("status", [200, 404, 400])
def test_elasticsearch_that_answers_in_its_place_is_named(server: FaultProxy, status: int) -> None:
    headers = {"X-Elastic-Product": "Elasticsearch", "Content-Type": "application/json"}
    server.on(anything, reply(status, b"{}", headers))
    asked = OpenSearchDestination([server.url], request_timeout=LIMIT_S)
    assert "this server is Elasticsearch: set OUTBOX_DESTINATION=elasticsearch" in refusal(asked)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b'{"status": "green"}'),
        (404, b'{"error": "alias [contacts] missing", "status": 404}'),
        (
            406,
            b'{"error": "Content-Type header [application/vnd.elasticsearch+json] is not supported"}',
        ),
    ],
)
def test_opensearch_that_answers_for_elasticsearch_is_named(server: FaultProxy, status: int, body: bytes) -> None:
    server.on(anything, lambda *_: Reply(status, {"Content-Type": "application/json; charset=UTF-8"}, body))
    asked = ElasticsearchDestination([server.url], request_timeout=LIMIT_S)
    assert "if it is OpenSearch, set OUTBOX_DESTINATION=opensearch" in refusal(asked)


def refusal(asked: Destination) -> str:
    """What the first call of a relay raises, and what a person is told."""
    with pytest.raises(DestinationError) as raised:
        asked.ensure_index("contacts")
    assert str(raised.value).partition(": ")[2] in (asked.ping() or "")
    asked.close()
    return str(raised.value)


@pytest.mark.parametrize(
    ("version", "level"),
    [("2.19.1", "ok"), ("2.20.0", "ok"), ("3.1.0", "ok"), ("2.18.0", "fail"), ("1.3.2", "fail"), ("7.10.2", "fail")],
)
def test_check_knows_its_versions(version: str, level: str) -> None:
    class Answers:
        def health(self) -> Health:
            return Health("opensearch", version, "green")

    found = {each.name: each for each in check.destination(Answers())}  # type: ignore[arg-type]
    assert found["destination"].level == level
    assert level == "ok" or "OpenSearch 2.19" in found["destination"].remedy


def test_page_of_a_listing_that_was_lost_on_its_way_is_not_skipped() -> None:
    """The cluster has gone on to the next page; whoever asked the other node would get that one."""

    class Client:
        def __init__(self) -> None:
            self.asked: list[str] = []

        def ask(self, _method: str, target: str, _body: bytes | None, _content_type: str) -> Answer:
            self.asked.append(target.partition("?")[0])
            if target.startswith("/_search/scroll?"):
                raise Unanswered("ConnectionError", "reset", "lost")
            hits: list[Any] = [{"_id": "c1", "_version": 1}]
            return Answer(200, {"_scroll_id": "s", "hits": {"hits": hits}})

        def close(self) -> None: ...

    client = Client()
    listed = OPENSEARCH.hits(Cluster(OPENSEARCH, client, 3), "contacts", {"size": 1})
    assert [hit["_id"] for hit in next(listed)] == ["c1"]
    with pytest.raises(Unanswered):
        next(listed)
    assert client.asked == ["/contacts/_search", "/_search/scroll", "/_search/scroll"]  # the last one ends it
