"""A real Elasticsearch process under test control."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

SCRIPT = Path(__file__).parents[2] / "bin" / "elasticsearch"
START_TIMEOUT_S = 240
GIVEN = "TEST_ELASTICSEARCH_URL"


def unavailable_reason() -> str | None:
    """Why no node can be had here; None if one can."""
    if os.environ.get(GIVEN):
        return None
    prepared = subprocess.run([SCRIPT, "--prepare"], capture_output=True, text=True, env=_environment(), check=False)
    return None if prepared.returncode == 0 else prepared.stderr.strip().splitlines()[-1]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.endswith("ELASTICSEARCH_URL")}


class Node:
    """One node; `stop`, `kill`, `pause` and `restart` do to its process what they say."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None
        self._arguments: list[str] = []

    @classmethod
    def start(cls, version: str = "8.19.0", settings: dict[str, str] | None = None) -> Node:
        """Start a node on a free port, or use the one that TEST_ELASTICSEARCH_URL names."""
        if given := os.environ.get(GIVEN):
            return cls(given.rstrip("/"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        node = cls(f"http://127.0.0.1:{port}")
        node._directory = Path(tempfile.mkdtemp(prefix="outbox-node-"))
        node._arguments = ["--port", str(port), "--data", str(node._directory / "data"), "--version", version]
        for name, value in (settings or {}).items():
            node._arguments += ["--set", f"{name}={value}"]
        node.restart()
        return node

    def restart(self) -> None:
        """Start again on the same data and port."""
        assert self._directory is not None, "a given node cannot be restarted"
        self.stop(keep=True)
        log = self._directory / "node.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [SCRIPT, *self._arguments], stdout=output, stderr=subprocess.STDOUT, env=_environment()
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                if self.request("GET", "/_cluster/health")[1].get("status") in ("green", "yellow"):
                    return
            time.sleep(0.1)
        tail = log.read_text(errors="replace")[-3_000:]
        raise RuntimeError(f"Elasticsearch did not start within {START_TIMEOUT_S} s:\n{tail}")

    def stop(self, *, keep: bool = False) -> None:
        """End the process, SIGTERM first. Its data goes too unless `keep`."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._directory is not None and not keep:
            shutil.rmtree(self._directory, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL; `restart` brings it back."""
        assert self._process is not None, "a given node cannot be killed"
        self._process.kill()
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and parsed JSON of one call."""
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        finally:
            connection.close()

    def get(self, index: str, document_id: str) -> dict[str, Any] | None:
        """The document as the index holds it now, refreshed or not."""
        found = self.request("GET", f"/{index}/_doc/{quote(document_id, safe='')}")[1]
        return found["_source"] if found.get("found") else None

    def version(self, index: str, document_id: str) -> int | None:
        found = self.request("GET", f"/{index}/_doc/{quote(document_id, safe='')}")[1]
        return found["_version"] if found.get("found") else None

    def documents(self, index: str) -> dict[str, Any]:
        """Everything in the index, by id; empty if there is no such index."""
        self.request("POST", f"/{index}/_refresh")
        documents: dict[str, Any] = {}
        after: list[Any] | None = None
        while True:
            query = {"size": 5_000, "sort": ["_doc"], "query": {"match_all": {}}}
            if after:
                query["search_after"] = after
            status, found = self.request("POST", f"/{index}/_search", query)
            if status == 404 or not found["hits"]["hits"]:
                return documents
            documents |= {hit["_id"]: hit["_source"] for hit in found["hits"]["hits"]}
            after = found["hits"]["hits"][-1]["sort"]

    def indexes(self) -> list[str]:
        return [name for name in self.request("GET", "/_all/_alias")[1] if not name.startswith(".")]

    def wipe(self) -> None:
        """Delete every index."""
        for name in self.indexes():
            self.request("DELETE", f"/{name}")
