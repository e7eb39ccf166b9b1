"""The container image, as far as it goes without an engine: its Dockerfile, and the build run step by step."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import LIMIT_S

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def steps() -> list[tuple[str, str]]:
    """The instructions in their order: name and text."""
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line and line[0] != "#"]


def build(directory: Path) -> Path:
    """Do what the first stage does, with `directory` as its root. Returns where the commands are."""
    first, *others = steps()
    assert first == ("FROM", "python:3.13-slim AS build")
    work = directory
    for name, text in others:
        if name == "FROM":
            break
        arguments = re.sub(r"(?<![\w.])/(?=src|wheels|opt)", f"{directory}/", text)
        if name == "WORKDIR":
            work = Path(arguments)
            work.mkdir(parents=True)
        elif name == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, work / target)
        else:
            assert name == "RUN", name
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            environment = {**os.environ, "PATH": path}
            subprocess.run(arguments, shell=True, cwd=work, env=environment, check=True, timeout=5 * LIMIT_S)
    return directory / "opt" / "outbox-relay" / "bin"
