"""Whether the indexes hold what the database holds: both are read by themselves, past everything that outbox does.

The database says in SQL what each document should be; the index side is read document by document, from the file of
the embedded destination or through Elasticsearch's own client.
"""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import demo_database

from outbox.settings import Settings

Documents = dict[str, dict[str, Any]]
"""By id."""

SHOULD_BE = {
    "demo-accounts": """
        SELECT id, json_object('name', name, 'industry', industry, 'city', city, 'country', country,
                               'employees', employees, 'tenantId', tenant_id)
        FROM accounts""",
    "demo-contacts": """
        SELECT contacts.id, json_object('name', contacts.name, 'email', email,
                                        'job_title', job_title, 'notes', notes, 'tenantId', contacts.tenant_id,
                                        'account', json_object('name', accounts.name))
        FROM contacts JOIN accounts ON accounts.id = account_id""",
    "demo-deals": """
        SELECT deals.id, json_object('title', title, 'stage', stage, 'amount', amount, 'closes_on', closes_on,
                                     'tenantId', deals.tenant_id,
                                     'account', json_object('name', accounts.name, 'city', city))
        FROM deals JOIN accounts ON accounts.id = account_id""",
}

INDEXES = tuple(SHOULD_BE)


@dataclass(frozen=True)
class Comparison:
    """One index, one tenant."""

    index: str
    tenant: str
    rows: int
    documents: int
    different: list[str]  # a line for each document that is missing, left over or not the same


def compare(settings: Settings) -> list[Comparison]:
    """Each index against its table, tenant by tenant, every field of every document."""
    found = []
    in_file = demo_database.address().startswith("sqlite")
    for index, query in SHOULD_BE.items():
        table = by_tenant(_documents(query if in_file else query.replace("json_object", "json_build_object")))
        held = by_tenant(
            in_embedded(settings, index) if settings.destination == "embedded" else in_node(settings, index)
        )
        found += [
            _compared(index, tenant, table[tenant], held[tenant]) for tenant in sorted(table.keys() | held.keys())
        ]
    return found


def in_embedded(settings: Settings, index: str) -> Documents:
    """All documents of an index, from the tables of the embedded destination's file."""
    query = "SELECT document_id, source FROM documents JOIN aliases USING (index_name) WHERE name = ? AND NOT deleted"
    return _documents(query, index, of=f"sqlite:///{settings.embedded_path}")


def in_node(settings: Settings, index: str) -> Documents:
    """All documents of an index, from Elasticsearch."""
    from elasticsearch.helpers import scan

    with closing(client_of(settings)) as client:
        client.indices.refresh(index=index)
        return {hit["_id"]: hit["_source"] for hit in scan(client, index=index)}


def client_of(settings: Settings) -> Any:
    """Elasticsearch's own client."""
    from elastic_transport.client_utils import DEFAULT
    from elasticsearch import Elasticsearch

    key, user, password = (
        settings.elasticsearch_api_key,
        settings.elasticsearch_username,
        settings.elasticsearch_password,
    )
    return Elasticsearch(
        list(settings.elasticsearch_url),
        api_key=key.get_secret_value() if key else None,
        basic_auth=(user, password.get_secret_value() if password else "") if user else None,
        ca_certs=str(settings.elasticsearch_ca_certs) if settings.elasticsearch_ca_certs else DEFAULT,
    )


def by_tenant(documents: Documents) -> defaultdict[str, Documents]:
    """The same, apart."""
    found: defaultdict[str, Documents] = defaultdict(dict)
    for document_id, document in documents.items():
        found[str(document.get("tenantId"))][document_id] = document
    return found


def _documents(query: str, *parameters: str, of: str | None = None) -> Documents:
    rows = demo_database.query(query, *parameters, of=of)
    return {str(id_): json.loads(found) if isinstance(found, str) else found for id_, found in rows}


def _compared(index: str, tenant: str, table: Documents, held: Documents) -> Comparison:
    different = []
    for document_id in sorted(table.keys() | held.keys()):
        row, document = table.get(document_id), held.get(document_id)
        if row is None:
            different.append(f"{index}/{document_id} is in the index, and in the database no longer")
        elif document is None:
            different.append(f"{index}/{document_id} is missing in the index")
        elif row != document:
            fields = [name for name in row.keys() | document.keys() if row.get(name) != document.get(name)]
            first = min(fields)
            different.append(
                f"{index}/{document_id}: {first} is {row.get(first)!r} in the database and "
                f"{document.get(first)!r} in the index"
            )
    return Comparison(index, tenant, len(table), len(held), different)
