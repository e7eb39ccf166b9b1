"""The processes that bin/demo starts, and what the table of the outbox says of the relay's work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import click
import demo_database

OUTBOX_RELAY = Path(sys.executable).with_name("outbox-relay")
LONGEST_WAIT_S = 120
STOPPED_WITHIN_S = 40  # a relay may take 25 for what is in flight

Tick = Callable[[], None]


class Process:
    """One that ends with the context. What it says is kept in a file."""

    def __init__(self, name: str, command: list[str | Path], **environment: str) -> None:
        self.name = name
        self.log = Path(f"{name}.log").absolute()
        self._command, self._environment = command, environment
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOPPED_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def start(self) -> int:
        """Returns the number of the process."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=os.environ | self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which ends the others one after another
            )
        return self._process.pid

    def kill(self) -> int:
        """SIGKILL. Returns the number of the process."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        return self._process.pid

    def check(self) -> None:
        """Raises `ClickException` with its last words if it has ended."""
        if self._process and self._process.poll() is not None:
            last = self.log.read_text().strip().splitlines()[-1:]
            raise click.ClickException(f"the {self.name} ended unexpectedly: {' '.join(last)}")


class Relay(Process):
    """`outbox-relay run`, and what the table says of its work."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        super().__init__("relay", [OUTBOX_RELAY, "run", *arguments], **environment)

    def kill_while_it_delivers(self) -> tuple[int, int]:
        """SIGKILL as soon as it holds rows. Returns the number of the process, and how many rows it held."""
        deadline = time.monotonic() + 10
        while not self.counts().get("claimed") and time.monotonic() < deadline:
            self.check()
        return self.kill(), self.counts().get("claimed", 0)

    def wait_until_all_is_delivered(self, tick: Tick, but: str | None = None) -> None:
        """`but`: not the rows of this index, which is paused."""
        deadline = time.monotonic() + LONGEST_WAIT_S
        while self.unfinished(but):
            self.check()
            if time.monotonic() > deadline:
                raise click.ClickException(f"rows still wait after {LONGEST_WAIT_S} s; see {self.log}")
            tick()
            time.sleep(0.02)

    def counts(self) -> dict[str, int]:
        """Rows by state."""
        return self._counted("SELECT state, count(*) FROM outbox_events GROUP BY state")

    def unfinished(self, but: str | None = None) -> int:
        """Rows that are pending or claimed. `but`: not those of this index."""
        by_index = self._counted(
            "SELECT index_name, count(*) FROM outbox_events WHERE state IN ('pending', 'claimed') GROUP BY index_name"
        )
        return sum(number for index, number in by_index.items() if index != but)

    def dead(self) -> int:
        return self.counts().get("dead", 0)

    def outcomes(self) -> dict[str, int]:
        """Rows by what became of them."""
        return self._counted(
            "SELECT coalesce(outcome, state) AS what, count(*) FROM outbox_events GROUP BY 1 ORDER BY count(*) DESC"
        )

    def _counted(self, query: str) -> dict[str, int]:
        return {state: int(number) for state, number in demo_database.query(query)}
