"""What settings may be, and that a mistake in one is a single line that names it."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import pytest
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from loguru import logger

from outbox import settings
from outbox.errors import ConfigurationError


@pytest.mark.parametrize(
    ("lease", "timeout"),
    [({}, {"OUTBOX_REQUEST_TIMEOUT": "55"}), ({"OUTBOX_LEASE": "25"}, {}), ({"OUTBOX_LEASE": "6"}, {})],
)
def test_lease_that_a_request_can_outlast_is_refused_with_both_names(
    lease: dict[str, str], timeout: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (lease | timeout).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as raised:
        settings.load()
    said = str(raised.value)
    assert said.startswith("OUTBOX_LEASE (")
    assert "OUTBOX_REQUEST_TIMEOUT (" in said
    assert "\n" not in said


def test_lease_that_outlasts_every_request_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("OUTBOX_LEASE", "6.5")
    assert settings.load().lease == 6.5


@pytest.mark.parametrize(
    ("name", "value", "form"),
    [
        ("OUTBOX_ENTITIES", "myapp/search.py", "module:name"),
        ("OUTBOX_ENTITIES", "myapp.search:registry ", "module:name"),
        ("OUTBOX_GC_DELETES", "1 day", "a number with its unit"),
    ],
)
def test_value_of_another_form_is_told_the_right_one(
    name: str, value: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"^{name}: not .*{form}"):
        settings.load()


def test_settings_are_shown_without_addresses_that_may_hold_a_password() -> None:
    address = "http://ada:s3cret@localhost:9200"
    shown = repr(settings.load(database_url="postgresql://ada:s3cret@db/shop", elasticsearch_url=address))
    assert "s3cret" not in shown + repr(settings.load(opensearch_url=address))


def test_misspelt_variable_is_named_with_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_BATCH_ROW", "s3cret")
    assert settings.unknown_variables() == [
        "OUTBOX_BATCH_ROW is no setting of outbox-relay and has no effect; did you mean OUTBOX_BATCH_ROWS?"
    ]


def test_misspelt_line_of_the_env_file_is_named_too_and_other_lines_are_not(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OUTBOX_LEASES=s3cret\nOUTBOX_LEASE=70\nDJANGO_DEBUG=1\noutbox_lone_afters=s3cret\n")
    assert settings.load().lease == 70
    assert settings.unknown_variables() == [
        "OUTBOX_LEASES in .env is no setting of outbox-relay and has no effect; did you mean OUTBOX_LEASE?",
        "OUTBOX_LONE_AFTERS in .env is no setting of outbox-relay and has no effect; did you mean OUTBOX_LONE_AFTER?",
    ]


def test_unset_environment_and_missing_env_file_are_fine() -> None:
    assert settings.unknown_variables() == []


def test_env_file_that_cannot_be_read_is_one_line_without_its_content(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"OUTBOX_ELASTICSEARCH_PASSWORD=s3cret\xff\n")
    with pytest.raises(ConfigurationError) as raised:
        settings.load()
    assert str(raised.value) == "the file .env in the working directory cannot be read: it is no UTF-8 text"


@pytest.mark.parametrize("content", [b"GREETING=caf\xe9\n", b"OUTBOX_ENABLED=perhaps\n", None])
def test_mistake_in_settings_fails_no_write_and_is_one_warning(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is None:
        monkeypatch.setenv("OUTBOX_MAX_DOCUMENT_BYTES", "s3cret")
    else:
        (tmp_path / ".env").write_bytes(content)
    said: list[str] = []
    settings.write_settings.cache_clear()
    sink = logger.add(said.append, format="{message}")
    try:
        found = [settings.write_settings() for _ in range(2)]
    finally:
        logger.remove(sink)
        settings.write_settings.cache_clear()
    assert [(each.enabled, each.max_document_bytes) for each in found] == [(True, 5_000_000)] * 2
    assert len(said) == 1
    assert "s3cret" not in said[0]


def test_variable_that_is_set_to_nothing_is_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OUTBOX_BATCH_ROWS=\n")
    for name in settings.Settings.model_fields:
        monkeypatch.setenv(settings.variable(name), "")
    assert settings.load() == settings.Settings(_env_file=None)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("http://localhost", "http://localhost:80"),
        ("https://ada:pass@search.example/prefix", "https://ada:pass@search.example:443/prefix"),
        ("http://[::1]", "http://[::1]:80"),
        ("http://localhost:9200", "http://localhost:9200"),
    ],
)
def test_address_without_a_port_means_that_of_its_scheme(
    given: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_ELASTICSEARCH_URL", given)
    assert settings.load().elasticsearch_url == (read,)


@pytest.mark.parametrize(
    "url",
    [
        "https://elastic:S3cret#9@es.example:9200",
        "https://elastic:S3/cret@es:9200",
        "https://elastic:S3?x@es:9200",
        "https://elastic:S3,x@es:9200",
        "https://elastic:S3[x@es:9200",
        "https://es:S3cret",
        "elastic:S3cret@es:9200",
        "http://",
    ],
)
def test_address_that_cannot_be_read_is_one_line_without_the_password(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_ELASTICSEARCH_URL", url)
    with pytest.raises(ConfigurationError, match=r"^OUTBOX_ELASTICSEARCH_URL: ") as raised:
        settings.load()
    assert "S3" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_address_of_the_general_name_counts_only_where_the_setting_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OUTBOX_ELASTICSEARCH_URL", raising=False)
    monkeypatch.setenv("ELASTICSEARCH_URL", "http://general:9200")
    assert settings.load().elasticsearch_url == ("http://general:9200",)
    (tmp_path / ".env").write_text("ELASTICSEARCH_URL=http://filed:9200\n")
    assert settings.load().elasticsearch_url == ("http://general:9200",)
    (tmp_path / ".env").write_text("OUTBOX_ELASTICSEARCH_URL=http://ours:9200\n")
    assert settings.load().elasticsearch_url == ("http://ours:9200",)
    monkeypatch.delenv("ELASTICSEARCH_URL")
    (tmp_path / ".env").write_text("ELASTICSEARCH_URL=http://filed:9200\n")
    assert settings.load().elasticsearch_url == ("http://filed:9200",)
    monkeypatch.setenv("OUTBOX_ELASTICSEARCH_URL", "http://ours:9200")
    assert settings.load().elasticsearch_url == ("http://ours:9200",)


def test_variable_of_another_program_in_the_file_is_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUTBOX_DATABASE_URL", raising=False)
    (tmp_path / ".env").write_text("DATABASE_URL=mysql://theirs/app\nBATCH_SIZE=theirs\n")
    assert settings.load().database_url is None


SUNDAY = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "days"),
    [
        ("0 3 * * 0", [1, 8, 15]),
        ("0 3 * * 7", [1, 8, 15]),
        ("0 3 * * sun", [1, 8, 15]),
        ("0 3 * * 1", [2, 9, 16]),
        ("0 3 * * 5-7", [1, 6, 7]),
        ("0 3 * * 1-5", [2, 3, 4]),
        ("0 3 * * 0,3", [1, 4, 8]),
        ("0 3 * * */2", [1, 3, 5]),
        ("0 3 13 * *", [13]),
        ("0 3 13 * 5", [6, 13, 20]),  # either will do, and both are one
        ("0 3 */10 * 3", [11]),  # a step is no day of its own: both have to do
    ],
)
def test_days_of_a_schedule_are_those_of_cron(expression: str, days: list[int]) -> None:
    trigger = OrTrigger([CronTrigger(**fields, timezone="UTC") for fields in settings.cron_fields(expression)])
    found, last = [], None
    for _ in days:
        last = trigger.get_next_fire_time(last, last or SUNDAY)
        found.append(last.day)
    assert found == days


NAMES = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
SPELLINGS = [(str(day), day) for day in range(8)] + [(name, day) for day, name in enumerate(NAMES)]


@pytest.mark.parametrize("step", ["", "/1", "/2", "/3", "/7"])
def test_every_span_of_weekdays_is_walked_from_its_first_day_to_its_last(step: str) -> None:
    for (first, begin), (last, end) in product(SPELLINGS, SPELLINGS):
        if begin % 7 > end % 7 > 0:
            continue  # such as 5-1: refused
        days = 8 if (begin, end) == (0, 7) else (end - begin) % 7 + 1
        expected = {NAMES[(begin + each) % 7] for each in range(0, days, int(step[1:] or 1))}
        (fields,) = settings.cron_fields(f"0 3 * * {first}-{last}{step}")
        found = NAMES if fields["day_of_week"] == "*" else fields["day_of_week"].split(",")
        assert set(found) == expected, f"{first}-{last}{step}"


@pytest.mark.parametrize("expression", ["0 3 31 2 *", "0 3 30 feb *", "0 3 31 4,6,9,11 *"])
def test_schedule_that_is_never_due_is_refused(expression: str) -> None:
    with pytest.raises(ConfigurationError, match=r"OUTBOX_VERIFY_SCHEDULE: '.*' is never due"):
        settings.load(verify_schedule=expression)


@pytest.mark.parametrize("expression", ["0 3 29 2 *", "0 3 31 2 1"])
def test_schedule_that_is_due_in_some_years_or_on_some_weekdays_is_accepted(expression: str) -> None:
    assert settings.load(verify_schedule=expression).verify_schedule == expression


@pytest.mark.parametrize(
    "expression", ["0 3 * *", "0 3 * * 8", "0 3 * * mo", "0 3 * * 5-1", "0 3 * * 1/0", "0 3 * * x-y"]
)
def test_schedule_that_cron_would_refuse_names_the_setting(expression: str) -> None:
    with pytest.raises(ConfigurationError, match="OUTBOX_VERIFY_SCHEDULE"):
        settings.load(verify_schedule=expression)
