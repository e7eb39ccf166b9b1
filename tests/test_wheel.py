"""The wheel alone, in an empty environment, made as the container image makes it, does the main job."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.image import build
from tests.support.node import Node

WRITE = """
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from outbox import OutboxRepository, sqlite
engine = create_engine("sqlite:///app.db")
sqlite.prepare(engine)
with Session(engine) as session, session.begin():
    OutboxRepository(session).index("contacts", "c1", {"name": "Ada"})
"""


@pytest.mark.slow
@pytest.mark.elasticsearch
def test_wheel_installed_alone_as_in_the_image_migrates_drains_and_shows(clean_node: Node, tmp_path: Path) -> None:
    bin_ = build(tmp_path)
    environment = {
        "PATH": str(bin_),
        "OUTBOX_DATABASE_URL": "sqlite:///app.db",
        "OUTBOX_ELASTICSEARCH_URL": clean_node.url,
    }

    def call(*command: str) -> str:
        return subprocess.run(
            [bin_ / command[0], *command[1:]], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    call("outbox-relay", "migrate")
    assert len(call("outbox-relay", "monitoring", "export", "monitoring").split()) == 2  # needs no extra
    call("python", "-c", WRITE)
    call("outbox-relay", "run", "--drain")
    assert json.loads(call("outbox-relay", "status", "--json"))["done"] == 1
    assert clean_node.get("contacts", "c1") == {"name": "Ada"}
    without_pip = subprocess.run([bin_ / "python", "-m", "pip"], capture_output=True, text=True, check=False)
    assert "No module named pip" in without_pip.stderr
