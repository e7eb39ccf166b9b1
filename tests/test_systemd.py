"""The unit that `outbox-relay systemd` prints: systemd takes it, and a relay works under it."""

from __future__ import annotations

import ctypes.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from outbox import settings
from outbox.cli import main
from outbox.cli import systemd as module
from outbox.cli.serve import STOPPED_WITHIN_S
from outbox.store.sqlite.engine import BUSY_TIMEOUT_S
from tests.support import LIMIT_S, sandbox
from tests.support.outbox import Outbox
from tests.support.pages import ROOT
from tests.support.relays import Relays

Printed = Callable[..., Result]

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


@pytest.fixture
def printed(outbox: Outbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Printed:
    """Runs the command on the database of the test; no file of this machine counts."""
    monkeypatch.setattr(module, "ENV_FILE", tmp_path / "outbox-relay.env")

    def run(*arguments: str, **environment: str) -> Result:
        given = {"OUTBOX_DATABASE_URL": outbox.url, **environment}
        given.setdefault("OUTBOX_ELASTICSEARCH_URL", "http://localhost:9200")
        return CliRunner().invoke(main, ["systemd", *arguments], env=given)

    return run


def lines(unit: str) -> dict[str, list[str]]:
    """The values of each key, in their order; anything but a section, a comment, or key=value fails."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in unit.splitlines():
        if line and not line.startswith("#") and not re.fullmatch(r"\[(Unit|Service|Install)\]", line):
            key, equals, value = line.partition("=")
            assert equals, line
            assert re.fullmatch(r"[A-Za-z]+", key), line
            found[key].append(value)
    return found


def test_unit_runs_the_installed_command_on_the_database_as_its_owner(printed: Printed, tmp_path: Path) -> None:
    result = printed()
    unit = lines(result.stdout)
    command = Path(sys.executable).with_name("outbox-relay")
    assert unit["ExecStart"] == [f"{command} run --database-url sqlite:///{tmp_path}/app.db"]
    assert unit["User"] == [(tmp_path / "app.db").owner()]
    assert unit["ReadWritePaths"] == unit["WorkingDirectory"] == [str(tmp_path)]
    assert unit["Environment"] == ["OUTBOX_ELASTICSEARCH_URL=http://localhost:9200"]
    assert unit["EnvironmentFile"] == [f"-{tmp_path}/outbox-relay.env"]
    assert (result.exit_code, unit["Restart"], unit["StartLimitIntervalSec"]) == (0, ["always"], ["0"])


def test_options_are_said_in_the_unit(printed: Printed, tmp_path: Path) -> None:
    result = printed("--user", "ada", "--env-file", "my.env", "--admin")
    unit = lines(result.stdout)
    assert " run --admin --database-url " in unit["ExecStart"][0]
    assert (unit["User"], unit["EnvironmentFile"]) == (["ada"], [f"{tmp_path}/my.env"])
    assert f"note: {tmp_path}/my.env does not exist yet" in result.stderr
    assert f"pip install -e '{ROOT}[admin]'" in result.stderr


def test_unit_for_postgresql_names_no_file_and_no_password(printed: Printed, tmp_path: Path) -> None:
    url = "postgresql+psycopg://relay:secret@db.internal/shop"
    for result in (printed("--user", "ada", OUTBOX_DATABASE_URL=url), printed("--user", "ada", "--database-url", url)):
        unit = lines(result.stdout)
        assert result.exit_code == 0
        assert unit["ExecStart"] == [f"{Path(sys.executable).with_name('outbox-relay')} run"]
        assert unit["Description"] == ["outbox-relay: delivers the outbox of shop on db.internal"]
        assert (unit["ReadWritePaths"], unit["WorkingDirectory"]) == ([""], [str(module.STATE)])
        assert f"add OUTBOX_DATABASE_URL to {tmp_path}/outbox-relay.env" in result.stderr
        assert "secret" not in result.output
    embedded = {"OUTBOX_DESTINATION": "embedded", "OUTBOX_EMBEDDED_PATH": str(tmp_path / "search.db")}
    unit = lines(printed("--user", "ada", OUTBOX_DATABASE_URL=url.replace("relay:secret@", ""), **embedded).stdout)
    assert f"OUTBOX_DATABASE_URL={url.replace('relay:secret@', '')}" in unit["Environment"]
    assert unit["ReadWritePaths"] == [str(tmp_path)]
    assert unit["RestrictAddressFamilies"] == ["AF_INET AF_INET6 AF_UNIX"]


def test_systemd_waits_longer_than_a_relay_takes_to_stop(printed: Printed) -> None:
    for timeout in ("0", "25", "600"):
        stop = lines(printed(OUTBOX_SHUTDOWN_TIMEOUT=timeout).stdout)["TimeoutStopSec"]
        assert float(stop[0]) > float(timeout) + BUSY_TIMEOUT_S
        with_admin = lines(printed("--admin", OUTBOX_SHUTDOWN_TIMEOUT=timeout).stdout)["TimeoutStopSec"]
        assert float(with_admin[0]) > float(timeout) + BUSY_TIMEOUT_S + STOPPED_WITHIN_S


def test_passwords_are_named_and_never_printed(printed: Printed, tmp_path: Path) -> None:
    given = {
        "OUTBOX_ELASTICSEARCH_URL": "http://elastic:s3cret@localhost:9200",
        "OUTBOX_ELASTICSEARCH_USERNAME": "ada",
        "OUTBOX_ELASTICSEARCH_PASSWORD": "s3cret",
    }
    result = printed(**given)
    assert "s3cret" not in result.stdout + result.stderr
    assert lines(result.stdout)["Environment"] == ["OUTBOX_ELASTICSEARCH_USERNAME=ada"]
    assert "add OUTBOX_ELASTICSEARCH_URL, OUTBOX_ELASTICSEARCH_PASSWORD to " in result.stderr
    (tmp_path / "outbox-relay.env").write_text("".join(f"{name}={value}\n" for name, value in given.items()))
    result = printed(**given)
    assert ("s3cret" in result.stdout, lines(result.stdout)["Environment"]) == (False, [])
    assert "note: add " not in result.stderr


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://db.internal/shop?user=relay&password=s3cret",
        "postgresql+psycopg:///shop?host=db.internal&sslpassword=s3cret",
        "postgresql://relay:a/s3cret@db.internal/shop",
        "postgresql://relay:a,s3cret@db.internal/shop",
    ],
)
def test_password_of_the_database_is_never_printed_wherever_it_stands_in_its_url(printed: Printed, url: str) -> None:
    for result in (printed("--user", "ada", OUTBOX_DATABASE_URL=url), printed("--user", "ada", "--database-url", url)):
        assert (result.exit_code, "s3cret" in result.output) == (0, False)
        assert "note: add OUTBOX_DATABASE_URL to " in result.stderr


def test_password_of_an_address_that_is_not_read_is_never_printed(printed: Printed) -> None:
    result = printed(ELASTICSEARCH_URL="http://elastic:a/s3cret@localhost:9200")
    assert (result.exit_code, "s3cret" in result.output) == (0, False)
    assert "note: add ELASTICSEARCH_URL to " in result.stderr


def test_settings_come_from_the_file_of_settings_too(printed: Printed, tmp_path: Path) -> None:
    (tmp_path / "outbox-relay.env").write_text("OUTBOX_SHUTDOWN_TIMEOUT=100\nOUTBOX_DESTINATION=embedded\n")
    result = printed()
    unit = lines(result.stdout)
    assert unit["TimeoutStopSec"] == ["135"]
    assert (unit["PrivateNetwork"], unit["RestrictAddressFamilies"]) == (["yes"], ["AF_UNIX"])
    assert "add OUTBOX_EMBEDDED_PATH=/var/lib/outbox-relay/search.db to " in result.stderr


def test_relay_that_posts_notifications_has_a_network(printed: Printed, tmp_path: Path) -> None:
    offline = "OUTBOX_DESTINATION=embedded\nOUTBOX_EMBEDDED_PATH=search.db\n"
    (tmp_path / "outbox-relay.env").write_text(f"{offline}OUTBOX_NOTIFY_URL=https://hooks.example/outbox\n")
    unit = lines(printed().stdout)
    assert ("PrivateNetwork" in unit, unit["RestrictAddressFamilies"]) == (False, ["AF_INET AF_INET6 AF_UNIX"])
    assert unit["After"] == ["network-online.target"]


def test_relay_whose_file_of_settings_cannot_be_read_here_has_a_network(
    printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outbox-relay.env").write_text("OUTBOX_NOTIFY_URL=https://hooks.example/outbox\n")
    monkeypatch.setattr("os.access", lambda *_: False)
    unit = lines(printed(OUTBOX_DESTINATION="embedded", OUTBOX_EMBEDDED_PATH="search.db").stdout)
    assert "PrivateNetwork" not in unit


def test_file_of_settings_that_is_roots_alone_is_left_to_systemd(
    printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outbox-relay.env").write_text("OUTBOX_SHUTDOWN_TIMEOUT=100\n")
    monkeypatch.setattr("os.access", lambda *_: False)
    result = printed(OUTBOX_ELASTICSEARCH_URL="")
    unit = lines(result.stdout)
    assert (result.exit_code, unit["EnvironmentFile"]) == (0, [f"-{tmp_path}/outbox-relay.env"])
    assert unit["TimeoutStopSec"] == ["60"]
    assert f"note: {tmp_path}/outbox-relay.env is not yours to read" in result.stderr
    assert "no destination" not in result.stderr  # it may be in there


def test_relay_that_needs_files_of_its_own_may_write_there_and_works_where_its_entities_are(
    printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    given = {"OUTBOX_DESTINATION": "embedded", "OUTBOX_EMBEDDED_PATH": "index/search.db"}
    unit = lines(printed(**given).stdout)
    assert unit["ReadWritePaths"] == [f"{tmp_path} {tmp_path}/elsewhere/index"]
    assert f"OUTBOX_EMBEDDED_PATH={tmp_path}/elsewhere/index/search.db" in unit["Environment"]
    assert unit["WorkingDirectory"] == [str(tmp_path)]
    unit = lines(printed(OUTBOX_ENTITIES="myapp.search:registry").stdout)
    assert unit["WorkingDirectory"] == [f"{tmp_path}/elsewhere"]


def test_directory_that_systemd_would_miss_is_named(printed: Printed, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for given, missed in ((f"{tmp_path}/index", 1), (f"{tmp_path}/there", 0), (str(module.STATE), 0)):
        said = printed(OUTBOX_DESTINATION="embedded", OUTBOX_EMBEDDED_PATH=f"{given}/search.db").stderr
        assert said.count(f"note: {given} of OUTBOX_EMBEDDED_PATH does not exist yet") == missed


def test_what_a_relay_reads_in_a_home_is_not_hidden_from_it(
    printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setattr(module, "HOMES", (str(home),))

    def told(**given: str) -> tuple[list[str], bool]:
        """How homes are protected, and whether it is said that nobody could read in this one."""
        result = printed("--user", "nobody", **given)
        return lines(result.stdout)["ProtectHome"], re.search(rf"nobody may enter .*{home}", result.stderr) is not None

    monkeypatch.chdir(home)
    assert told() == (["yes"], False)
    assert told(OUTBOX_ENTITIES="myapp.search:registry") == (["read-only"], True)
    assert told(OUTBOX_ELASTICSEARCH_CA_CERTS=f"{home}/ca.pem") == (["read-only"], True)
    assert told(OUTBOX_ELASTICSEARCH_CA_CERTS=f"{tmp_path}/link/ca.pem")[0] == ["read-only"]
    monkeypatch.setattr("sys.base_prefix", f"{home}/.pyenv/versions/3.11")
    assert told() == (["read-only"], True)


def test_database_in_a_home_or_in_tmp_is_not_hidden_from_its_relay(printed: Printed) -> None:
    private = "no" if Path(settings.__file__).is_relative_to("/tmp") else "yes"  # a checkout in /tmp must be seen, too
    for path, home, tmp in (("/home/ada/app.db", "read-only", private), ("/tmp/app.db", None, "no")):
        unit = lines(printed("--database-url", f"sqlite:///{path}").stdout)
        assert (unit["ProtectHome"] == [home] or home is None, unit["PrivateTmp"]) == (True, [tmp])


def test_path_with_signs_that_systemd_reads_is_quoted(printed: Printed) -> None:
    result = printed("--database-url", 'sqlite:////srv/my $app 100%"/app.db')
    unit = lines(result.stdout)
    assert unit["ExecStart"][0].endswith(' "sqlite:////srv/my $$app 100%%\\"/app.db"')
    assert unit["ReadWritePaths"] == ['"/srv/my $app 100%%\\""']
    assert "does not exist yet" in result.stderr


@pytest.mark.parametrize(
    "given", [("--user", "ada\nExecStartPre=/bin/evil"), ("--database-url", "sqlite:////srv/a\nb")]
)
def test_line_break_makes_no_line_of_the_unit(printed: Printed, given: tuple[str, str]) -> None:
    result = printed(*given)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)


def test_every_path_of_a_setting_is_absolute_and_every_secret_is_known() -> None:
    assert {"OUTBOX_ELASTICSEARCH_API_KEY", "OUTBOX_ELASTICSEARCH_PASSWORD"} <= settings.SECRET
    assert {"OUTBOX_EMBEDDED_PATH", "OUTBOX_ELASTICSEARCH_CA_CERTS"} <= settings.PATHS


@needs_systemd
def test_systemd_takes_the_unit_and_finds_it_well_guarded(printed: Printed, tmp_path: Path) -> None:
    unit = tmp_path / "outbox-relay.service"
    unit.write_text(printed("--user", "daemon").stdout)
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", unit],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert judged.returncode == 0, judged.stdout  # over 2.0 of 10


@needs_systemd
@pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="libseccomp is not installed")
@pytest.mark.elasticsearch
def test_relay_works_under_the_units_filter_of_system_calls(
    printed: Printed, outbox: Outbox, relays: Relays, tmp_path: Path
) -> None:
    unit = tmp_path / "outbox-relay.service"
    unit.write_text(printed().stdout)
    outbox.index_many("contacts", [(f"c{n}", {"n": n}) for n in range(200)])
    command = [sys.executable, sandbox.__file__, str(unit), *lines(unit.read_text())["ExecStart"][0].split(), "--drain"]
    drained = subprocess.run(
        command, env={**os.environ, "OUTBOX_ELASTICSEARCH_URL": relays.url}, capture_output=True, text=True,
        timeout=3 * LIMIT_S, check=False,
    )  # fmt: skip
    assert (drained.returncode, outbox.counts()["done"]) == (0, 200), drained.stderr
    denied = [sys.executable, sandbox.__file__, str(unit), sys.executable, "-c", "import os; os.chroot('/')"]
    assert subprocess.run(denied, capture_output=True, check=False).returncode == 1
    assert json.loads(relays.call("status", "--json").stdout)["relays"] == []
