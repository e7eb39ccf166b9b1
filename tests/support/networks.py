"""A network namespace that reaches this machine by one cable, which a test pulls out."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest


class Namespace:
    """`address`: of this machine, as the namespace reaches it. `within`: what a command begins with that runs there."""

    def __init__(self, number: int) -> None:
        self._name, self._cable = f"outbox-{os.getpid()}-{number}", f"ob{os.getpid() % 10**8}n{number}"
        self.address = f"198.18.{number}.1"  # of a network for tests of networks
        self.within = ("ip", "netns", "exec", self._name)

    def make(self) -> None:
        _ip("netns", "add", self._name)

    def connect(self) -> None:
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", "cable", "netns", self._name)
        _ip("address", "add", f"{self.address}/24", "dev", self._cable)
        _ip("link", "set", self._cable, "up")
        _ip("-n", self._name, "address", "add", f"{self.address[:-1]}2/24", "dev", "cable")
        self.join()

    def cut(self) -> None:
        _ip("-n", self._name, "link", "set", "cable", "down")

    def join(self) -> None:
        _ip("-n", self._name, "link", "set", "cable", "up")

    def remove(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "delete", self._cable)
        _ip("netns", "delete", self._name)


@contextlib.contextmanager
def namespaces(number: int) -> Iterator[list[Namespace]]:
    """So many. Skips the test where none may be made."""
    made = [Namespace(each) for each in range(number)]
    with contextlib.ExitStack() as stack:
        for each in made:
            try:
                each.make()
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"needs iproute2 and the right to make network namespaces: {error}")
            stack.callback(each.remove)
            each.connect()
        yield made


def _ip(*arguments: str) -> None:
    subprocess.run([shutil.which("ip") or "/usr/sbin/ip", *arguments], check=True, capture_output=True, text=True)
