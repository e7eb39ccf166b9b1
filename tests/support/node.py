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
import weakref
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
    if prepared.returncode == 0:
        return None
    return (prepared.stderr.strip().splitlines() or [f"{SCRIPT.name} ended with {prepared.returncode}"])[-1]


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
    def start(
        cls,
        port: int | None = None,
        data: Path | None = None,
        version: str = "8.19.0",
        settings: dict[str, str] | None = None,
    ) -> Node:
        """Start a node, or use the one that TEST_ELASTICSEARCH_URL names. Port and data: free and temporary."""
        if given := os.environ.get(GIVEN):
            return cls(given.rstrip("/"))
        if port is None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
        node = cls(f"http://127.0.0.1:{port}")
        node._directory = Path(tempfile.mkdtemp(prefix="outbox-node-"))
        # Not on stop: whoever stops a node may restart it on the same data.
        weakref.finalize(node, shutil.rmtree, node._directory, ignore_errors=True)
        kept = data or node._directory / "data"
        node._arguments = ["--port", str(port), "--data", str(kept), "--version", version]
        for name, value in (settings or {}).items():
            node._arguments += ["--set", f"{name}={value}"]
        node.restart()
        return node

    def restart(self) -> None:
        """Start again on the same data and port."""
        assert self._directory is not None, "a given node cannot be restarted"
        self.stop()
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
        ended = self._process.poll()
        what = f"did not start within {START_TIMEOUT_S} s" if ended is None else f"ended with {ended} at its start"
        self.stop()
        raise RuntimeError(f"Elasticsearch {what}:\n{log.read_text(errors='replace')[-3_000:]}")

    def stop(self) -> None:
        """End the process, SIGTERM first. Its data stays for `restart` until this program ends."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.send_signal(signal.SIGCONT)  # a paused process would not see the SIGTERM
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """SIGKILL; `restart` brings it back."""
        assert self._process is not None, "a given node cannot be killed"
        self._process.kill()
        self._process.wait()
        self._process = None
        address = urlsplit(self.url)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:  # a container ends a moment after its client
            try:
                socket.create_connection((address.hostname or "", address.port or 80), 1).close()
            except OSError:
                return
            time.sleep(0.05)
        raise RuntimeError(f"{self.url} still accepts connections after the kill")

    def pause(self) -> None:
        """SIGSTOP: connections are accepted, nothing is answered."""
        assert self._process is not None, "a given node cannot be paused"
        self._process.send_signal(signal.SIGSTOP)
        with contextlib.suppress(OSError):
            self.request("GET", "/", timeout=0.5)
            raise RuntimeError("the node answers although its process is stopped: is it in a container?")

    def resume(self) -> None:
        assert self._process is not None, "a given node cannot be resumed"
        self._process.send_signal(signal.SIGCONT)

    def request(self, method: str, path: str, body: Any = None, *, timeout: float = 30) -> tuple[int, Any]:
        """Status and parsed JSON of one call. A body of bytes goes as it is, for _bulk."""
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout)
        try:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
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

    def refresh(self, index: str) -> None:
        self.request("POST", f"/{index}/_refresh")

    def documents(self, index: str) -> dict[str, Any]:
        """Everything in the index or behind the alias, by id; empty if there is no such index."""
        self.refresh(index)
        documents: dict[str, Any] = {}
        # A scroll, for search_after on _doc alone skips documents where several shards have the same _doc.
        status, found = self.request("POST", f"/{index}/_search?scroll=1m", {"size": 5_000, "sort": ["_doc"]})
        if status == 404:
            return documents
        while status == 200 and found["hits"]["hits"]:
            documents |= {hit["_id"]: hit["_source"] for hit in found["hits"]["hits"]}
            scroll = {"scroll": "1m", "scroll_id": found["_scroll_id"]}
            status, found = self.request("POST", "/_search/scroll", scroll)
        assert status == 200, f"the search of {index} failed: {status} {found}"
        assert not found["_shards"]["failed"], f"the search of {index} failed in part: {found['_shards']}"
        self.request("DELETE", "/_search/scroll", {"scroll_id": found["_scroll_id"]})
        return documents

    def delete_index(self, index: str) -> None:
        """Delete the index, or every index behind the alias."""
        status, found = self.request("GET", f"/{index}/_alias")
        for name in found if status == 200 else ():
            self.request("DELETE", f"/{name}")

    def indexes(self) -> list[str]:
        return [name for name in self.request("GET", "/_all/_alias")[1] if not name.startswith(".")]

    def wipe(self) -> None:
        """Delete every index."""
        for name in self.indexes():
            self.request("DELETE", f"/{name}")
