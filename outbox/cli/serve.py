"""serve: the admin server alone; and what `run --admin` needs to have it beside a relay."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from loguru import logger

from outbox import logs, schema
from outbox.admin.guard import is_local
from outbox.cli.entities import registry_of
from outbox.cli.options import database_option
from outbox.cli.signals import on_stop_signals
from outbox.cli.wiring import engine_of, load_settings
from outbox.destinations import destination_of
from outbox.destinations.base import Destination
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError, OutboxError, install_command
from outbox.relay import Relay
from outbox.settings import Settings

if TYPE_CHECKING:
    import uvicorn

ANSWERED_WITHIN_S = 5
STOPPED_WITHIN_S = 30.0
"""With what works in the background: a reindex ends after the documents that it is writing."""

LOOK_EVERY_S = 1.0
THREADS = 40
"""Requests that are worked on at a time, each with a connection to the database."""

insecure_option = click.option(
    "--insecure",
    is_flag=True,
    help="Answer other machines without TLS: a proxy in front adds it, or the network is trusted.",
)


root_path_option = click.option("--root-path", metavar="PATH", help="Instead of OUTBOX_ADMIN_ROOT_PATH.")


@click.command()
@click.option("--host", metavar="ADDRESS", help="Instead of OUTBOX_ADMIN_HOST.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Instead of OUTBOX_ADMIN_PORT.")
@root_path_option
@insecure_option
@database_option
def serve(host: str | None, port: int | None, root_path: str | None, insecure: bool, database_url: str | None) -> None:
    """Serve dashboard, admin API, health and metrics.

    Until stopped (SIGTERM, Ctrl-C). Answers only this machine, unless there is a token (OUTBOX_ADMIN_TOKEN) and TLS
    (OUTBOX_ADMIN_TLS_CERTIFICATE and OUTBOX_ADMIN_TLS_KEY) or --insecure. Needs the extra 'admin': pip install
    'outbox-relay[admin]', or '.[admin]' in a checkout. Restart it after an upgrade: it answers 503 once the tables were
    migrated.

    \b
    Examples:
      outbox-relay serve
      outbox-relay serve --port 9000
      outbox-relay serve --root-path /outbox  # below this path of a proxy
      outbox-relay run --admin  # a relay with it in one process
    """
    loaded = load_settings(database_url=database_url, admin_host=host, admin_port=port, admin_root_path=root_path)
    destination, registry = destination_of(loaded), registry_of(loaded)
    engine = engine_of(loaded)
    schema.require_head(engine)
    engine.dispose()
    prepared = prepare(loaded, insecure=insecure)
    stopped = threading.Event()
    on_stop_signals(stopped.set)
    with beside(prepared, loaded, destination, registry) as running:
        while running.is_alive() and not stopped.wait(LOOK_EVERY_S):
            pass
    destination.close()
    if not stopped.is_set():
        raise OutboxError("the admin server stopped unexpectedly: its log says why")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A server that holds its port, and answers once it has its application."""

    server: uvicorn.Server
    listening: socket.socket
    address: str


def prepare(loaded: Settings, *, insecure: bool) -> Prepared:
    """Raises `ConfigurationError` for what would be unsafe, or cannot be."""
    server = _server(loaded, insecure=insecure)
    listening = _listen(loaded)
    return Prepared(server, listening, _address(loaded, listening))


@contextmanager
def beside(
    prepared: Prepared,
    loaded: Settings,
    destination: Destination,
    registry: EntityRegistry | None,
    relay: Relay | None = None,
) -> Iterator[threading.Thread]:
    """The admin server on a thread of its own, for as long as the context lasts.

    It has its own connections to the database: however many ask, a `relay` in the same process has its own.
    """
    from outbox.admin.app import create_app

    engine = engine_of(loaded, connections=THREADS)
    app: Any = create_app(engine, loaded, destination, registry, relay)
    prepared.server.config.app = app
    logger.info("dashboard at {address}", address=prepared.address)
    server = prepared.server

    def run() -> None:
        try:
            server.run(sockets=[prepared.listening])
        except Exception as error:
            logger.opt(exception=error).error("the admin server has ended: {error}", error=logs.safe(repr(error)))

    thread = threading.Thread(target=run, name="outbox-admin", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        server.should_exit = True
        thread.join(timeout=STOPPED_WITHIN_S)
        engine.dispose()


def _server(loaded: Settings, *, insecure: bool) -> uvicorn.Server:
    """The server, still without its application. Raises `ConfigurationError` for what would be unsafe."""
    try:
        import fastapi  # noqa: F401
        import jinja2  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn

        from outbox.admin.protocol import TimeLimitedProtocol
    except ImportError as error:
        raise ConfigurationError(f"the admin server needs {error.name}: {install_command('admin')}") from None
    without_token = loaded.admin_token is None and not loaded.named_tokens
    if without_token and loaded.admin_proxies:
        raise ConfigurationError(
            "a proxy asks for other machines: set OUTBOX_ADMIN_TOKEN, e.g. to the output of 'openssl rand -hex 32', or "
            "name none in OUTBOX_ADMIN_PROXIES"
        )
    if not is_local(loaded.admin_host):
        if without_token:
            raise ConfigurationError(
                f"{loaded.admin_host} can be reached from other machines: set OUTBOX_ADMIN_TOKEN, e.g. to the "
                "output of 'openssl rand -hex 32', or OUTBOX_ADMIN_HOST=127.0.0.1"
            )
        if loaded.admin_tls_certificate is None and not insecure:
            raise ConfigurationError(
                f"{loaded.admin_host} can be reached from other machines, which would send the token in the clear: set "
                "OUTBOX_ADMIN_TLS_CERTIFICATE and OUTBOX_ADMIN_TLS_KEY, or say --insecure if a proxy in front adds TLS"
            )
    _check_certificate(loaded)
    config = uvicorn.Config(
        "",
        http=TimeLimitedProtocol,
        h11_max_incomplete_event_size=32_768,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",  # the application logs what fails, by its own means
        access_log=False,
        server_header=False,
        proxy_headers=False,  # believed in outbox.admin.proxies
        timeout_graceful_shutdown=ANSWERED_WITHIN_S,
        ssl_certfile=loaded.admin_tls_certificate,
        ssl_keyfile=loaded.admin_tls_key,
    )
    return uvicorn.Server(config)


def _check_certificate(loaded: Settings) -> None:
    if loaded.admin_tls_certificate is None or loaded.admin_tls_key is None:
        return
    try:
        for path in (loaded.admin_tls_certificate, loaded.admin_tls_key):
            path.open("rb").close()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(loaded.admin_tls_certificate, loaded.admin_tls_key, password="")  # else it asks for one
    except OSError as error:  # of which SSLError is one
        what = f"{error.filename}: {error.strerror}" if error.filename else f"certificate and key: {error}"
        raise ConfigurationError(
            f"{what}; check OUTBOX_ADMIN_TLS_CERTIFICATE and OUTBOX_ADMIN_TLS_KEY (PEM, the key not encrypted)"
        ) from error


def _listen(loaded: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in loaded.admin_host else socket.AF_INET
    # By name: asyncio turns off Nagle's algorithm for sockets that say so, and an answer has two parts. Without it
    # each answer but the first of a connection comes 40 ms late.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((loaded.admin_host, loaded.admin_port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            f"{loaded.admin_host}:{loaded.admin_port} cannot be listened on: {error.strerror or error}; "
            "check OUTBOX_ADMIN_HOST and OUTBOX_ADMIN_PORT"
        ) from error
    return listening


def _address(loaded: Settings, listening: socket.socket) -> str:
    scheme = "http" if loaded.admin_tls_certificate is None else "https"
    host = f"[{loaded.admin_host}]" if ":" in loaded.admin_host else loaded.admin_host
    return logs.safe(f"{scheme}://{host}:{listening.getsockname()[1]}{loaded.admin_root_path or ''}/")


commands = [serve]
