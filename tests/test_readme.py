"""The README names every command and every setting, with the default that the code has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from outbox.cli import main
from outbox.cli.look import default_text
from outbox.settings import Settings, variable

README = (Path(__file__).parents[1] / "README.md").read_text()


def commands(group: click.Group, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}"


@pytest.mark.parametrize("command", sorted(commands(main, "outbox-relay")))
def test_command_without_documentation(command: str) -> None:
    assert f"`{command}" in README


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_setting_without_documentation_or_with_another_default(name: str) -> None:
    info = Settings.model_fields[name]
    assert f"| `{variable(name)}` | `{default_text(info.default)}` | {info.description} |" in README
