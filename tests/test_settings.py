"""What settings may be, and that a mistake in one is a single line that names it."""

from __future__ import annotations

import pytest

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
