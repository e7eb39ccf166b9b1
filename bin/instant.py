"""A server that takes every document at once and keeps none, so that only the relay is measured.

`python instant.py PORT` runs it. It knows the one index of the benches, and no faults. Not for tests: it checks nothing
that a cluster would.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from node import free_port

_ID = re.compile(rb'^\{"(index|delete)":\{"_index":"[^"]*","_id":("[^"]*")', re.MULTILINE)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        index = {"aliases": {parts[0].rpartition("-")[0]: {}}, "settings": {"index": {"gc_deletes": "24h"}}}
        answer = {parts[0]: index} if parts[1:] in ([], ["_alias"]) else {}
        self._answer(json.dumps(answer).encode())

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer(b'{"acknowledged":true}')

    do_HEAD = do_DELETE = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        items = b",".join([b'{"%s":{"_id":%s,"status":200}}' % found for found in _ID.findall(body)])
        self._answer(b'{"errors":false,"items":[%s]}' % items)

    def _answer(self, body: bytes) -> None:
        head = (
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-elastic-product: Elasticsearch\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self.wfile.write(head.encode() + (b"" if self.command == "HEAD" else body))


@contextmanager
def instant() -> Iterator[str]:
    """The address of such a server in a process of its own."""
    port = free_port()
    process = subprocess.Popen([sys.executable, __file__, str(port)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    print("ready", flush=True)
    server.serve_forever()
