"""The CRM's web API, its relay and a real Elasticsearch: three processes, and HTTP between them."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from sqlalchemy import create_engine

from outbox import schema, sqlite
from tests.support import LIMIT_S
from tests.support.node import Node, free_port
from tests.support.outbox import Outbox
from tests.support.proxy import FaultProxy, Request, hang
from tests.support.relays import Relays, until

EXAMPLES = str(Path(__file__).parents[1] / "examples")
ACCOUNT = {"name": "Kite & Sons", "industry": "shipping", "city": "Leeds", "country": "UK", "employees": 12}
PERSON = {"name": "Ada Lovelace", "email": "ada@kite.example", "job_title": "Owner", "notes": "Prefers letters."}
DEAL = {"title": "Forty looms", "stage": "lead", "amount": 9_000, "closes_on": "2026-12-01"}

pytestmark = pytest.mark.elasticsearch


# The API with more patience for a search than it has by itself: a busy machine takes longer than 3 s for one.
SERVE = """
import sys, uvicorn, crm_api
from outbox import Search
crm_api.search_index = Search(timeout=50, concurrency=crm_api.SEARCHES)
uvicorn.run(crm_api.app, port=int(sys.argv[1]), access_log=False)
"""


class Answer(NamedTuple):
    status: int
    body: Any


class Api:
    """The API, as one tenant sees it."""

    def __init__(self, port: int, tenant: str = "acme") -> None:
        self.port, self.tenant = port, tenant

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            given = {"X-Tenant": self.tenant, "Content-Type": "application/json", **headers}
            connection.request(method, path, content, given)
            answer = connection.getresponse()
            return Answer(answer.status, json.loads(answer.read() or b"null"))
        finally:
            connection.close()

    def create(self, path: str, body: dict[str, Any]) -> int:
        answer = self.call("POST", path, body)
        assert answer.status == 201, answer
        return int(answer.body["id"])

    def put(self, path: str, body: dict[str, Any]) -> None:
        assert self.call("PUT", path, body).status == 200

    def delete(self, path: str) -> None:
        assert self.call("DELETE", path) == Answer(204, None)

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        assert answer.status == 200, answer
        return answer.body

    def found(self, words: str, index: str = "contacts", limit: int = 10) -> list[int]:
        """Nothing, too, while a busy machine takes longer for it than the API waits."""
        answer = self.call("GET", f"/search?q={quote(words)}&index={index}&limit={limit}")
        assert answer.status in (200, 503), answer
        return [each["id"] for each in answer.body] if answer.status == 200 else []


class Crm(NamedTuple):
    """All that runs. Each test is a tenant of its own."""

    port: int
    outbox: Outbox
    node: Node
    proxy: FaultProxy
    answer_before_any_delivery: Answer

    def of(self, tenant: str) -> Api:
        return Api(self.port, tenant)

    def delivered(self) -> bool:
        counts = self.outbox.counts()
        return not counts.get("pending") and not counts.get("claimed")

    def document(self, index: str, id: int) -> dict[str, Any] | None:
        """What the index holds when all is delivered."""
        until(self.delivered, "all rows are delivered")
        return self.node.get(index, str(id))


@pytest.fixture(scope="module")
def crm(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crm]:
    node.wipe()
    directory, proxy, port = tmp_path_factory.mktemp("crm"), FaultProxy(node.url), free_port()
    engine = create_engine(f"sqlite:///{directory / 'crm.db'}")
    sqlite.prepare(engine)
    schema.upgrade(engine)
    outbox = Outbox(engine)
    relays = Relays(outbox, proxy.url, directory)
    with (directory / "api.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(port)],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": EXAMPLES, "OUTBOX_ELASTICSEARCH_URL": proxy.url},
            stderr=log,
        )
    api = Api(port)

    def answers() -> bool:
        assert process.poll() is None, (directory / "api.log").read_text()
        with suppress(OSError):
            return api.call("GET", "/contacts").status == 200
        return False

    try:
        until(answers, "the API answers")
        first = api.call("GET", "/search?q=ada")
        relays.start(PYTHONPATH=EXAMPLES, OUTBOX_ENTITIES="crm:registry")
        yield Crm(port, outbox, node, proxy, first)
    finally:
        process.terminate()
        process.wait()
        relays.end()
        proxy.close()
        outbox.close()
        engine.dispose()


@pytest.fixture
def api(crm: Crm, request: pytest.FixtureRequest) -> Api:
    """Of a tenant that is this test's own."""
    return crm.of(f"t{abs(hash(request.node.name)) % 10**9}")


def searches(request: Request) -> bool:
    return "_search" in request.path or "_field_caps" in request.path


# -- a write arrives -------------------------------------------------------------------------------------------------


def test_created_contact_is_in_the_index(crm: Crm, api: Api) -> None:
    account = api.create("/accounts", ACCOUNT)
    contact = api.create("/contacts", {"account_id": account, **PERSON})
    assert crm.document("demo-contacts", contact) == {
        **PERSON,
        "account": {"name": "Kite & Sons"},
        "tenantId": api.tenant,
    }
    assert crm.document("demo-accounts", account) == {**ACCOUNT, "tenantId": api.tenant}


def test_changed_contact_has_its_new_values_in_the_index(crm: Crm, api: Api) -> None:
    first, second = (api.create("/accounts", {**ACCOUNT, "name": name}) for name in ("Kite & Sons", "Lark"))
    contact = api.create("/contacts", {"account_id": first, **PERSON})
    assert crm.document("demo-contacts", contact) is not None  # so that it is changed, and not written once
    changed = {**PERSON, "name": "Ada King", "notes": ""}
    api.put(f"/contacts/{contact}", {"account_id": second, **changed})
    assert crm.document("demo-contacts", contact) == {**changed, "account": {"name": "Lark"}, "tenantId": api.tenant}
    assert api.get(f"/contacts/{contact}") == {"id": contact, "account_id": second, **changed}


def test_deleted_contact_is_gone_from_the_index(crm: Crm, api: Api) -> None:
    account = api.create("/accounts", ACCOUNT)
    contact = api.create("/contacts", {"account_id": account, **PERSON})
    assert crm.document("demo-contacts", contact) is not None
    api.delete(f"/contacts/{contact}")
    assert crm.document("demo-contacts", contact) is None
    assert api.call("GET", f"/contacts/{contact}").status == 404


def test_deal_that_is_opened_rewritten_and_dropped(crm: Crm, api: Api) -> None:
    account = api.create("/accounts", ACCOUNT)
    deal = api.create("/deals", {"account_id": account, **DEAL})
    document = {**DEAL, "account": {"name": "Kite & Sons", "city": "Leeds"}, "tenantId": api.tenant}
    assert crm.document("demo-deals", deal) == document
    api.put(f"/deals/{deal}", {"account_id": account, **DEAL, "stage": "won", "closes_on": "2026-11-30"})
    assert crm.document("demo-deals", deal) == {**document, "stage": "won", "closes_on": "2026-11-30"}
    api.delete(f"/deals/{deal}")
    assert crm.document("demo-deals", deal) is None


def test_renamed_account_reaches_the_documents_of_its_contacts_and_deals(crm: Crm, api: Api) -> None:
    account, other = (api.create("/accounts", ACCOUNT) for _ in range(2))
    contacts = [api.create("/contacts", {"account_id": account, **PERSON}) for _ in range(3)]
    stranger = api.create("/contacts", {"account_id": other, **PERSON})
    deal = api.create("/deals", {"account_id": account, **DEAL})
    api.put(f"/accounts/{account}", {**ACCOUNT, "name": "Kestrel", "city": "York"})
    documents = [crm.document("demo-contacts", each) or {} for each in contacts]
    assert [each["account"] for each in documents] == [{"name": "Kestrel"}] * 3
    assert (crm.document("demo-deals", deal) or {})["account"] == {"name": "Kestrel", "city": "York"}
    assert (crm.document("demo-contacts", stranger) or {})["account"] == {"name": "Kite & Sons"}


def test_account_that_leaves_takes_its_contacts_and_deals_out_of_the_index(crm: Crm, api: Api) -> None:
    account = api.create("/accounts", ACCOUNT)
    contact = api.create("/contacts", {"account_id": account, **PERSON})
    deal = api.create("/deals", {"account_id": account, **DEAL})
    assert crm.document("demo-deals", deal) is not None
    api.delete(f"/accounts/{account}")
    gone = [("demo-accounts", account), ("demo-contacts", contact), ("demo-deals", deal)]
    assert [crm.document(index, id) for index, id in gone] == [None] * 3


def test_thousand_contacts_are_searchable_within_10_s_of_the_last_answer(crm: Crm, api: Api) -> None:
    """Or as long as it took to create them, on a machine that needs longer for that."""
    account = api.create("/accounts", ACCOUNT)
    crm.proxy.clear()
    began = time.monotonic()
    with ThreadPoolExecutor(8) as people:
        weaver = {"account_id": account, **PERSON, "job_title": "Weaver"}
        ids = set(people.map(api.create, ["/contacts"] * 1_000, [weaver] * 1_000))
    last_answer = time.monotonic()
    until(lambda: set(api.found("weaver", limit=1_000)) == ids, "all are searchable")
    seconds = time.monotonic() - last_answer
    print(f"1,000 creates took {last_answer - began:.1f} s; all were searchable {seconds:.2f} s after the last answer")
    assert seconds < max(10, last_answer - began)
    assert not [each.path for each in crm.proxy.requests if "refresh" in each.path]  # nobody forced it


# -- the search engine is away ---------------------------------------------------------------------------------------


def test_outage_fails_no_write_and_loses_none(crm: Crm, api: Api) -> None:
    account = api.create("/accounts", ACCOUNT)
    kept, changed, left = (api.create("/contacts", {"account_id": account, **PERSON}) for _ in range(3))
    assert crm.document("demo-contacts", left) is not None
    crm.proxy.down()
    try:
        new = [api.create("/contacts", {"account_id": account, **PERSON, "notes": f"No {n}."}) for n in range(50)]
        api.put(f"/contacts/{changed}", {"account_id": account, **PERSON, "name": "Ada King"})
        api.delete(f"/contacts/{left}")
        deal = api.create("/deals", {"account_id": account, **DEAL})
        assert api.get(f"/contacts/{new[0]}")["notes"] == "No 0."
        away = api.call("GET", "/search?q=ada")
        assert away == Answer(503, {"detail": away.body["detail"]})
        assert away.body["detail"].startswith("the search does not answer at present")
        assert not crm.delivered()
    finally:
        crm.proxy.up()
    assert crm.document("demo-contacts", left) is None
    held = {each: crm.document("demo-contacts", each) for each in (kept, changed, *new)}
    rows = {each["id"]: each for each in api.get("/contacts")}
    assert held == {
        id: {**{name: row[name] for name in PERSON}, "account": {"name": "Kite & Sons"}, "tenantId": api.tenant}
        for id, row in rows.items()
    }
    assert crm.document("demo-deals", deal) is not None
    assert crm.outbox.dead() == []
    assert until(lambda: api.found("king"), "it can be found") == [changed]


def test_search_engine_that_hangs_keeps_nobody_from_writing(crm: Crm, api: Api) -> None:
    account = api.create("/accounts", ACCOUNT)
    assert crm.document("demo-accounts", account) is not None
    crm.proxy.clear()
    crm.proxy.on(searches, hang)
    with ThreadPoolExecutor(60) as people:
        asked = [people.submit(api.call, "GET", "/search?q=ada") for _ in range(60)]  # more than there are threads
        crm.proxy.wait_for(searches)
        ids = [api.create("/contacts", {"account_id": account, **PERSON}) for _ in range(3)]
        answered = sum(each.done() for each in asked)
        assert crm.document("demo-contacts", ids[-1]) is not None
        crm.proxy.clear()
        statuses = {each.result().status for each in asked}
    assert answered == 0
    assert statuses <= {200, 503}


def test_search_before_anything_was_delivered_finds_nothing(crm: Crm) -> None:
    assert crm.answer_before_any_delivery == Answer(200, [])


# -- who may see what, and what is refused ---------------------------------------------------------------------------


def test_tenants_see_nothing_of_each_other(crm: Crm, api: Api) -> None:
    other = crm.of(f"{api.tenant}-2")  # whose name begins with the other's
    for_each = {}
    for each in (api, other):
        account = each.create("/accounts", ACCOUNT)
        for_each[each.tenant] = (account, each.create("/contacts", {"account_id": account, **PERSON}))
    (account, contact), (_, others) = for_each[api.tenant], for_each[other.tenant]
    assert crm.document("demo-contacts", others) is not None  # a shard that is just being made answers no search
    assert until(lambda: api.found("lovelace"), "it can be found") == [contact]
    assert until(lambda: other.found("lovelace"), "it can be found") == [others]
    assert [each["id"] for each in other.get("/contacts")] == [others]
    body = {"account_id": account, **PERSON}
    assert {other.call(method, f"/contacts/{contact}", body).status for method in ("GET", "PUT", "DELETE")} == {404}
    assert other.call("POST", "/contacts", body) == Answer(422, {"detail": f"there is no account {account}"})
    assert other.call("PUT", f"/contacts/{others}", body).status == 422
    assert crm.document("demo-contacts", contact) is not None


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/contacts/999999", None, {}, 404),
        ("PUT", "/accounts/999999", ACCOUNT, {}, 404),
        ("DELETE", "/deals/999999", None, {}, 404),
        ("GET", "/contacts/99999999999999999999", None, {}, 422),
        ("GET", "/contacts?after=99999999999999999999", None, {}, 422),
        ("GET", "/contacts?limit=1001", None, {}, 422),
        ("GET", "/contacts", None, {"X-Tenant": "Acme/../x"}, 422),
        ("GET", "/contacts", None, {"X-Tenant": ""}, 422),
        ("POST", "/accounts", {**ACCOUNT, "name": ""}, {}, 422),
        ("POST", "/accounts", {**ACCOUNT, "name": "a\0b"}, {}, 422),
        ("POST", "/accounts", {**ACCOUNT, "name": "a\ud800b"}, {}, 422),
        ("POST", "/accounts", {**ACCOUNT, "employees": 2**31}, {}, 422),
        ("POST", "/accounts", {**ACCOUNT, "employees": 10**400}, {}, 422),
        ("POST", "/accounts", b"{", {}, 422),
        ("POST", "/contacts", {**PERSON, "account_id": 999_999}, {}, 422),
        ("POST", "/deals", {**DEAL, "account_id": 1, "closes_on": "soon"}, {}, 422),
        ("GET", "/search?q=ada&index=secrets", None, {}, 422),
        ("GET", "/search?q=", None, {}, 422),
        ("GET", "/search", None, {}, 422),
    ],
)
def test_request_that_cannot_be_met_is_the_clients_fault(
    api: Api, method: str, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    answer = api.call(method, path, body, **headers)
    assert answer.status == status
    assert answer.body["detail"]
