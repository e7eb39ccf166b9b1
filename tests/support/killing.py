"""Relay processes, killed at random moments over and over while an application goes on writing."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.support import LIMIT_S
from tests.support.relays import Relays, until

ROUNDS = int(os.environ.get("TEST_KILL_ROUNDS", "25"))
LONGEST_LIFE_S = 0.5  # of a relay that is up


class Application:
    """Writes until told to stop."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.01):
            try:
                self.transaction()
            except ZeroDivisionError:  # it was rolled back
                continue

    def transaction(self) -> None:
        raise NotImplementedError


def kill_over_and_over(
    relays: Relays, application: Application, chance: random.Random, rounds: int, *, number: int = 2
) -> None:
    """So many relays. In the end all have stopped by themselves, and what they had no time for waits."""

    def is_up(process: subprocess.Popen[str]) -> bool:
        log = relays.log(relays.started.index(process))
        assert process.poll() is None, log
        return " delivers " in log

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(application.run)
        try:
            running = [relays.start() for _ in range(number)]
            for _ in range(rounds):
                for process in running:
                    until(partial(is_up, process), "the relay is up")
                time.sleep(chance.uniform(0, LONGEST_LIFE_S))
                killed = chance.choice([running[:1], running[1:], running])
                for process in killed:
                    process.kill()
                    process.wait()
                running = [relays.start() if process in killed else process for process in running]
                assert not writing.done()
        finally:
            application.stop.set()
        writing.result()  # no write ever failed
    for process in running:
        until(partial(is_up, process), "the relay is up")
        process.terminate()
        assert process.wait(LIMIT_S) == 0
