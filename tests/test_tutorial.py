"""The tutorial, typed as it stands: from an empty folder to a search hit."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support import LIMIT_S
from tests.support.node import Node
from tests.support.pages import EVERYTHING, ROOT, Block, blocks, write_files

TUTORIAL = [
    each for each in blocks(EVERYTHING["docs/tutorial.md"]) if each.title or each.file or each.language == "text"
]
PORT, DASHBOARD = 8000, 8321
SERVES = re.compile(r"^(?:uvicorn|outbox-relay run) ", re.MULTILINE)
"""What works until it is stopped."""


class Terminal:
    """A shell that somebody types into."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.shown = ""
        self._shell = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._shell.stdout is not None
        while character := self._shell.stdout.read(1):
            self.shown += character

    def type(self, commands: str) -> None:
        """Type lines; each that ends has to succeed before the next."""
        assert self._shell.stdin is not None
        self.shown = ""
        for command in commands.splitlines():
            self._shell.stdin.write(f"{command}\n")
            if not SERVES.match(command):
                self._shell.stdin.write('echo "ended with $?"\n')
                self.wait_for("ended with ")
                self.wait_for("\n")
                assert "ended with 0\n" in self.shown, f"{command}\n{self.shown}"
                self.shown = self.shown.replace("ended with 0\n", "")

    def wait_for(self, wanted: str) -> None:
        """Until this is shown; `…` in it is anything, and what was typed is not looked at again."""
        pattern = re.compile(".*?".join(map(re.escape, wanted.split("…"))), re.DOTALL)
        deadline = time.monotonic() + LIMIT_S
        while not pattern.search(self.shown):
            assert time.monotonic() < deadline, f"{wanted!r} is not in:\n{self.shown}"
            time.sleep(0.02)

    def close(self) -> None:
        subprocess.run(["kill", "-KILL", "--", f"-{self._shell.pid}"], check=False)
        self._shell.wait()
        self._reader.join()
        for pipe in (self._shell.stdin, self._shell.stdout):
            assert pipe is not None
            pipe.close()


def free_port(preferred: int) -> int:
    """That of the tutorial; another, if somebody has it."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("no port is free")


@pytest.mark.slow
def test_tutorial_typed_as_it_stands_ends_with_a_search_hit(tmp_path: Path) -> None:
    ports = {str(each): str(free_port(each)) for each in (PORT, DASHBOARD)}
    (tmp_path / "outbox-relay").symlink_to(ROOT)
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "HOME": str(tmp_path),
        "OUTBOX_ADMIN_PORT": ports[str(DASHBOARD)],
        "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(Path("~/.cache/pip").expanduser())),
    }
    folder, terminals, last = tmp_path / "contacts", dict[str, Terminal](), ""
    shown: list[str] = []
    try:
        for block in TUTORIAL:
            content = re.sub(rf"\b({PORT}|{DASHBOARD})\b", lambda found: ports[found[1]], block.content)
            if block.file:
                (folder / block.file).write_text(block.content)
            elif block.title:
                last = block.title
                if last not in terminals:
                    terminals[last] = Terminal(tmp_path, environment)
                terminals[last].type(content)
            else:
                for line in content.splitlines():
                    terminals[last].wait_for(line)
                shown.append(content)
    finally:
        for terminal in terminals.values():
            terminal.close()
    assert '[{"id":"1","name":"Ada Lovelace","city":"London"}]' in "".join(shown)
    assert '[{"id":"1","name":"Ada Lovelace","city":"Paris"}]' in "".join(shown)


@pytest.mark.elasticsearch
def test_same_application_on_a_cluster_with_the_lines_of_the_last_step(clean_node: Node, tmp_path: Path) -> None:
    write_files(EVERYTHING["docs/tutorial.md"], tmp_path)
    settings, commands = blocks(EVERYTHING["docs/tutorial.md"].split("## 7.")[1])
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}

    def typed(lines: str) -> str:
        command = ["bash", "-e", "-c", lines]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    typed("python models.py; outbox-relay migrate")
    typed(
        "python -c \"import models; s = models.Session(); s.add(models.Contact(name='Ada', city='Rome')); s.commit()\""
    )
    typed("outbox-relay run --drain")
    assert "Ada" in typed("outbox-relay search contacts ada")
    lines = [line for line in (tmp_path / ".env").read_text().splitlines() if "DESTINATION" not in line]
    changed = settings.content.replace("http://localhost:9200", clean_node.url)
    (tmp_path / ".env").write_text("\n".join(lines) + "\n" + changed)
    assert "no drift" in typed(commands.content.replace("http://localhost:9200", clean_node.url))
    assert clean_node.get("contacts", "1") == {"name": "Ada", "city": "Rome"}


def test_every_block_of_the_tutorial_is_typed_written_or_seen() -> None:
    left: list[Block] = [each for each in blocks(EVERYTHING["docs/tutorial.md"]) if each not in TUTORIAL]
    assert [each.language for each in left] == ["ini", "sh"]  # those of the last step
