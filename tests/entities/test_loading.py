"""What the database says of documents: content, absence, and failures that stay with their row."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, event, insert, inspect, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column

from outbox import DatabaseUnavailable, EntityRegistry
from outbox.entities import loader
from outbox.entities.maker import LoadFailed
from outbox.relay.load import from_database
from tests.entities.world import (
    Account,
    Base,
    Colour,
    Contact,
    Doc,
    Engineer,
    Guest,
    Part,
    Person,
    Tag,
    Word,
    loaded,
    refresh,
    statements,
)


def test_only_listed_fields_and_the_tenant_are_sent(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name", "email"], tenant="tenant_id")
    session.add_all([Contact(id=1, name="Ada", tenant_id="t1", notes="secret"), Contact(id=2, name="Bob")])
    assert loaded(registry, session, entity, "1", "2") == [
        {"name": "Ada", "email": None, "tenantId": "t1"},
        {"name": "Bob", "email": None},
    ]


def test_columns_are_read_in_one_query_for_all_rows_and_nothing_else(
    registry: EntityRegistry, session: Session, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    contacts = registry.add(Contact, index="contacts", fields=["name"], when=lambda row: not row.archived)
    tags = registry.add(Tag, index="tags", fields=["label"])
    session.add_all([Contact(name="Ada", count=7) for _ in range(50)] + [Tag(label="x") for _ in range(50)])
    session.commit()
    events = refresh(contacts, *map(str, range(1, 51))) + [
        each._replace(id=each.id + 50) for each in refresh(tags, *map(str, range(1, 51)))
    ]
    made: list[Any] = []
    # No `load` listener, which objects would be built for.
    monkeypatch.setattr(inspect(Contact).class_manager, "new_instance", lambda *arguments: made.append(arguments))
    with database.connect() as connection, statements(database) as seen:
        found = from_database(connection, registry, events)
    assert len(found) == 100
    assert all(isinstance(document, bytes) for document in found.values())
    assert len(seen) == 2
    assert made == []


def test_rows_of_one_document_get_the_same_content(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"])
    session.add(Contact(id=1, name="Ada"))
    assert loaded(registry, session, entity, "1", "1", "1") == [{"name": "Ada"}] * 3


def test_row_that_is_not_there_or_excluded_has_no_document(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(
        Contact, index="contacts", fields=["name"], when=lambda row: not row.archived and row.count < 5
    )
    session.add_all(
        [Contact(id=1, name="Ada"), Contact(id=2, name="Bob", archived=True), Contact(id=3, name="C", count=9)]
    )
    assert loaded(registry, session, entity, "1", "2", "3", "4") == [{"name": "Ada"}, None, None, None]


@pytest.mark.parametrize("document_id", ["x", "", "01", " 1", "1 ", "1.0", "9" * 30, "1|2", "½", "1\x00"])
def test_id_that_no_row_has_has_no_document(registry: EntityRegistry, session: Session, document_id: str) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"])
    session.add(Contact(id=1, name="Ada"))
    assert loaded(registry, session, entity, document_id, "1") == [None, {"name": "Ada"}]


@pytest.mark.parametrize(
    ("tenancy", "old", "new"),
    [
        ("prefixed", ("contacts", "2:t1:1"), ("contacts", "2:t2:1")),
        ("index", ("t1_contacts", "1"), ("t2_contacts", "1")),
    ],
)
def test_row_that_changed_tenant_stands_only_under_the_new_one(
    registry: EntityRegistry, session: Session, tenancy: str, old: tuple[str, str], new: tuple[str, str]
) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy=tenancy)
    session.add(Contact(id=1, name="Ada", tenant_id="t1"))
    assert loaded(registry, session, entity, old, new) == [{"name": "Ada", "tenantId": "t1"}, None]
    session.execute(update(Contact).values(tenant_id="t2"))
    assert loaded(registry, session, entity, old, new) == [None, {"name": "Ada", "tenantId": "t2"}]
    session.execute(update(Contact).values(tenant_id="*" * 300))
    assert loaded(registry, session, entity, old, new) == [None, None]


def test_other_tenants_document_is_not_loaded_under_a_shared_suffix(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Word, index="words", fields=["text"], tenant="tenant_id", tenancy="prefixed")
    session.add(Word(text="t1:7", tenant_id="a"))
    assert loaded(registry, session, entity, "1:a:t1:7", "4:a:t1:7", "1:a:7") == [
        {"text": "t1:7", "tenantId": "a"},
        None,
        None,
    ]


def test_paths_lead_through_relationships(registry: EntityRegistry, session: Session, database: Engine) -> None:
    entity = registry.add(
        Contact,
        index="contacts",
        fields=["name", "notes", "account.name", "account.owner.name", "tags.label", "tags.id"],
    )
    owner = Engineer(id=1, name="Grace", language="COBOL")
    tags = [Tag(id=2, label="b"), Tag(id=1, label="a")]
    for at in range(1, 21):
        account = Account(id=at, name=f"Acme {at}", owner=owner)
        session.add(Contact(id=at, name="Ada", notes="n", account=account, tags=tags))
    session.add(Contact(id=21, name="Bob"))
    session.commit()
    with statements(database) as seen:
        documents = loaded(registry, session, entity, *map(str, range(1, 22)))
    assert documents[6] == {
        "name": "Ada",
        "notes": "n",
        "account": {"name": "Acme 7", "owner": {"name": "Grace"}},
        "tags": [{"id": 1, "label": "a"}, {"id": 2, "label": "b"}],
    }
    assert documents[20] == {"name": "Bob", "notes": None, "account": None, "tags": []}
    assert len(seen) == 2  # the objects with what is to-one, and the tags


def test_members_of_a_list_come_in_the_order_of_their_keys(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Contact, index="contacts", fields=["words.text"])
    session.add(Contact(id=1, name="Ada"))
    for word in "bca":
        session.add(Word(text=word, contact_id=1))
        session.flush()
    session.expire_all()
    assert loaded(registry, session, entity, "1") == [{"words": [{"text": "a"}, {"text": "b"}, {"text": "c"}]}]


def test_plain_property_of_the_model_can_be_a_field(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Contact, index="contacts", fields=["shout"])
    session.add(Contact(id=1, name="Ada"))
    assert loaded(registry, session, entity, "1") == [{"shout": "ADA"}]


def test_function_gets_the_object_with_what_the_load_options_bring(
    registry: EntityRegistry, session: Session, database: Engine
) -> None:
    entity = registry.add(
        Contact,
        index="contacts",
        to_document=lambda contact: {"title": f"{contact.name} of {contact.account.name}", "tenantId": "forged"},
        when=lambda contact: contact.account is not None,
        tenant="tenant_id",
        load_options=[joinedload(Contact.account)],
    )
    for at in range(1, 6):
        session.add(Contact(id=at, name="Ada", tenant_id="t1", account=Account(id=at, name="Acme")))
    session.add(Contact(id=6, name="Bob"))
    session.commit()
    with statements(database) as seen:
        documents = loaded(registry, session, entity, *"123456")
    assert documents == [{"title": "Ada of Acme", "tenantId": "t1"}] * 5 + [None]
    assert len(seen) == 1


def test_failure_to_make_a_document_fails_only_that_document(registry: EntityRegistry, session: Session) -> None:
    def make(contact: Contact) -> Any:
        if contact.name == "none":
            return None
        return {"half": 1 / contact.count, "name": contact.name if contact.name != "nan" else float("nan")}

    entity = registry.add(Contact, index="contacts", to_document=make)
    for at, (name, count) in enumerate([("Ada", 1), ("zero", 0), ("nan", 1), ("none", 1), ("Bob", 2)], 1):
        session.add(Contact(id=at, name=name, count=count))
    assert loaded(registry, session, entity, *"12345") == [
        {"half": 1.0, "name": "Ada"},
        LoadFailed("to_document_failed", "ZeroDivisionError: division by zero"),
        LoadFailed(
            "invalid_document",
            "document field 'name': is nan, which JSON cannot express; use None or leave the field out",
        ),
        LoadFailed("invalid_document", "a document must be a mapping, this is None; pass a dict"),
        {"half": 0.5, "name": "Bob"},
    ]


def test_when_that_raises_fails_only_that_document(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"], when=lambda row: row.email.endswith("example"))
    session.add_all([Contact(id=1, name="Ada", email="a@b.example"), Contact(id=2, name="Bob")])
    found = loaded(registry, session, entity, "1", "2")
    assert found[0] == {"name": "Ada"}
    assert found[1].error_type == "when_failed"


@pytest.mark.parametrize("fields", [["name"], ["name", "account.name"]])
def test_text_that_another_program_wrote_in_latin_1_fails_alone(
    registry: EntityRegistry, session: Session, fields: list[str]
) -> None:
    entity = registry.add(Contact, index="contacts", fields=fields)
    session.add_all([Contact(id=at, name="Ada") for at in range(1, 10)])
    session.flush()
    session.execute(text("UPDATE contacts SET name = CAST(x'4dfc6c6c6572' AS TEXT) WHERE id = 4"))
    found = loaded(registry, session, entity, *"123456789")
    assert found[3].error_type == "load_failed"
    assert found[3].error.startswith("OperationalError: Could not decode to UTF-8")
    assert [each["name"] for each in found if each is not found[3]] == ["Ada"] * 8
    rows = loader.page(session.connection(), entity, loader.Part(), None, 100)
    assert [row.document for row in rows if isinstance(row.document, LoadFailed)] == [found[3]]
    assert len(rows) == 9


@pytest.mark.parametrize("fields", [["name"], ["name", "account.name"]])
def test_row_that_cannot_be_read_leaves_no_gap_in_pages_that_are_full(
    registry: EntityRegistry, session: Session, fields: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "PAGE_BYTES", 1_000)
    entity = registry.add(Contact, index="contacts", fields=fields)
    session.add_all([Contact(id=at, name="Ada") for at in range(1, 801)])
    session.flush()
    session.execute(text("UPDATE contacts SET name = CAST(x'4dfc6c6c6572' AS TEXT) WHERE id = 100"))
    rows: list[loader.Row] = []
    while page := loader.page(session.connection(), entity, loader.Part(), rows[-1].key if rows else None, 800):
        assert len(page) <= loader.ROWS_AT_ONCE
        rows += page
    assert [row.identity for row in rows] == [(at,) for at in range(1, 801)]
    assert [row.identity for row in rows if isinstance(row.document, LoadFailed)] == [(100,)]


@pytest.mark.parametrize("tenancy", ["shared", "prefixed"])
@pytest.mark.parametrize("when", [None, lambda row: not row.archived])
def test_row_that_cannot_be_read_holds_its_place(
    registry: EntityRegistry, session: Session, when: Any, tenancy: str
) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy=tenancy, when=when)
    session.add_all([Contact(id=at, name="Ada", tenant_id="t1") for at in (1, 2)])
    session.flush()
    places = [entity.key_of((at,), "t1")[:2] for at in (1, 2, 3)]
    session.execute(text("UPDATE contacts SET name = CAST(x'4dfc6c6c6572' AS TEXT) WHERE id = 2"))
    assert list(loader.holders(session.connection(), entity, places)) == places[:2]


@pytest.mark.parametrize("fields", [["name", "created"], ["name", "created", "shout"]])
def test_row_that_cannot_be_read_fails_alone(engine: Engine, registry: EntityRegistry, fields: list[str]) -> None:
    class Other(DeclarativeBase):
        pass

    class Event_(Other):
        __tablename__ = "events"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        created: Mapped[datetime]

        @property
        def shout(self) -> str:
            return self.name.upper()

    Other.metadata.create_all(engine)
    entity = registry.add(Event_, index="events", fields=fields)
    with Session(engine) as session:
        for at in range(1, 10):
            created = "yesterday" if at == 4 else "2026-01-02 03:04:05.000000"
            session.execute(text("INSERT INTO events VALUES (:id, 'x', :at)"), {"id": at, "at": created})
        found = loaded(registry, session, entity, *"123456789")
    assert found[3].error_type == "load_failed"
    assert [each["created"] for each in found if each is not found[3]] == ["2026-01-02T03:04:05"] * 8


def test_row_of_an_entity_that_is_not_registered_says_what_to_register(
    registry: EntityRegistry, session: Session
) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"])
    events = [each._replace(entity="contcats") for each in refresh(entity, "1")]
    found = from_database(session.connection(), registry, events)[1]
    assert isinstance(found, LoadFailed)
    assert found.error_type == "unknown_entity"
    assert "did you mean 'contacts'?" in found.error
    assert "add it to the registry" in found.error


def test_table_that_is_missing_is_the_databases_failure_not_the_rows(registry: EntityRegistry, engine: Engine) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name"])
    with engine.connect() as connection, pytest.raises(DatabaseUnavailable, match="'contacts' cannot be loaded"):
        from_database(connection, registry, refresh(entity, "1"))


@pytest.mark.parametrize("asked", ["to_document", "when"])
def test_failure_of_the_database_while_a_function_asks_it_is_not_the_rows(
    registry: EntityRegistry, session: Session, database: Engine, asked: str
) -> None:
    """A lazy load that a timeout of statements ends, say."""

    def name_of_account(contact: Contact) -> Any:
        return {"name": contact.account.name}

    given: Any = {"to_document": name_of_account} if asked == "to_document" else {"fields": ["name"]}
    entity = registry.add(Contact, index="contacts", when=name_of_account if asked == "when" else None, **given)
    session.add(Contact(id=1, name="Ada", account=Account(id=1, name="Acme")))
    session.flush()

    def end(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        return ("SELECT ended_by_a_timeout", ()) if "FROM accounts" in statement else (statement, parameters)

    event.listen(database, "before_cursor_execute", end, retval=True)
    with pytest.raises(DatabaseUnavailable, match=r"entity 'contacts' cannot be loaded: .*ended_by_a_timeout"):
        loaded(registry, session, entity, "1")


def test_table_that_is_away_while_a_function_reads_it_is_not_the_rows_fault(
    registry: EntityRegistry, either: Engine
) -> None:
    entity = registry.add(Contact, index="contacts", to_document=lambda contact: {"name": contact.account.name})
    Base.metadata.create_all(either)
    with Session(either) as session:
        session.add(Contact(id=1, name="Ada", account=Account(id=1, name="Acme")))
        session.commit()
        session.execute(text("ALTER TABLE accounts RENAME TO away"))
        session.commit()
        with pytest.raises(DatabaseUnavailable, match=r"entity 'contacts' cannot be loaded: .*accounts"):
            loaded(registry, session, entity, "1")


def test_subclass_in_the_same_table_is_told_from_its_siblings(registry: EntityRegistry, session: Session) -> None:
    guests = registry.add(Guest, index="guests", fields=["name", "room"], name="guests")
    people = registry.add(Person, index="people", fields=["name", "kind"])
    session.add_all([Guest(id=1, name="Ada", room="7"), Person(id=2, name="Bob")])
    assert loaded(registry, session, guests, "1", "2") == [{"name": "Ada", "room": "7"}, None]
    assert loaded(registry, session, people, "1", "2") == [
        {"name": "Ada", "kind": "guest"},
        {"name": "Bob", "kind": "person"},
    ]


@pytest.mark.parametrize(
    "given", [{"fields": ["name", "language"]}, {"to_document": lambda e: {"name": e.name, "language": e.language}}]
)
def test_subclass_in_a_table_of_its_own_has_the_fields_of_both(
    registry: EntityRegistry, session: Session, given: dict[str, Any]
) -> None:
    entity = registry.add(Engineer, index="engineers", **given)
    session.add_all([Engineer(id=1, name="Grace", language="COBOL"), Person(id=2, name="Bob")])
    assert loaded(registry, session, entity, "1", "2") == [{"name": "Grace", "language": "COBOL"}, None]


@pytest.mark.parametrize("given", [{"fields": ["sku"]}, {"to_document": lambda part: {"sku": part.sku}}])
def test_row_with_a_composite_key_is_found_by_all_its_parts(
    registry: EntityRegistry, session: Session, given: dict[str, Any]
) -> None:
    entity = registry.add(Part, index="parts", **given)
    identities: list[Sequence[Any]] = [
        ("a|b", 1, UUID(int=1), Colour.RED, "SKU-1"),
        ("a", 1, UUID(int=1), Colour.RED, "SKU-2"),
        ("a|b", 1, UUID(int=1), Colour.BLUE, "SKU-1"),
    ]
    for identity in identities[:2]:
        session.add(Part(**dict(zip(entity.key, identity, strict=True))))
    ids = [entity.key_of(identity).document_id for identity in identities]
    assert ids[0] == "a\\|b|1|00000000-0000-0000-0000-000000000001|RED|1"
    assert loaded(registry, session, entity, *ids, "a|b|1", "\\x|1|a|GREEN|1") == [
        {"sku": "SKU-1"},
        {"sku": "SKU-2"},
        None,
        None,
        None,
    ]


def test_uuid_key_is_found(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Doc, index="docs", fields=["name", "id"], tenant="tenant_id")
    session.add(Doc(id=UUID(int=1), name="x", tenant_id=UUID(int=2)))
    assert loaded(registry, session, entity, str(UUID(int=1)), str(UUID(int=3)), "1" * 32) == [
        {"name": "x", "id": str(UUID(int=1)), "tenantId": str(UUID(int=2))},
        None,
        None,
    ]


@pytest.mark.parametrize("fields", [["name"], ["name", "account.name"]])
def test_large_documents_are_read_few_at_a_time(
    registry: EntityRegistry, session: Session, fields: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    found = loader._found

    def spy(connection: Any, entity: Any, wanted: Any) -> Any:
        read.append(len(wanted))
        return found(connection, entity, wanted)

    monkeypatch.setattr(loader, "_found", spy)
    monkeypatch.setattr(loader, "PAGE_BYTES", 50_000)
    entity = registry.add(Contact, index="contacts", fields=fields, when=lambda row: not row.archived)
    session.add_all([Contact(id=at, name="x" * 5_000) for at in range(1, 131)])
    session.flush()
    identities = [(at,) for at in range(1, 131)]
    portions = list(loader.load_rows(session.connection(), entity, identities, 1_000))
    assert [identity for portion in portions for identity in sorted(portion)] == identities
    assert (read[0], max(read[1:])) == (loader.ROWS_AT_ONCE, 9)
    read.clear()
    places = [entity.key_of(identity, None)[:2] for identity in identities]
    assert sorted(loader.holders(session.connection(), entity, places)) == sorted(places)
    assert (read[0], max(read[1:])) == (loader.ROWS_AT_ONCE, 9)


def test_ten_thousand_rows_are_one_batch(registry: EntityRegistry, session: Session) -> None:
    entity = registry.add(Part, index="parts", fields=["number"])
    ids = [entity.key_of(("m", at, UUID(int=at), Colour.RED, "SKU-1")).document_id for at in range(10_000)]
    session.execute(
        insert(Part),
        [
            {"maker": "m", "number": at, "serial": UUID(int=at), "colour": Colour.RED, "sku": "SKU-1"}
            for at in range(10_000)
        ],
    )
    assert [each["number"] for each in loaded(registry, session, entity, *ids)] == list(range(10_000))


def test_two_sessions_with_stale_memory_of_each_other_both_reach_the_index(
    registry: EntityRegistry, database: Engine
) -> None:
    entity = registry.add(Contact, index="contacts", fields=["name", "email"])
    with Session(database, expire_on_commit=False) as one, Session(database, expire_on_commit=False) as two:
        one.add(Contact(id=1, name="Ada", email="old"))
        one.commit()
        theirs = two.get_one(Contact, 1)
        two.commit()
        mine = one.get_one(Contact, 1)
        mine.name = "Grace"
        one.commit()
        theirs.email = "new"
        two.commit()
        assert (mine.email, theirs.name) == ("old", "Ada")
        assert loaded(registry, one, entity, "1") == [{"name": "Grace", "email": "new"}]


def test_loading_leaves_the_callers_transaction_alone(registry: EntityRegistry, database: Engine) -> None:
    fields = registry.add(Contact, index="contacts", fields=["name"])
    objects = registry.add(Contact, index="objects", name="objects", to_document=lambda contact: {"name": contact.name})
    with database.connect() as connection:
        connection.execute(insert(Contact), {"id": 1, "name": "Ada", "archived": False, "count": 0})
        for entity in (fields, objects):
            assert from_database(connection, registry, refresh(entity, "1"))[1] == b'{"name":"Ada"}'
        assert connection.in_transaction()
        connection.rollback()
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for entity in (fields, objects):
            assert from_database(connection, registry, refresh(entity, "1"))[1] is None
