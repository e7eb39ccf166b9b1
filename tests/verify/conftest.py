"""An application on each kind of destination."""

from __future__ import annotations

import pytest

from tests.support.models import Contact
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.verify.world import Application


@pytest.fixture
def app(outbox: Outbox, place: Place) -> Application:
    """Ten contacts, all delivered."""
    made = Application(outbox, place)
    made.save(*(Contact(id=number, name=f"Ada {number}", phone=str(number)) for number in range(1, 11)))
    made.deliver()
    return made
