"""A filesystem of its own in memory, which a test fills."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._filler = directory / "filler"

    def fill(self) -> None:
        with self._filler.open("ab", buffering=0) as filler:
            for size in (65_536, 4_096, 1):
                try:
                    while True:
                        filler.write(b"x" * size)
                except OSError:
                    continue

    def empty(self) -> None:
        self._filler.unlink()


@contextlib.contextmanager
def small_disk(size: str) -> Iterator[SmallDisk]:
    """Where other users may look into. Skips the test where nothing may be mounted."""
    directory = Path(tempfile.mkdtemp(prefix="outbox-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(directory)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        if not mounted:
            pytest.skip("needs root and the right to mount a tmpfs")
        yield SmallDisk(directory)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", directory], check=True)
        shutil.rmtree(directory, ignore_errors=True)
