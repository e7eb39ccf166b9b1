"""What each type of error means for its row, and what to do: the dashboard and the reference say it from here."""

from __future__ import annotations

from typing import Final, NamedTuple


class Remedy(NamedTuple):
    """`becomes`: what becomes of the row. `text`: what happened, and what to do."""

    error_types: tuple[str, ...]
    becomes: str
    text: str


OUR_OWN: Final = (
    Remedy(("unanswered",), "waits", "no answer to its last delivery, or its lease ended first"),
    Remedy(("relay_died",), "waits", "its relay was killed while it held the row"),
    Remedy(
        ("no_registry", "unknown_entity"),
        "waits",
        "the relay does not know the entity: set OUTBOX_ENTITIES, or start the relay of the version that knows it",
    ),
    Remedy(("entity_unavailable",), "waits", "the database did not let the relay load the entity"),
    Remedy(
        ("document_missing",),
        "dead",
        "a partial update of a document that is not in the index, without an upsert: write the full document, then "
        "discard the row",
    ),
    Remedy(
        ("source_missing",),
        "dead",
        "a partial update where the index does not give back all of the document: write the full document, then "
        "discard the row",
    ),
    Remedy(
        ("illegal_document", "illegal_index_name"),
        "dead",
        "a row that another program wrote: no JSON object on one line, or no index name; or an upsert that a relay of "
        "an earlier version met: upgrade it and retry the row",
    ),
    Remedy(
        ("illegal_text",),
        "dead",
        "the same: index, document, tenant or entity named by a BLOB, or by text that is no UTF-8; write it anew and "
        "discard the row",
    ),
    Remedy(
        ("load_failed", "when_failed", "to_document_failed", "invalid_document", "invalid_name"),
        "tried again, then dead",
        "the document of an entity could not be made, the error says why: correct the code or the data, then retry",
    ),
    Remedy(
        ("failure_store",),
        "tried again, then dead",
        "the index did not take the document, and the data stream's failure store has it, with the reason: correct "
        "that, then retry",
    ),
    Remedy(
        ("not_in_the_index",),
        "tried again, then dead",
        "a pipeline of the index dropped the document, or put it into another index or under another id: correct the "
        "pipeline, then retry; what an index is not to hold, the `when` of its entity says",
    ),
    Remedy(
        ("http_400", "http_413"),
        "dead",
        "refused as a request of its own, e.g. larger than the cluster takes: make the document smaller, then discard "
        "the row",
    ),
    Remedy(
        ("overtaken",),
        "dead",
        "a partial update that had not been applied when a later row of its document was: write the document anew, "
        "then discard the row",
    ),
    Remedy(
        ("unexplained_version",),
        "dead, or waits",
        "the index holds a version that was never drawn here: a restored backup, or something else writes there; "
        "run 'outbox-relay epoch advance', then retry",
    ),
    Remedy(
        ("poison",),
        "dead",
        "it makes the destination hang, or kills its relay: write the document anew and discard the row, or retry it "
        "when the cause is gone",
    ),
)

OF_THE_DESTINATION: Final = (
    Remedy(
        ("document_parsing_exception", "mapper_parsing_exception"),
        "dead",
        "a field has a value that its mapping does not take: correct the mapping and rebuild the index, then retry; or "
        "correct what the application writes, then discard the row",
    ),
    Remedy(
        ("strict_dynamic_mapping_exception",),
        "dead",
        "the mapping takes no field that it does not name: add the field to the mapping, then retry",
    ),
    Remedy(
        ("illegal_argument_exception",),
        "dead, or waits",
        "the index takes this field, id or number of fields no longer as they are, the error says why: correct the "
        "mapping, its limits or the document, then retry",
    ),
)
"""Names that Elasticsearch and OpenSearch have for faults of a document; their other names are told by their text."""

ANY_OTHER: Final = "the destination's own name for it, the error says why: correct the cause, then retry"

_TEXTS = {name: each.text for each in (*OUR_OWN, *OF_THE_DESTINATION) for name in each.error_types}


def remedy_of(error_type: str | None) -> str:
    """What happened to a row with this type of error, and what to do, in one sentence."""
    return _TEXTS.get(error_type or "", ANY_OTHER)
