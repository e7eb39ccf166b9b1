"""Real relay processes under test control."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support import LIMIT_S
from tests.support.node import TESTED
from tests.support.outbox import Outbox

COMMAND = [sys.executable, "-c", "from outbox.cli import main; main()"]


def until(condition: Callable[[], Any], what: str, timeout: float = LIMIT_S) -> Any:
    """Wait for what another process does; fails with `what` when it never does."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)
    return result


class Relays:
    """Starts relay processes on one database, and ends those that a test leaves."""

    def __init__(self, outbox: Outbox, url: str, directory: Path) -> None:
        self._environment = {
            **os.environ,
            "OUTBOX_DATABASE_URL": outbox.url,
            **TESTED.settings(url),
            "OUTBOX_REQUEST_TIMEOUT": "20",
            "OUTBOX_BREAKER_FIRST_PAUSE": "0.1",
            "OUTBOX_BREAKER_LONGEST_PAUSE": "0.5",
            "OUTBOX_REAP_INTERVAL": "0.2",
        }
        self._directory = directory
        self.url = url
        self.started: list[subprocess.Popen[str]] = []

    def give(self, **environment: str) -> None:
        """More environment, for all that follow."""
        self._environment |= environment

    def start(
        self, *arguments: str, command: str = "run", within: Sequence[str] = (), **given: str
    ) -> subprocess.Popen[str]:
        """`within`: the command that runs it."""
        with (self._directory / f"relay-{len(self.started)}.log").open("w") as log:
            process = subprocess.Popen(
                [*within, *COMMAND, command, *arguments],
                env=self._environment | given,
                stderr=log,
                stdout=log,
                text=True,
                cwd=self._directory,
            )
        self.started.append(process)
        return process

    def call(self, *arguments: str, stdin: str | None = None, **given: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            env=self._environment | given,
            capture_output=True,
            text=True,
            input=stdin,
            cwd=self._directory,
            timeout=3 * LIMIT_S,
            check=False,
        )

    def log(self, position: int = 0) -> str:
        return (self._directory / f"relay-{position}.log").read_text()

    def stop(self) -> None:
        """Have all end that were started. Each ends as it should."""
        for at, process in enumerate(self.started):
            process.terminate()
            assert process.wait(LIMIT_S) == 0, self.log(at)

    def end(self) -> None:
        """Kill what still runs."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
