"""The site is built without a warning, and needs nothing but itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import LIMIT_S
from tests.support.pages import PAGES, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(built)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return built


@pytest.mark.slow
def test_every_page_is_there(site: Path) -> None:
    assert {page.removesuffix(".md") + ".html" for page in PAGES} <= {
        path.relative_to(site).as_posix() for path in site.rglob("*.html")
    }


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?([^\"'\s>]+)", path.read_text()
        )
        assert [each for each in loaded if re.match(r"(?:https?:)?//", each)] == [], path


@pytest.mark.slow
def test_parts_are_generated_and_markup_is_understood(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text()
        assert [each for each in ("generated:", "```", "=== ", ":::", "](") if each in text] == [], path
    assert "OUTBOX_BATCH_ROWS" in (site / "reference" / "settings.html").read_text()


@pytest.mark.slow
def test_pages_name_no_path_of_the_machine_that_built_them(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert str(ROOT) not in path.read_text(), path
