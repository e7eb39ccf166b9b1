"""A real Elasticsearch or OpenSearch process under test control."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote, urlsplit

from outbox.destinations.cluster.destination import ClusterDestination
from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from outbox.destinations.opensearch.destination import OpenSearchDestination
from tests.support import LIMIT_S

START_TIMEOUT_S = 2 * LIMIT_S


class Server(NamedTuple):
    """What runs: `bin/PRODUCT --version VERSION`, unless the variable `given_by` names one that runs already."""

    product: str
    version: str
    given_by: str

    @property
    def script(self) -> Path:
        return Path(__file__).parents[2] / "bin" / self.product

    @property
    def url(self) -> str | None:
        return os.environ.get(self.given_by)

    def settings(self, url: str) -> dict[str, str]:
        """What makes a process deliver there."""
        return {"OUTBOX_DESTINATION": self.product, f"OUTBOX_{self.product.upper()}_URL": url}


ELASTICSEARCH = Server(
    "elasticsearch", os.environ.get("TEST_ELASTICSEARCH_VERSION", "8.19.0"), "TEST_ELASTICSEARCH_URL"
)
ELASTICSEARCH_9 = Server("elasticsearch", "9.2.0", "TEST_ELASTICSEARCH_9_URL")
OPENSEARCH = Server("opensearch", "2.19.1", "TEST_OPENSEARCH_URL")
TESTED = OPENSEARCH if os.environ.get("TEST_PRODUCT") == OPENSEARCH.product else ELASTICSEARCH
"""What the tests run on that are not about one product."""


def destination_to(*urls: str, server: Server = TESTED, **options: Any) -> ClusterDestination:
    """The destination of that product."""
    if server.product == OPENSEARCH.product:
        return OpenSearchDestination(urls, **options)
    return ElasticsearchDestination(urls, **options)


def unavailable_reason(server: Server = TESTED) -> str | None:
    """Why no node can be had here; None if one can."""
    if server.url:
        return None
    prepare = [str(server.script), "--prepare", "--version", server.version]
    prepared = subprocess.run(prepare, capture_output=True, text=True, env=_environment(), check=False)
    if prepared.returncode == 0:
        return None
    return (prepared.stderr.strip().splitlines() or [f"{server.script.name} ended with {prepared.returncode}"])[-1]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.endswith("SEARCH_URL")}


def free_port() -> int:
    """A port below the range from which the system takes those of outgoing connections.

    Another port that is free now may be one of theirs a moment later, or while a proxy is down.
    """
    while True:
        port = random.randint(20_000, 32_767)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def own_directory(temporary: Path) -> tuple[Path, IO[str]]:
    """A new directory, and the lock on it that tells others that it is in use. `bin/nodes/run.sh` does the same."""
    made = Path(tempfile.mkdtemp(prefix="outbox-new-", dir=temporary))
    lock = (made / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return made.rename(temporary / made.name.replace("outbox-new-", "outbox-node-")), lock


def remove_leftovers(temporary: Path) -> None:
    """Remove the directories of runs that were killed."""
    for left in temporary.glob("outbox-node-*/lock"):
        with contextlib.suppress(OSError), left.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)


def _remove(directory: Path, lock: IO[str]) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    lock.close()


class Node:
    """One node; `stop`, `kill`, `pause` and `restart` do to its process what they say."""

    def __init__(self, url: str, server: Server = TESTED) -> None:
        self.url, self.server = url, server
        self.directory: Path | None = None  # None: the node is not ours
        self._process: subprocess.Popen[bytes] | None = None
        self._arguments: list[str] = []

    @classmethod
    def start(
        cls,
        port: int | None = None,
        data: Path | None = None,
        server: Server = TESTED,
        settings: dict[str, str] | None = None,
    ) -> Node:
        """Start a node, or use the one that the environment names. Port and data: free and temporary."""
        if url := server.url:
            return cls(url.rstrip("/"), server)
        remove_leftovers(Path(tempfile.gettempdir()))
        port = port or free_port()
        node = cls(f"http://127.0.0.1:{port}", server)
        node.directory, lock = own_directory(Path(tempfile.gettempdir()))
        # Not on stop: whoever stops a node may restart it on the same data.
        weakref.finalize(node, _remove, node.directory, lock)
        kept = data or node.directory / "data"
        node._arguments = ["--port", str(port), "--data", str(kept), "--version", server.version, "--until-eof"]
        for name, value in (settings or {}).items():
            node._arguments += ["--set", f"{name}={value}"]
        node.restart()
        return node

    def restart(self) -> None:
        """Start again on the same data and port."""
        assert self.directory is not None, "a given node cannot be restarted"
        self.stop()
        log = self.directory / "node.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [self.server.script, *self._arguments],
                stdin=subprocess.PIPE,  # its end tells the node of ours, even after a SIGKILL
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
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
        raise RuntimeError(f"{self.server.product} {what}:\n{log.read_text(errors='replace')[-3_000:]}")

    def stop(self) -> None:
        """End the process, SIGTERM first. Its data stays for `restart` until this program ends."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.send_signal(signal.SIGCONT)  # a paused process would not see the SIGTERM
        try:
            self._process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.communicate()
        self._process = None

    def kill(self) -> None:
        """SIGKILL; `restart` brings it back."""
        assert self._process is not None, "a given node cannot be killed"
        self._process.kill()
        self._process.communicate()
        self._process = None
        address = urlsplit(self.url)
        deadline = time.monotonic() + LIMIT_S
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
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:  # a thread on another core still works for a moment after the signal
            try:
                self.request("GET", "/", timeout=0.5)
            except OSError:
                return
        raise RuntimeError("the node answers although its process is stopped: is it in a container?")

    def resume(self) -> None:
        assert self._process is not None, "a given node cannot be resumed"
        self._process.send_signal(signal.SIGCONT)

    @property
    def command(self) -> str | None:
        """The command line of the process; None for a given node, or where the system does not tell."""
        if self._process is None:
            return None
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self._process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return None

    def request(self, method: str, path: str, body: Any = None, *, timeout: float = LIMIT_S) -> tuple[int, Any]:
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
        """All indexes by name; a node lists them in any order."""
        return sorted(name for name in self.request("GET", "/_all/_alias")[1] if not name.startswith("."))

    def wipe(self) -> None:
        """Delete every index."""
        for name in self.indexes():
            self.request("DELETE", f"/{name}")
