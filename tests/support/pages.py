"""What README and docs/ say: their text, and the files and commands in them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
"""The pages as they are written, by their path under docs/."""

EVERYTHING = {"README.md": README} | {f"docs/{path}": text for path, text in PAGES.items()}


def _hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generated", DOCS / "generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generated = _hook()
"""What makes the references of the code."""


def built(page: str) -> str:
    """A page with what is generated in its place."""
    return str(generated.filled(PAGES[page]))


class Block(NamedTuple):
    """A block of code: its language, the title above it, and what is in it."""

    language: str
    title: str
    content: str

    @property
    def file(self) -> str | None:
        """The file that it is, where its first line is `# path`."""
        found = re.match(r"# ([\w./]*(?:\.\w+))\n", self.content)
        return found[1] if found else None


def blocks(text: str) -> list[Block]:
    """All blocks of code of a page."""
    found = re.findall(r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    return [Block(*each) for each in found]


def first(text: str, language: str) -> str:
    """The first block of that language."""
    return next(each.content for each in blocks(text) if each.language == language)


def write_files(text: str, folder: Path) -> set[str]:
    """Write the files of a page to disk, and make packages of their folders. Returns their names."""
    written = set()
    for block in blocks(text):
        if block.file is None:
            continue
        path = folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.content)
        written.add(block.file)
        if path.suffix == ".py" and path.parent != folder and not (path.parent / "__init__.py").exists():
            (path.parent / "__init__.py").touch()
    return written


def anchor(heading: str) -> str:
    """What a link to a heading ends with."""
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def anchors(text: str) -> set[str]:
    """All of a page."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)}
