"""TLS where plain HTTP is meant, and certificates that nobody knows: rows wait, whatever comes back."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from outbox.store.models import now_ms
from tests.support import LIMIT_S
from tests.support.node import Node
from tests.support.outbox import Outbox
from tests.support.proxy import FaultProxy
from tests.support.relays import Relays, until
from tests.support.tls import needs_nginx, needs_openssl, nginx, self_signed

pytestmark = [pytest.mark.elasticsearch, needs_openssl]

SECOND = 1_000


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    return self_signed(tmp_path)


@pytest.fixture
def tls_proxy(clean_node: Node, certificate: tuple[ssl.SSLContext, Path]) -> Iterator[FaultProxy]:
    """The node behind TLS."""
    running = FaultProxy(clean_node.url, tls=certificate[0])
    yield running
    running.close()


def kills_nothing(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node, wrong_url: str, index_known: bool
) -> str:
    """Rows wait as long as the address is wrong, and arrive when it is right. Returns what the breaker says."""
    if index_known:
        outbox.index("contacts", "first", {})
        outbox.drain(destination)
    rows = outbox.index_many("contacts", [(f"c{n}", {"n": n}) for n in range(16)])
    wrong = ElasticsearchDestination([wrong_url], request_timeout=30)
    relay, now = outbox.relay(wrong), now_ms()
    for minute in range(12):  # more often than a row that gets no answer is sent with others
        relay.run_once(now + minute * 60 * SECOND)
    wrong.close()
    assert [(outbox.state(row), outbox.row(row)["attempts"]) for row in rows] == [("pending", 0)] * 16
    (breaker,) = relay.breakers()
    assert breaker["scope"] == "destination"

    while outbox.counts()["pending"]:
        outbox.drain(destination, now + 3_600 * SECOND)
    assert {outbox.state(row) for row in rows} == {"done"}
    assert len(node.documents("contacts")) == 16 + index_known
    return str(breaker["reason"])


@pytest.mark.parametrize("index_known", [True, False])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_http_to_a_tls_port_or_an_unknown_certificate_kills_nothing(
    outbox: Outbox,
    destination: ElasticsearchDestination,
    tls_proxy: FaultProxy,
    node: Node,
    scheme: str,
    index_known: bool,
) -> None:
    url = f"{scheme}://{tls_proxy.url.partition('//')[2]}"
    reason = kills_nothing(outbox, destination, node, url, index_known)
    assert ("certificate verify failed" in reason) == (scheme == "https")
    assert tls_proxy.requests == []  # nothing was said before the certificate was checked


@needs_nginx
@pytest.mark.parametrize("index_known", [True, False])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.usefixtures("certificate")
def test_http_to_a_tls_port_of_nginx_that_answers_400_to_everything_kills_nothing(
    outbox: Outbox,
    destination: ElasticsearchDestination,
    node: Node,
    tmp_path: Path,
    scheme: str,
    index_known: bool,
) -> None:
    with nginx(tmp_path, f"location / {{ proxy_pass {node.url}; }}") as address:
        reason = kills_nothing(outbox, destination, node, f"{scheme}://{address}", index_known)
    assert ("HTTP 400" in reason) == (scheme == "http")


def test_relay_delivers_over_tls_once_it_is_told_whom_to_trust(
    outbox: Outbox, relays: Relays, tls_proxy: FaultProxy, certificate: tuple[ssl.SSLContext, Path], node: Node
) -> None:
    row = outbox.index("contacts", "c1", {"name": "Ada"})
    mistrusting = relays.start(OUTBOX_ELASTICSEARCH_URL=tls_proxy.url)
    until(lambda: "destination unreachable" in relays.log(), "the relay refuses the unknown certificate")
    assert "certificate verify failed" in relays.log()
    assert "Traceback" not in relays.log()
    mistrusting.terminate()
    assert mistrusting.wait(LIMIT_S) == 0
    assert (outbox.state(row), outbox.row(row)["attempts"]) == ("pending", 0)
    trusted = {"OUTBOX_ELASTICSEARCH_URL": tls_proxy.url, "OUTBOX_ELASTICSEARCH_CA_CERTS": str(certificate[1])}
    assert relays.call("run", "--drain", **trusted).returncode == 0
    assert outbox.state(row) == "done"
    assert node.get("contacts", "c1") == {"name": "Ada"}
