"""What is measured with: documents, raw `_bulk` requests, and how much memory a process takes."""

from __future__ import annotations

import contextlib
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
from elasticsearch import Elasticsearch
from rich.console import Console

from outbox.store.models import EPOCH_STEP

BATCH = 1_000
AGAIN: dict[str, Any] = {"max_retries": 10, "retry_on_status": (429,)}
INDEX = "bench"
COMMAND = Path(sys.executable).with_name("outbox-relay")
console = Console()

SYLLABLES = [consonant + vowel for consonant in "bcdfghklmnprstv" for vowel in "aeiou"]


def documents(number: int, seed: int = 7) -> list[tuple[str, dict[str, Any]]]:
    """Contacts of about 0.9 KB with varied text."""
    chance = random.Random(seed)
    words = ["".join(chance.choices(SYLLABLES, k=chance.randint(2, 4))) for _ in range(2_000)]
    made = []
    for n in range(number):
        first, last, company = (word.title() for word in chance.sample(words, 3))
        made.append(
            (
                f"contact-{n}",
                {
                    "first_name": first,
                    "last_name": last,
                    "email": f"{first}.{last}@{company}.example".lower(),
                    "company": f"{company} Ltd",
                    "city": chance.choice(words).title(),
                    "tags": chance.sample(words, 3),
                    "score": chance.randint(0, 1_000),
                    "created_at": f"2026-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}T10:00:00Z",
                    "notes": " ".join(chance.choices(words, k=90)),
                },
            )
        )
    return made


def client_of(url: str, product: str = "elasticsearch", connections: int = 10) -> Any:
    """The product's official client, which sends again what a node takes no more of at the moment."""
    if product == "opensearch":
        from opensearchpy import OpenSearch  # not above: an extra

        return OpenSearch([url], pool_maxsize=connections, timeout=60, **AGAIN)
    return Elasticsearch(url, connections_per_node=connections, request_timeout=60, **AGAIN)


def fresh_index(url: str, name: str = INDEX, product: str = "elasticsearch", **settings: Any) -> None:
    """The same empty index for both sides."""
    client = client_of(url, product)
    client.indices.delete(index=f"{name}-000001", ignore_unavailable=True)
    made = {"aliases": {name: {}}, "settings": {"index.gc_deletes": "24h", **settings}}
    client.indices.create(index=f"{name}-000001", body=made)
    client.close()


def prepared(contents: list[tuple[str, dict[str, Any]]], name: str = INDEX) -> list[bytes]:
    """The bodies of `_bulk` requests with these documents."""
    return [
        b"".join(
            b'{"index":{"_index":"%s-000001","_id":"%s","version":%d,"version_type":"external"}}\n%s\n'
            % (name.encode(), document_id.encode(), EPOCH_STEP + start + at, orjson.dumps(document))
            for at, (document_id, document) in enumerate(contents[start : start + BATCH])
        )
        for start in range(0, len(contents), BATCH)
    ]


def raw(url: str, bodies: list[bytes], connections: int, product: str = "elasticsearch") -> float:
    """Seconds that prepared `_bulk` requests take over so many connections."""
    client = client_of(url, product, connections)
    start = time.perf_counter()
    with ThreadPoolExecutor(connections) as threads:
        for _ in threads.map(lambda body: client.bulk(body=body, filter_path="errors"), bodies):
            pass
    took = time.perf_counter() - start
    client.close()
    return took


def each_raw(url: str, bodies: list[bytes], product: str = "elasticsearch") -> dict[int, float]:
    """The seconds by how many connections there are, each time into an empty index."""
    taken = {}
    for connections in (1, 2, 4):
        fresh_index(url, product=product)
        taken[connections] = raw(url, bodies, connections, product)
    return taken


def peak_memory(pid: int) -> int:
    """Kilobytes. Not `ru_maxrss`: after a fork that starts with the size of the parent."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0
