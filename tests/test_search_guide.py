"""The files of the guide to searches at work: pages of a blog, filters, and the search engine's own client."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch

from outbox import ConfigurationError, InvalidName, Search, schema
from outbox.destinations import destination_of
from outbox.destinations.base import Destination, Operation
from outbox.settings import load
from tests.support.node import Node
from tests.support.outbox import Outbox


@pytest.fixture
def destination(guide: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Destination]:
    guide("docs/how-to/search.md")
    monkeypatch.setenv("OUTBOX_DESTINATION", "embedded")
    monkeypatch.setenv("OUTBOX_EMBEDDED_PATH", str(tmp_path / "search.db"))
    made = destination_of(load())
    yield made
    made.close()


@pytest.fixture
def blog(destination: Destination) -> Iterator[Any]:
    """A blog of 45 posts about lighthouses and one about something else, all delivered."""
    module = importlib.import_module("blog_app")
    app = module.create_app()
    with app.app_context():
        schema.upgrade(module.db.engine)
        module.db.session.add_all(module.Post(body=f"lighthouse <{n}>") for n in range(45))
        module.db.session.add(module.Post(body="gardens"))
        module.db.session.commit()
        outbox = Outbox(module.db.engine)
        relay = outbox.relay(destination, registry=module.registry)
        while relay.run_once():
            pass
        outbox.close()
        yield app
        module.search.close()
        module.db.engine.dispose()


def test_blog_shows_page_after_page_of_what_was_found(blog: Any) -> None:
    client, shown = blog.test_client(), []
    for page in ("", "&page=2", "&page=3"):
        text = client.get(f"/search?q=lighthouse{page}").get_data(as_text=True)
        assert "<p>45 posts</p>" in text
        shown += re.findall(r'<a href="/posts/(\d+)"><mark>lighthouse</mark> &lt;\d+&gt;</a>', text)
    assert sorted(map(int, shown)) == list(range(1, 46))
    assert ">more<" not in text


def test_blog_shows_matches_in_the_place_of_what_paginate_returns(blog: Any) -> None:
    matches = importlib.import_module("blog_app.pages").Matches
    page = matches(page=2, per_page=20, q="lighthouse")
    assert (len(page.items), page.total, page.pages, page.has_next, page.next_num) == (20, 45, 3, True, 3)
    assert all(post.body.startswith("lighthouse") for post in page.items)
    with blog.test_request_context("/?page=3&per_page=20"):
        assert len(matches(q="lighthouse").items) == 5


ARTICLES = {
    "1": {"title": "Old", "body": "sea", "status": "open", "written": "2023-12-31", "author": {"town": "London"}},
    "2": {"title": "New", "body": "the sea", "status": "new", "written": "2024-02-01", "author": {"town": "London"}},
    "3": {"title": "Newer", "body": "sea", "status": "open", "written": "2024-03-01", "author": {"town": "London"}},
    "4": {"title": "Shut", "body": "sea", "status": "shut", "written": "2024-03-01", "author": {"town": "London"}},
    "5": {"title": "Away", "body": "sea", "status": "open", "written": "2024-03-01", "author": {"town": "Leeds"}},
}


def test_articles_are_narrowed_and_ordered(destination: Destination) -> None:
    target = destination.ensure_index("articles")
    destination.apply(
        [Operation("articles", target, each, 1, json.dumps(document).encode()) for each, document in ARTICLES.items()]
    )
    recent = importlib.import_module("search_app.narrow").recent
    importlib.import_module("search_app.find").search.close()
    with Search() as search:
        assert list(recent(search, "sea").items()) == [("Newer", "<mark>sea</mark>"), ("New", "the <mark>sea</mark>")]
        assert recent(search, None) == {"Newer": "", "New": ""}


@pytest.mark.usefixtures("destination")
def test_embedded_destination_has_no_client_and_says_so() -> None:
    with Search() as search:
        with pytest.raises(ConfigurationError, match="has no client: the embedded destination is searched"):
            search.client("contacts")
        with pytest.raises(InvalidName):
            search.client("Contacts")


@pytest.mark.elasticsearch
def test_client_is_the_official_one_with_the_address_of_the_settings(
    guide: Callable[[str], Path], clean_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide("docs/how-to/search.md")
    monkeypatch.setenv("OUTBOX_ELASTICSEARCH_URL", clean_node.url)
    clean_node.request("PUT", "/contacts-000001", {"aliases": {"contacts": {}}, "mappings": TOWNS})
    for number in range(3):
        clean_node.request("PUT", f"/contacts/_doc/{number}?refresh=true", {"town": "London" if number else "Leeds"})
    with Search() as search:
        client, name = search.client("contacts")
        assert (type(client), name) == (Elasticsearch, "contacts")
        assert search.client("contacts")[0] is client
        assert importlib.import_module("search_app.count").towns(search) == {"London": 2, "Leeds": 1}
        found = client.msearch(searches=[{"index": name}, {"query": {"match_all": {}}}])
        assert found["responses"][0]["hits"]["total"]["value"] == 3


TOWNS = {"properties": {"town": {"type": "keyword"}}}
