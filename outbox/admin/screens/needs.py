"""Pure: what needs a person, each with the screen that mends it; causes come before their effects."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

from pydantic import Field

from outbox import logs
from outbox.admin.shapes import Alert, Model, Overview
from outbox.store.drift import needs_somebody


class Need(Model):
    """Something that a person has to look at."""

    name: str = Field(description="an alert, or blocked, relay_lost, reindex, dead, drift, mappings")
    text: str
    remedy: str
    page: str = Field(description="the screen that mends it")
    urgent: bool = Field(description="rows do not arrive; else it can wait for the morning")


ALERT_PAGES = {
    "cluster_unreachable": "/relays",
    "no_relay": "/relays",
    "queue_depth": "/indexes",
    "completion": "/events?state=dead",
    "failures": "/events?state=dead",
    "latency": "/indexes",
}


def needs(overview: Overview) -> list[Need]:
    """Everything that needs a person as of an overview, what is urgent first."""
    found = [
        *(_of_alert(each, overview) for each in overview.alerts),
        *_blocked(overview),
        *_lost_relays(overview),
        *_later(overview),
    ]
    return sorted(found, key=lambda need: not need.urgent)


def _of_alert(alert: Alert, overview: Overview) -> Need:
    paused = overview.pauses[0].index if overview.pauses and overview.paused is None else None
    page = ALERT_PAGES.get(alert.name) or (_index(paused) if paused else "/indexes")
    return Need(name=alert.name, text=alert.text, remedy=alert.remedy, page=page, urgent=True)


def _index(name: str) -> str:
    return f"/index?{urlencode({'index': name})}"


def _blocked(overview: Overview) -> Iterator[Need]:
    reasons = {
        breaker.index: breaker.reason for relay in overview.relays if relay.running for breaker in relay.breakers
    }
    for index, reason in reasons.items():
        if index is not None:
            text, remedy = f"index {index} takes no rows: {reason}", "mend that; its rows flow by themselves then"
            yield Need(name="blocked", text=text, remedy=remedy, page=_index(index), urgent=True)


def _lost_relays(overview: Overview) -> Iterator[Need]:
    lost = [each for each in overview.relays if not each.running]
    if lost:
        those = ", ".join(f"{each.id} ({each.host}, process {each.pid})" for each in lost[:3])
        more = f" and {len(lost) - 3:,} more" if len(lost) > 3 else ""
        text = f"no sign of life of relay {those}{more}"
        yield Need(name="relay_lost", text=text, remedy="see whether it hangs", page="/relays", urgent=False)


def _later(overview: Overview) -> Iterator[Need]:
    dead, last = overview.queue.dead, overview.verification
    for job in overview.reindexes:
        if job.abandoned:
            text = f"no process works on reindex {job.job_id} of {job.index}"
            yield Need(name="reindex", text=text, remedy="resume or cancel it", page="/reindexes", urgent=False)
    if dead:
        text = f"{logs.rows(dead)} died and {'needs' if dead == 1 else 'need'} a decision"
        yield Need(name="dead", text=text, remedy="see why; retry", page="/events?state=dead", urgent=False)
    if last is not None and (last.error or needs_somebody(last.drift, last.repaired)):
        wrong = f"{last.drift:,} {'document is' if last.drift == 1 else 'documents are'} not as the database says"
        text = "the last verification did not finish" if last.error else f"the last verification found that {wrong}"
        yield Need(name="drift", text=text, remedy="verify, and repair", page="/verifications", urgent=False)
    for each in overview.mappings:
        yield Need(name="mappings", text=each.found, remedy=each.remedy, page=_index(each.index), urgent=False)
