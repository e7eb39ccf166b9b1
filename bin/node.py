"""A real Elasticsearch or OpenSearch for the scripts beside this file."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import click
from rich.console import Console

HERE = Path(__file__).parent


@contextlib.contextmanager
def node(console: Console, product: str = "elasticsearch", *, own_core: bool = False) -> Iterator[str]:
    """The address of the given node, or of one that `bin/PRODUCT` runs meanwhile.

    `own_core`: always one that runs meanwhile, on the last core.
    """
    names = [f"OUTBOX_{product.upper()}_URL", *(["ELASTICSEARCH_URL"] if product == "elasticsearch" else [])]
    given = next(filter(None, map(os.environ.get, names)), None)
    if given and not own_core:
        yield given
        return
    port = free_port()
    pinned = ["taskset", "--cpu-list", str(max(os.sched_getaffinity(0)))] if own_core else []
    process = subprocess.Popen(
        [*pinned, HERE / product, "--port", str(port), "--until-eof"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches those who use it first; without them, the end of its input ends it
    )
    url = f"http://127.0.0.1:{port}"
    try:
        with console.status(f"starting {product}…"):
            while True:
                with contextlib.suppress(OSError), urlopen(f"{url}/_cluster/health?wait_for_status=yellow", timeout=60):
                    break
                if process.poll() is not None:
                    raise click.ClickException(f"{product} did not start, see above")
                time.sleep(0.2)
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
