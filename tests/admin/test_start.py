"""Servers that do not start: open to other machines, without a secret, a port, an extra or the tables."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine

from outbox.cli import main
from tests.support import LIMIT_S
from tests.support.outbox import Outbox
from tests.support.pages import ROOT
from tests.support.serving import TOKEN, Process


@pytest.fixture
def serve(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`outbox-relay serve` that is to end before it begins."""

    def begun(*_arguments: object) -> None:
        raise AssertionError("it has begun to serve")

    monkeypatch.setattr("outbox.cli.serve.beside", begun)
    monkeypatch.setattr("outbox.cli.run.beside", begun)
    given = {
        "OUTBOX_DATABASE_URL": str(engine.url),
        "OUTBOX_DESTINATION": "embedded",
        "OUTBOX_EMBEDDED_PATH": str(tmp_path / "search.db"),
        "OUTBOX_ADMIN_PORT": "0",
    }

    def call(*arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(main, arguments or ("serve",), env={**given, **environment})

    return call


Serve = Callable[..., Result]


def refused(ended: Result | subprocess.CompletedProcess[str], *said: str) -> None:
    code = ended.exit_code if isinstance(ended, Result) else ended.returncode
    assert code == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    for each in said:
        assert each in line


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "relay.internal", ""])
def test_other_machines_without_a_token(serve: Serve, host: str) -> None:
    if host:
        refused(serve("serve", "--host", host), host, "OUTBOX_ADMIN_TOKEN", "openssl rand -hex 32")
        refused(serve("run", "--admin", OUTBOX_ADMIN_HOST=host), host, "OUTBOX_ADMIN_TOKEN")
    else:
        refused(serve("serve", "--host", ""), "OUTBOX_ADMIN_HOST")  # a variable that is empty is not set


def test_other_machines_without_tls(serve: Serve) -> None:
    refused(serve("serve", "--host", "0.0.0.0", OUTBOX_ADMIN_TOKEN=TOKEN), "OUTBOX_ADMIN_TLS_CERTIFICATE", "--insecure")


def test_token_that_can_be_guessed(serve: Serve) -> None:
    ended = serve(OUTBOX_ADMIN_TOKEN="geheim-123")
    refused(ended, "OUTBOX_ADMIN_TOKEN", "16 characters", "openssl rand -hex 32")
    assert "geheim" not in ended.stderr


def test_certificate_that_is_missing_alone_or_none(serve: Serve, tmp_path: Path) -> None:
    names = ("OUTBOX_ADMIN_TLS_CERTIFICATE", "OUTBOX_ADMIN_TLS_KEY")
    missing = str(tmp_path / "missing.pem")
    refused(serve(OUTBOX_ADMIN_TLS_CERTIFICATE=missing, OUTBOX_ADMIN_TLS_KEY=missing), missing, *names)
    refused(serve(OUTBOX_ADMIN_TLS_CERTIFICATE=missing), *names)
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    refused(serve(OUTBOX_ADMIN_TLS_CERTIFICATE=str(wrong), OUTBOX_ADMIN_TLS_KEY=str(wrong)), *names)
    refused(serve(OUTBOX_ADMIN_TLS_CERTIFICATE=str(tmp_path), OUTBOX_ADMIN_TLS_KEY=str(tmp_path)), *names)


def test_port_that_somebody_else_has(serve: Serve, served: Process, outbox: Outbox) -> None:
    for command in (("serve",), ("run", "--admin")):
        ended = serve(*command, OUTBOX_ADMIN_PORT=str(served.port))
        refused(ended, f"127.0.0.1:{served.port}", "OUTBOX_ADMIN_PORT")
    assert outbox.relays() == []


def test_address_that_this_machine_has_not(serve: Serve) -> None:
    ended = serve("serve", "--host", "192.0.2.1", "--insecure", OUTBOX_ADMIN_TOKEN=TOKEN)
    refused(ended, "192.0.2.1", "OUTBOX_ADMIN_HOST")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "command"),
    [("fastapi", "serve"), ("uvicorn", "serve"), ("jinja2", "run --admin"), ("prometheus_client", "serve")],
)
def test_extra_that_is_not_installed(engine: Engine, tmp_path: Path, module: str, command: str) -> None:
    without = f"import sys; sys.modules['{module}'] = None; from outbox.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", without, *command.split(), "--database-url", str(engine.url)],
        env={
            **os.environ,
            "OUTBOX_DESTINATION": "embedded",
            "OUTBOX_EMBEDDED_PATH": str(tmp_path / "search.db"),
            "OUTBOX_ADMIN_PORT": "0",
        },
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    refused(ended, module, f"pip install -e '{ROOT}[admin]'")


def test_database_without_the_tables(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    environment = {
        "OUTBOX_DATABASE_URL": f"sqlite:///{tmp_path / 'empty.db'}",
        "OUTBOX_DESTINATION": "embedded",
        "OUTBOX_EMBEDDED_PATH": str(tmp_path / "search.db"),
        "OUTBOX_ADMIN_PORT": "0",
    }
    refused(CliRunner().invoke(main, ["serve"], env=environment), "outbox-relay migrate")


@pytest.mark.parametrize("path", ["outbox", "/out box", "/a//b", "/a/../b", "https://ops.example/outbox", "/a?b"])
def test_root_path_that_is_none(serve: Serve, path: str) -> None:
    for arguments in (("serve", "--root-path", path), ("run", "--admin", "--root-path", path)):
        refused(serve(*arguments), "OUTBOX_ADMIN_ROOT_PATH", "/outbox")


@pytest.mark.parametrize("proxy", ["*", "nginx", "10.0.0.0/99", "127.0.0.1:80"])
def test_proxy_that_is_no_address(serve: Serve, proxy: str) -> None:
    given = {"OUTBOX_ADMIN_PROXIES": f"127.0.0.1,{proxy}", "OUTBOX_ADMIN_TOKEN": TOKEN}
    refused(serve("serve", **given), "OUTBOX_ADMIN_PROXIES", f"'{proxy}'", "10.0.0.0/8")


def test_proxy_before_a_server_without_a_token(serve: Serve) -> None:
    refused(serve("serve", OUTBOX_ADMIN_PROXIES="127.0.0.1"), "OUTBOX_ADMIN_TOKEN", "OUTBOX_ADMIN_PROXIES")
