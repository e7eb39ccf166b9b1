"""Processes that benches start or look at: a Redis, the memory of any, and what the processes of a PostgreSQL take."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from node import free_port
from sqlalchemy import Engine, text

TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[tuple[int, int]]:
    """The port and the process of a Redis as it comes."""
    port = free_port()
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--dir", str(directory)], stdout=subprocess.DEVNULL
    )
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def memory_mb(pid: int) -> float:
    """Its share of the machine's memory: what it has alone, and its part of what it shares."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def server_of(engine: Engine) -> int:
    """The first process of its PostgreSQL."""
    with engine.connect() as connection:
        backend = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    return int(_fields(backend)[1])


def server_cpu_seconds(server: int) -> float:
    """Of all processes of a PostgreSQL so far, with those that have ended."""
    spent = sum(map(int, _fields(server)[11:15]))
    for child in Path(f"/proc/{server}/task/{server}/children").read_text().split():
        with contextlib.suppress(OSError):  # it has just ended
            spent += sum(map(int, _fields(int(child))[11:13]))
    return spent / TICKS


def _fields(pid: int) -> list[str]:
    """Of /proc/PID/stat, after the name: state, parent …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
