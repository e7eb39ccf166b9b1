"""What the image and compose say. `tests/test_wheel.py` runs the steps of the build; an engine there is none."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine, create_engine, make_url

from outbox.cli import main
from outbox.maintenance.pruner import prune
from outbox.settings import Settings, variable
from outbox.store import upkeep
from outbox.store.models import now_ms
from outbox.store.sqlite.engine import BUSY_TIMEOUT_S
from outbox.store.store import Store
from tests.support.image import ROOT, steps
from tests.support.outbox import Outbox, settings
from tests.support.pages import EVERYTHING

DEPLOY = ROOT / "deploy"


def value(instruction: str) -> str:
    (found,) = [text for name, text in steps() if name == instruction]
    return found


@pytest.fixture(scope="module", params=["compose.yaml", "compose.postgres.yaml"])
def compose(request: pytest.FixtureRequest) -> Any:
    return yaml.safe_load((DEPLOY / request.param).read_text())


# -- the image --------------------------------------------------------------------------------------------------------


def test_everything_that_is_copied_is_there_and_is_not_ignored() -> None:
    allowed = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    sources = [word for name, text in steps() if name == "COPY" and "--from" not in text for word in text.split()[:-1]]
    assert set(sources) == set(allowed)
    assert all((ROOT / source).exists() for source in sources)


def test_image_runs_a_relay_as_nobody_in_particular_with_the_database_in_a_volume() -> None:
    assert (value("USER"), value("VOLUME"), value("STOPSIGNAL")) == ("outbox", "/data", "SIGTERM")
    assert (value("ENTRYPOINT"), value("CMD")) == ('["outbox-relay"]', '["run"]')  # no shell that keeps signals
    assert "OUTBOX_DATABASE_URL=sqlite:////data/app.db" in value("ENV")
    assert value("HEALTHCHECK").endswith('CMD ["python", "/opt/outbox-relay/healthcheck.py"]')


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "silent_s", "interval", "well"),
    [
        (socket.gethostname(), 1, "5", True),
        (socket.gethostname(), 90, "5", False),
        (socket.gethostname(), 90, "0.5", False),
        (socket.gethostname(), 90, "60", True),
        (socket.gethostname(), 900, "60", False),
        ("other", 1, "5", False),
    ],
)
def test_container_is_healthy_while_its_own_relay_gives_signs_of_life(
    outbox: Outbox, engine: Engine, host: str, silent_s: int, interval: str, well: bool
) -> None:
    outbox.store().register_relay(host, 1, "0.1.0", now_ms() - silent_s * 1_000)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OUTBOX_DATABASE_URL": f"sqlite:///{engine.url.database}",
        "OUTBOX_HEARTBEAT_INTERVAL": interval,
    }
    asked = [sys.executable, DEPLOY / "healthcheck.py"]
    said = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    assert (said.returncode == 0) == well, said.stderr
    assert (said.stdout + said.stderr).count("\n") == 1


# -- compose ----------------------------------------------------------------------------------------------------------


def test_relay_starts_after_the_migration_and_a_healthy_elasticsearch(compose: Any) -> None:
    assert compose["services"]["relay"]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"},
        "elasticsearch": {"condition": "service_healthy"},
    }
    assert compose["services"]["migrate"]["command"] == ["migrate"]
    assert "healthcheck" in compose["services"]["elasticsearch"]


def test_elasticsearch_without_passwords_is_reached_from_nowhere_else(compose: Any) -> None:
    node = compose["services"]["elasticsearch"]
    assert (node["environment"]["xpack.security.enabled"], node["networks"]) == ("false", ["inside"])
    assert compose["networks"]["inside"] == {"internal": True}
    assert "ports" not in node
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:8321:8321"]


@pytest.mark.parametrize("name", ["migrate", "relay", "admin"])
def test_our_containers_share_the_database_and_may_do_nothing_else(compose: Any, name: str) -> None:
    service = compose["services"][name]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    if server := compose["services"].get("postgres"):
        url = make_url(re.sub(r"\$\{.*?\}", "secret", service["environment"]["OUTBOX_DATABASE_URL"]))
        given = {key.removeprefix("POSTGRES_"): value for key, value in server["environment"].items()}
        assert (url.host, url.username, url.database) == ("postgres", given["USER"], given["DB"])
        assert given["PASSWORD"] in service["environment"]["OUTBOX_DATABASE_URL"]
        assert "volumes" not in service
    else:
        assert service["volumes"] == ["data:/data"]
    assert "data" in compose["volumes"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert set(service["environment"]) <= {variable(field) for field in Settings.model_fields}
    command, *options = service["command"]
    main.commands[command].make_context(command, options)  # fails for an option that there is not


def test_three_relays_work_on_a_postgresql_that_is_reached_from_nowhere_else() -> None:
    services = yaml.safe_load((DEPLOY / "compose.postgres.yaml").read_text())["services"]
    server = services["postgres"]
    assert services["relay"]["deploy"] == {"replicas": 3}
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert (server["networks"], "ports" in server, "healthcheck" in server) == (["inside"], False, True)
    assert server["volumes"] == ["data:/var/lib/postgresql/data"]
    assert any("[admin,postgres]" in text for _, text in steps())


def test_compose_waits_longer_than_a_relay_takes_to_stop(compose: Any) -> None:
    grace = float(compose["services"]["relay"]["stop_grace_period"].removesuffix("s"))
    assert grace > settings().shutdown_timeout + BUSY_TIMEOUT_S


# -- what the documentation says --------------------------------------------------------------------------------------


def said(first: str) -> str:
    """The one command of all pages that begins with these words."""
    lines = (line.strip() for page in EVERYTHING.values() for line in page.splitlines())
    (found,) = {line for line in lines if line.startswith(first)}
    return found


def test_backup_as_the_guide_makes_it_holds_what_is_only_in_the_log_so_far(outbox: Outbox, tmp_path: Path) -> None:
    row = outbox.index("contacts", "c1", {"name": "Ada"})
    subprocess.run(said("python3 -c \"import sqlite3; sqlite3.connect('app.db').backup"), shell=True, check=True)
    copy = create_engine(f"sqlite:///{tmp_path / 'backup.db'}")
    restored = Store(copy)
    found = restored.event(row)
    restored.close()
    copy.dispose()
    assert found is not None
    assert (found["state"], found["document"]) == ("pending", '{"name":"Ada"}')


def test_file_is_smaller_after_what_the_guide_says_while_others_have_it_open(outbox: Outbox) -> None:
    store, now = outbox.store(), now_ms()
    outbox.index_many("contacts", [(f"c{n}", {"text": "x" * 1_000}) for n in range(3_000)])
    outbox.raw("UPDATE outbox_events SET state = 'done', finished_at = :now WHERE id > 10", now=now - 1)
    prune(store, now)
    upkeep.checkpoint(store)
    large = Path(str(store.connection.engine.url.database)).stat().st_size
    assert store.sizes().free > large / 2
    subprocess.run(said("python3 -c \"import sqlite3; sqlite3.connect('app.db', timeout"), shell=True, check=True)
    upkeep.checkpoint(store)
    assert Path(str(store.connection.engine.url.database)).stat().st_size < large / 2
    assert (store.sizes().free, outbox.counts()["pending"]) == (0, 10)
