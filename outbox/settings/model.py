"""Every setting, once: its unit, range, default and meaning.

A setting `batch_rows` is the variable `OUTBOX_BATCH_ROWS`, or a line of the same name in a file `.env` in the
working directory. Times are seconds (fractions allowed) unless the name says otherwise.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from outbox.settings import tokens
from outbox.settings.cron import Schedule
from outbox.settings.proxies import Proxy, RootPath
from outbox.settings.spans import ClusterTime, Retention
from outbox.settings.tokens import NamedToken

PREFIX = "OUTBOX_"
LEASE_MARGIN_S: Final = 5
"""How much longer than a request its lease must last."""
LONGEST_LEASE_S: Final = 3_600
HEARTBEATS_MISSED: Final = 6
_GENERAL_NAME: Final = "elasticsearch_url"
"""`ELASTICSEARCH_URL`, which other programs read, too, as the sources have it; and the setting that it is read for."""


class WriteSettings(BaseSettings):
    """What the write side reads inside the application.

    Few on purpose: a mistake in a setting of the relay must not be able to fail an application's write.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,  # a variable that is set to nothing, as compose files do, is not set
        extra="ignore",
        hide_input_in_errors=True,  # the input of a failed validation may be a URL with a password
        populate_by_name=True,
        frozen=True,
    )

    enabled: bool = Field(
        True, description="false turns the outbox off: repository calls check nothing and store nothing"
    )
    max_document_bytes: int = Field(
        5_000_000, ge=1_000, le=90_000_000, description="largest document that is accepted, in bytes of JSON"
    )


class _WithGeneralName(WriteSettings):
    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource, **named: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Last of all `ELASTICSEARCH_URL`: as an alias, in the environment it would beat the setting in `.env`."""
        own = (*sources, *named.values())
        read = (each.env_vars.get(_GENERAL_NAME) for each in own if isinstance(each, EnvSettingsSource))
        general = next(filter(None, read), None)
        return (*own, InitSettingsSource(settings_cls, {_GENERAL_NAME: general} if general else {}))


class Settings(_WithGeneralName):
    """Everything the relay and the command line read."""

    # Where from, where to
    database_url: str | None = Field(
        None, repr=False, description="SQLAlchemy URL of the application's database, e.g. sqlite:///app.db"
    )
    destination: Literal["elasticsearch", "opensearch", "embedded"] = Field(
        "elasticsearch", description="where documents are delivered; embedded is one SQLite file, without a cluster"
    )
    elasticsearch_url: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        repr=False,
        description="address of Elasticsearch, or of several nodes of one cluster, separated by commas",
    )
    elasticsearch_api_key: SecretStr | None = Field(None, description="API key (base64 form)")
    elasticsearch_username: str | None = Field(None, description="user name, if no API key is given")
    elasticsearch_password: SecretStr | None = Field(None, description="password of that user")
    elasticsearch_ca_certs: Path | None = Field(
        None, description="file with the certificate authority of the cluster; without it, the system's are trusted"
    )
    opensearch_url: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        repr=False,
        description="the same of OpenSearch, for OUTBOX_DESTINATION=opensearch; needs the extra 'opensearch'",
    )
    opensearch_username: str | None = Field(None, description="user name there")
    opensearch_password: SecretStr | None = Field(None, description="password of that user")
    opensearch_ca_certs: Path | None = Field(None, description="file with the certificate authority of that cluster")
    embedded_path: Path | None = Field(
        None, description="file of the embedded destination, e.g. search.db; never the application's database"
    )

    entities: str | None = Field(
        None,
        description="registry of entities as module:name, e.g. myapp.search:registry; without it their rows wait",
    )

    # Throughput
    batch_rows: int = Field(1_000, ge=1, le=10_000, description="most rows in one claim and one request")
    batch_bytes: int = Field(
        5_000_000,
        ge=10_000,
        le=90_000_000,
        description="most bytes of documents in one request, beside its largest; 200 bytes a row come on top",
    )
    concurrency: int = Field(4, ge=1, le=50, description="requests in flight at the same time")

    rate: float = Field(
        0.0, ge=0, le=1_000_000, description="most rows a second that a relay delivers in all; 0: no limit"
    )
    tenant_rate: float = Field(
        0.0, ge=0, le=1_000_000, description="most rows a second that a relay delivers for one tenant; 0: no limit"
    )

    # Leases and timeouts: a request must be over before its lease is
    lease: float = Field(
        60.0,
        gt=LEASE_MARGIN_S,
        le=LONGEST_LEASE_S,
        description="s after which other relays may take over a claim; must be longer than OUTBOX_REQUEST_TIMEOUT + 5",
    )
    request_timeout: float = Field(20.0, gt=0, le=600, description="s to wait for one answer")
    bulk_timeout: float = Field(
        5.0, gt=0, le=300, description="s that Elasticsearch itself waits for a shard that is not available"
    )
    shutdown_timeout: float = Field(
        25.0, ge=0, le=600, description="s after SIGTERM for requests in flight to finish; other rows are released"
    )
    poll_interval: float = Field(
        1.0,
        ge=0.01,
        le=60,
        description="s between looks for work that nothing announced: retries that are due, missed signals; five times "
        "as long while no row is unfinished and commits are watched",
    )

    # Retries of a document's own failures (outages spend none)
    max_retries: int = Field(3, ge=0, le=20, description="retries after which a row is dead; 0: none")
    retry_backoff: float = Field(
        2.0, gt=0, le=600, description="s before the first retry; doubled for each one after it"
    )
    lone_after: int = Field(
        10, ge=2, le=1_000, description="deliveries without an answer after which a row is delivered alone"
    )

    # Breakers: pauses while a destination or an index does not answer
    breaker_first_pause: float = Field(
        1.0, gt=0, le=60, description="s before a destination or an index that failed is tried again"
    )
    breaker_longest_pause: float = Field(30.0, gt=0, le=600, description="longest pause between such tries, in s")

    # Housekeeping
    retention_hours: float = Field(24.0, ge=0, le=8_760, description="h for which finished rows are kept")
    dead_retention: Retention | None = Field(
        None,
        description="how long dead rows are kept after they died, e.g. 90d; without it, until you decide",
    )
    stats_retention_days: float = Field(
        90.0, ge=1, le=3_650, description="d for which statistics and the audit are kept"
    )
    heartbeat_interval: float = Field(
        5.0, ge=0.1, le=300, description="s between heartbeats of a relay; after 6 missed ones it is listed as gone"
    )
    reap_interval: float = Field(5.0, ge=0.1, le=300, description="s between looks for leases that have expired")
    gc_deletes: ClusterTime = Field(
        "24h",
        description="how long Elasticsearch remembers the deletes of an index (its setting index.gc_deletes)",
    )

    # Growth: a relay warns once when one of these limits is reached, and says once that it is back below it.
    # Far more seconds than any restart takes, and few enough for a person to do something in time. Rows: some 2 GB with
    # documents of 0.4 KB, or a day of 58 rows a second. Log: three times the size at which a relay empties it, so that
    # something keeps it from doing so.
    warn_oldest: float = Field(
        600.0, ge=0, le=31_536_000, description="s that the oldest row may wait before a relay warns; 0: never"
    )
    warn_rows: int = Field(
        5_000_000, ge=0, le=10**12, description="rows in outbox_events, finished ones too, at which it warns; 0: never"
    )
    warn_wal_bytes: int = Field(
        500_000_000, ge=0, le=10**15, description="bytes of SQLite's write-ahead log at which it warns; 0: never"
    )

    # Reindex
    resume_reindex: bool = Field(
        True, description="whether a relay that knows the entities continues a reindex whose process was killed"
    )

    # Verification
    verify_schedule: Schedule | None = Field(
        None, description="when a relay compares a sample with the index: five fields of cron, in UTC, e.g. 0 3 * * *"
    )
    verify_sample: float = Field(
        1.0, ge=0.1, le=100, description="% of the documents that a scheduled comparison draws at random"
    )

    # Notifications
    notify_url: SecretStr | None = Field(
        None, description="address that relays post to when something happens that an operator should hear of"
    )
    notify_secret: SecretStr | None = Field(
        None, description="secret that signs these posts, 16 characters or more; without it they are not signed"
    )

    # Admin server: API, dashboard, health, metrics
    admin_host: str = Field("127.0.0.1", min_length=1, description="address that the admin server listens on")
    admin_port: int = Field(8321, ge=0, le=65_535, description="port of the admin server; 0: any that is free")
    admin_token: SecretStr | None = Field(
        None,
        description="secret that callers of the admin server send, 16 characters or more; "
        "required unless it listens on this machine only",
    )
    admin_tokens: SecretStr | None = Field(
        None,
        description="further ones with a name and a role (look, operate or administer), separated by commas: "
        "NAME:ROLE:TOKEN",
    )
    admin_hide: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="fields of documents that the admin server shows to nobody, e.g. email,address.notes"
    )
    admin_tls_certificate: Path | None = Field(
        None, description="file with the certificate of the admin server (PEM), for https"
    )
    admin_tls_key: Path | None = Field(None, description="file with the private key of that certificate (PEM)")
    admin_root_path: RootPath | None = Field(
        None, description="path below which a proxy has the admin server, e.g. /outbox; without it, at the top"
    )
    admin_proxies: Annotated[tuple[Proxy, ...], NoDecode] = Field(
        (),
        description="addresses or networks of proxies whose X-Forwarded-For, -Proto and -Host count, e.g. 127.0.0.1; "
        "nobody else's do",
    )

    # Logs
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="lowest level that is logged")
    log_format: Literal["text", "json"] = Field(
        "text", description="form of the log: one line of text, or one of JSON, for each entry"
    )
    log_operations: bool = Field(
        True, description="whether to log a line '[ES] …' for every operation that was answered"
    )

    @property
    def silent_ms(self) -> int:
        """Without a heartbeat for so long a relay counts as gone."""
        return int(self.heartbeat_interval * HEARTBEATS_MISSED * 1_000)

    @property
    def cluster_url(self) -> tuple[str, ...]:
        """The addresses of the cluster that is the destination; none are needed for the embedded one."""
        return self.opensearch_url if self.destination == "opensearch" else self.elasticsearch_url

    @field_validator("elasticsearch_url", "opensearch_url", "admin_hide", "admin_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(each.strip() for each in value.split(",") if each.strip()) if isinstance(value, str) else value

    @field_validator("elasticsearch_url", "opensearch_url")
    @classmethod
    def _with_scheme(cls, urls: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        product = str(info.field_name).removesuffix("_url")
        return tuple(_address(url, product) for url in urls)

    @field_validator("notify_url")
    @classmethod
    def _is_webhook(cls, value: SecretStr | None) -> SecretStr | None:
        return value if value is None else _webhook(value)

    @field_validator("admin_token", "notify_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        return tokens.whole(value)

    @field_validator("admin_tokens")
    @classmethod
    def _each_with_name_and_role(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        tokens.check(tokens.parsed(value), info.data.get("admin_token"))
        return value

    @field_validator("entities")
    @classmethod
    def _names_an_object(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w.]+:[\w.]+", value):
            raise ValueError(
                "not in the form module:name, e.g. myapp.search:registry for 'registry' in myapp/search.py"
            )
        return value

    @property
    def named_tokens(self) -> tuple[NamedToken, ...]:
        """Who has one of `admin_tokens`, and what they may do."""
        return tokens.parsed(self.admin_tokens)

    @model_validator(mode="after")
    def _certificate_with_key(self) -> Self:
        if (self.admin_tls_certificate is None) != (self.admin_tls_key is None):
            raise ValueError("OUTBOX_ADMIN_TLS_CERTIFICATE and OUTBOX_ADMIN_TLS_KEY go together: set both or neither")
        return self

    @model_validator(mode="after")
    def _lease_outlasts_a_request(self) -> Self:
        if self.lease <= self.request_timeout + LEASE_MARGIN_S:
            raise ValueError(
                f"OUTBOX_LEASE ({self.lease:g} s) must be longer than OUTBOX_REQUEST_TIMEOUT "
                f"({self.request_timeout:g} s) + {LEASE_MARGIN_S} s, so that a request ends before its lease does; "
                "raise the first or lower the second"
            )
        return self


def _address(url: str, product: str) -> str:
    """An address with its port. Raises `ValueError` that shows no part of it: a password may stand anywhere."""
    apart = f"or set {variable(f'{product}_username')} and {variable(f'{product}_password')}"
    if not url.startswith(("http://", "https://")):
        raise ValueError(
            "each address must start with http:// or https://; addresses are separated by commas, so write a comma in "
            f"a password as %2C, {apart}"
        )
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("it is no address: a '[' outside of an IPv6 address? write it as %5B in a password") from None
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        raise ValueError(
            "its password contains '/', '?' or '#', which end the host's part of an address: write them as %2F, %3F "
            f"and %23, {apart}"
        )
    try:
        port = parts.port
    except ValueError:
        raise ValueError("the port is no number from 0 to 65535; e.g. http://localhost:9200") from None
    if not parts.hostname or parts.query or parts.fragment:
        raise ValueError("it is no address; e.g. http://localhost:9200, or https://user:password@search.example:9243")
    if port is not None:
        return url
    netloc = f"{parts.netloc.removesuffix(':')}:{443 if parts.scheme == 'https' else 80}"
    return parts._replace(netloc=netloc).geturl()


def _webhook(value: SecretStr) -> SecretStr:
    """An address that is one. Raises `ValueError` that shows no part of it: all of it may be a secret."""
    url = value.get_secret_value()
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or not re.fullmatch(r"[!-~]+", url) or parts.fragment:
        raise ValueError("it is no address of http or https, e.g. https://hooks.example/outbox")
    return value


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"
