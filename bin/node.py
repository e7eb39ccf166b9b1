"""A real Elasticsearch for the scripts beside this file."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import click
from elasticsearch import Elasticsearch
from rich.console import Console

HERE = Path(__file__).parent


@contextlib.contextmanager
def node(console: Console) -> Iterator[str]:
    """The address of the given Elasticsearch, or of one that `bin/elasticsearch` runs meanwhile."""
    if given := os.environ.get("OUTBOX_ELASTICSEARCH_URL") or os.environ.get("ELASTICSEARCH_URL"):
        yield given
        return
    port = free_port()
    process = subprocess.Popen(
        [HERE / "elasticsearch", "--port", str(port), "--until-eof"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches those who use it first; without them, the end of its input ends it
    )
    url = f"http://127.0.0.1:{port}"
    try:
        client = Elasticsearch(url)
        with console.status("starting Elasticsearch…"):
            while True:
                try:
                    client.cluster.health(wait_for_status="yellow")
                    break
                except Exception:
                    if process.poll() is not None:
                        raise click.ClickException("Elasticsearch did not start, see above") from None
                    time.sleep(0.2)
        client.close()
        yield url
    finally:
        process.terminate()
        process.communicate()


def free_port(preferred: int | None = None) -> int:
    """The preferred one; or another, if it is in use.

    Below the range from which the system takes ports for outgoing connections: none of them takes it meanwhile.
    """
    port = preferred or random.randint(20_000, 32_767)
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a closed one's is free
            probe.bind(("127.0.0.1", port))
            return port
        port = random.randint(20_000, 32_767)
