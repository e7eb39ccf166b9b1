"""What a relay asks of Elasticsearch, answered from memory: for tests of what goes over the wire, without a node."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from typing import Any
from urllib.parse import unquote

from tests.support.proxy import PRODUCT, FaultProxy, Reply, Request


class MemoryCluster(FaultProxy):
    """Faults are provoked as those of a `FaultProxy`; documents are whole or gone, versions external."""

    def __init__(self) -> None:
        self.documents: dict[str, dict[str, Any]] = defaultdict(dict)  # by physical index and id
        self._versions: dict[tuple[str, str], int] = {}
        self._aliases: dict[str, str] = {}  # physical index → alias
        self._one_at_a_time = threading.Lock()
        super().__init__("http://127.0.0.1:1")

    @property
    def bulks(self) -> list[Request]:
        """The `_bulk` requests that came so far."""
        return [request for request in self.requests if request.is_bulk]

    def forward(self, request: Request) -> Reply:
        with self._one_at_a_time:
            status, answer = self._answer(request)
        return Reply(status, dict(PRODUCT), json.dumps(answer).encode())

    def _answer(self, request: Request) -> tuple[int, Any]:
        parts = [unquote(part) for part in request.path.partition("?")[0].strip("/").split("/")]
        body = json.loads(request.body) if request.body and not request.is_bulk else {}
        if request.is_bulk:
            return 200, {"errors": False, "items": self._bulk(request.body.split(b"\n"))}
        if parts == ["_mget"]:
            return 200, {"docs": [self._found(each["_index"], each["_id"]) for each in body["docs"]]}
        if parts[1:2] == ["_mget"]:
            return 200, {"docs": [self._found(parts[0], each) for each in body["ids"]]}
        if parts[1:] == ["_alias"]:
            found = {name for name, alias in self._aliases.items() if parts[0] in (name, alias)}
            aliases: dict[str, Any] = {name: {"aliases": {self._aliases[name]: {}}} for name in found}
            return (200, aliases) if found else (404, {"error": "alias missing", "status": 404})
        if request.method == "PUT" and len(parts) == 1:
            self._aliases[parts[0]] = next(iter(body.get("aliases", {parts[0]: {}})))
        if request.method == "GET" and parts[0] in self._aliases and len(parts) == 1:
            settings = {"index": {"gc_deletes": "24h"}}
            return 200, {parts[0]: {"aliases": {self._aliases[parts[0]]: {}}, "mappings": {}, "settings": settings}}
        return 200, {"status": "green", "acknowledged": True}

    def _found(self, index: str, document_id: str) -> dict[str, Any]:
        source = self.documents[index].get(document_id)
        found = {"_index": index, "_id": document_id, "found": source is not None}
        return found if source is None else {**found, "_version": self._versions[index, document_id], "_source": source}

    def _bulk(self, lines: list[bytes]) -> list[Any]:
        items: list[Any] = []
        at = 0
        while lines[at]:
            ((verb, named),) = json.loads(lines[at]).items()
            index, document_id, version = named["_index"], named["_id"], named["version"]
            held = self._versions.get((index, document_id), -1)
            at += 1 if verb == "delete" else 2
            if version < held or (version == held and named["version_type"] == "external"):
                error = {"type": "version_conflict_engine_exception", "reason": f"current version [{held}]"}
                items.append({verb: {"_id": document_id, "status": 409, "error": error}})
                continue
            self._versions[index, document_id] = version
            if verb == "delete":
                self.documents[index].pop(document_id, None)
            else:
                self.documents[index][document_id] = json.loads(lines[at - 1])
            items.append({verb: {"_id": document_id, "status": 200}})
        return items
