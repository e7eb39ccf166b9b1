"""systemd: prints a unit that keeps a relay running. It writes no file and starts nothing."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
from sqlalchemy.engine import make_url

from outbox import __version__, settings
from outbox.cli.options import database_option
from outbox.cli.serve import STOPPED_WITHIN_S
from outbox.cli.wiring import engine_of, load_settings
from outbox.errors import ConfigurationError, install_command
from outbox.settings import Settings, variable
from outbox.store.sqlite.engine import BUSY_TIMEOUT_S
from outbox.store.store import database_name

UNIT = "/etc/systemd/system/outbox-relay.service"
ENV_FILE = Path("/etc/outbox-relay.env")
STATE = Path("/var/lib/outbox-relay")
HOMES = ("/home", "/root", "/run/user")
TEMPORARY = ("/tmp", "/var/tmp")
DATABASE_URL = variable("database_url")
KNOWS_RESTART_STEPS = 254
EXIT_MARGIN_S = 5

TEMPLATE = """\
# outbox-relay {version}, as printed by 'outbox-relay systemd'. Put it where systemd looks, and start it:
#   outbox-relay systemd | sudo tee {unit}
#   sudo systemctl daemon-reload && sudo systemctl enable --now outbox-relay
#   journalctl -u outbox-relay -f
# After an upgrade: outbox-relay migrate && sudo systemctl restart outbox-relay
[Unit]
Description=outbox-relay: delivers the outbox of {database}
{after}
# A relay that cannot start is tried again for ever: its rows wait as long as it takes.
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
User={user}
WorkingDirectory={directory}
# Settings, passwords above all: one OUTBOX_...=value a line; owned by root, mode 0600.
EnvironmentFile={env_file}
{environment}Restart=always
RestartSec=1
# Ever longer pauses between attempts, where systemd knows them (from 254 on).
{steps}RestartSteps=6
{steps}RestartMaxDelaySec=60

# SIGTERM: finish what is in flight (OUTBOX_SHUTDOWN_TIMEOUT), then give rows back; the database may be locked.
KillSignal=SIGTERM
KillMode=mixed
TimeoutStopSec={stop}

# A batch is held in memory a few times: OUTBOX_CONCURRENCY x OUTBOX_BATCH_BYTES x 4, and 100 MB for the program.
#MemoryMax=500M

# It may write to the directories of its files (SQLite makes others beside them), and nowhere else.
StateDirectory=outbox-relay
StateDirectoryMode=0750
ReadWritePaths={writable}
ProtectSystem=strict
ProtectHome={home}
PrivateTmp={private_tmp}
UMask=0027

# It needs no privilege, no device, and no other process.
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
PrivateDevices=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectProc=invisible
ProcSubset=pid
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
# Take this line out if OUTBOX_ENTITIES imports something that makes code at run time (numba, cffi callbacks).
MemoryDenyWriteExecute=yes
{network}
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


@click.command()
@click.option("--user", metavar="USER", help="Who runs it; otherwise the owner of the database.")
@click.option(
    "--env-file",
    type=click.Path(path_type=Path, dir_okay=False, resolve_path=True),
    help=f"File with settings; otherwise {ENV_FILE}, if it is there.",
)
@click.option("--admin", is_flag=True, help="Serve the admin API and dashboard from the same process.")
@database_option
def systemd(user: str | None, env_file: Path | None, admin: bool, database_url: str | None) -> None:
    """Print a hardened systemd unit for this installation. Writes no file, starts nothing.

    Settings that the environment holds here are repeated in the unit; passwords are not, they belong into the file of
    settings. What is still to be done before it can start is printed on standard error.

    \b
    Examples:
      outbox-relay systemd
      outbox-relay systemd --user app --env-file /etc/app.env
      outbox-relay systemd --admin > outbox-relay.service
    """
    chosen = env_file or ENV_FILE
    read = [chosen] if os.access(chosen, os.R_OK) else []  # with passwords in it, it is root's alone
    loaded = load_settings(database_url=database_url, _env_file=(".env", *read))
    name, database = _database(loaded)
    named = [path.absolute() for path in (database, loaded.embedded_path) if path]
    files = [each for file in named for each in (file, file.resolve())]  # a link's log is beside what it leads to
    command, directory = _command(), _directory(loaded, database)
    authorities = (loaded.elasticsearch_ca_certs, loaded.opensearch_ca_certs)
    certificates = [each.absolute() for each in authorities if each]
    code = [command, Path(sys.base_prefix), Path(__file__).parents[1]]  # an editable installation lies elsewhere
    needed = [*files, directory, *certificates, *code]
    user = user or _owner(database or directory)
    exported = settings.exported(*read)
    if database:
        exported.pop(DATABASE_URL, None)  # the command names it
    elif database_url:
        exported[DATABASE_URL] = database_url
    secret = [key for key, value in exported.items() if key in settings.SECRET or _has_password(key, value)]
    offline = database is not None and loaded.destination == "embedded" and not admin and loaded.notify_url is None
    offline = offline and (bool(read) or not chosen.exists())  # what cannot be read may set one
    unit = TEMPLATE.format(
        version=__version__,
        unit=UNIT,
        database=_escaped(name),
        after="After=local-fs.target" if offline else "Wants=network-online.target\nAfter=network-online.target",
        command=_command_line(command, database, admin=admin),
        user=_escaped(user),
        directory=_escaped(str(directory)),
        env_file=f"{'' if env_file else '-'}{_escaped(str(chosen))}",
        environment=_environment({key: value for key, value in exported.items() if key not in secret}),
        steps="" if _systemd_version() >= KNOWS_RESTART_STEPS else "#",
        stop=math.ceil(loaded.shutdown_timeout + BUSY_TIMEOUT_S + (STOPPED_WITHIN_S if admin else 0)) + EXIT_MARGIN_S,
        writable=" ".join(dict.fromkeys(_quoted(str(file.parent)) for file in files)),
        home="read-only" if _lies_in(HOMES, needed) else "yes",
        private_tmp="no" if _lies_in(TEMPORARY, needed) else "yes",
        network="PrivateNetwork=yes\nRestrictAddressFamilies=AF_UNIX"
        if offline
        else "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    )
    click.echo(unit, nl=False)
    for line in _to_do(loaded, database, needed, user, chosen, secret, admin=admin, required=env_file is not None):
        click.echo(f"note: {line}", err=True)


def _command_line(command: Path, database: Path | None, *, admin: bool) -> str:
    named = ["--database-url", f"sqlite:///{database}"] if database else []
    words = (str(command), "run", *(["--admin"] if admin else []), *named)
    return " ".join(_quoted(word).replace("$", "$$") for word in words)


def _environment(exported: Mapping[str, str]) -> str:
    """Settings as lines of the unit."""
    return "".join(f"Environment={_quoted(f'{name}={_absolute(name, value)}')}\n" for name, value in exported.items())


def _to_do(
    loaded: Settings,
    database: Path | None,
    needed: Sequence[Path],
    user: str,
    env_file: Path,
    secret: list[str],
    *,
    admin: bool,
    required: bool,
) -> Iterator[str]:
    """What keeps the unit from working so far."""
    if secret:
        yield f"add {', '.join(secret)} to {env_file}: units can be read by everybody, so passwords are not repeated"
    elif required and not env_file.exists():
        yield f"{env_file} does not exist yet: without it the unit does not start"
    if env_file.exists() and not os.access(env_file, os.R_OK):
        yield f"{env_file} is not yours to read: what it sets is used by the unit, but was not looked at here"
    elif loaded.destination == "embedded" and loaded.embedded_path is None:
        yield f"no file for the embedded destination: add OUTBOX_EMBEDDED_PATH={STATE}/search.db to {env_file}"
    elif loaded.destination != "embedded" and not loaded.cluster_url:
        yield f"no destination is set: add {variable(f'{loaded.destination}_url')} to {env_file}"
    if admin:
        yield f"--admin needs the extra: {install_command('admin')}"
    if database and not database.exists():
        yield f"{database} does not exist yet: let the application make it, then run 'outbox-relay migrate'"
    if loaded.embedded_path and not (held := loaded.embedded_path.absolute().parent).exists() and held != STATE:
        yield f"{held} of OUTBOX_EMBEDDED_PATH does not exist yet: make it, and let {user} own it, or no unit starts"
    if user == "root" and database:
        yield f"it runs as root, to whom {database} belongs; better: --user, and let that user own the directory"
    elif user == "root":
        yield "it runs as root; better: --user"
    closed: dict[Path, list[str]] = {}
    for path in needed:
        if blocked := _closed_to_others(path, user):
            closed.setdefault(blocked, []).append(str(path))
    for blocked, beyond in closed.items():
        yield f"check that {user} may enter {blocked}, which leads to {', '.join(beyond)}"


def _database(loaded: Settings) -> tuple[str, Path | None]:
    """What it is called, and where its file is, or shall be; a server has none."""
    engine = engine_of(loaded, create=True)  # its checks of the URL; nothing is opened
    engine.dispose()
    name = database_name(engine)
    return name, Path(name) if engine.dialect.name == "sqlite" else None


def _command() -> Path:
    """The installed command itself, in its own environment."""
    command = Path(sysconfig.get_path("scripts")) / "outbox-relay"
    if not command.is_file():
        raise ConfigurationError(f"{command} does not exist: install outbox-relay with pip, and run that one")
    return command


def _owner(database: Path) -> str:
    """To whom the database belongs, or the nearest directory of it that exists."""
    path = next(path for path in (database, *database.parents) if path.exists())
    try:
        return path.owner()
    except KeyError:
        return str(path.stat().st_uid)


def _directory(loaded: Settings, database: Path | None) -> Path:
    """Where the relay works: here, where OUTBOX_ENTITIES is imported from and .env is read, if either is used."""
    if loaded.entities or Path(".env").exists():
        return Path.cwd()
    return database.parent if database else STATE


def _systemd_version() -> int:
    """0 without systemd."""
    if (systemctl := shutil.which("systemctl")) is None:
        return 0
    answer = subprocess.run([systemctl, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"systemd (\d+)", answer)
    return int(found[1]) if found else 0


def _absolute(name: str, value: str) -> str:
    """Files with their absolute paths: the unit may work in another directory."""
    return str(Path(value).absolute()) if name in settings.PATHS else value


def _has_password(name: str, value: str) -> bool:
    if name == DATABASE_URL:  # which may have it in its query, as libpq takes it: password, sslpassword
        url = make_url(value)
        return url.password is not None or any(re.search("pass|secret", key, re.IGNORECASE) for key in url.query)
    return "://" in value and "@" in value  # wherever: one that nothing reads may have '/' or ',' in its password


def _lies_in(places: Sequence[str], paths: Sequence[Path]) -> bool:
    """Whether one of the paths does, or what it links to."""
    return any(each.is_relative_to(place) for path in paths for each in (path, path.resolve()) for place in places)


def _closed_to_others(path: Path, user: str) -> Path | None:
    """The first directory on the way to `path` that is neither open to everybody nor the user's own."""
    for parent in reversed([path, *path.parents]):
        if parent.is_dir() and not parent.stat().st_mode & 0o001 and _owner(parent) != user:
            return parent
    return None


def _escaped(text: str) -> str:
    """As systemd reads it. Raises `ConfigurationError` for what no line can hold."""
    if not text.isprintable():
        raise ConfigurationError(
            f"{text!r} cannot be written in a unit: it holds a line break or another control character"
        )
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    """One word of a list, quoted where it must be."""
    word = _escaped(text)
    if re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


commands = [systemd]
