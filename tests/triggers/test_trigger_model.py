"""Random histories of an application that also writes past every session, on a database whose triggers note changes."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule
from sqlalchemy import Engine, Executable, Table, create_engine, text
from sqlalchemy.orm import Session

from outbox.triggers import installer as triggers
from tests.support.postgres import Postgres
from tests.write.conftest import WithoutForeignKeys
from tests.write.test_capture_model import (
    Account,
    History,
    Owner,
    Phone,
    Tag,
    contact_tags,
    ids,
    maybe,
    names,
    run,
    tenants,
)

pytestmark = pytest.mark.slow

conflicts = st.sampled_from(["", "OR REPLACE", "OR IGNORE"])
tables = st.sampled_from(["accounts", "owners", "tags", "phones"])


ROWS = [
    "INSERT INTO owners VALUES (1, 'a'), (2, 'b')",
    "INSERT INTO accounts VALUES (1, 'a', 1), (2, 'b', NULL)",
    "INSERT INTO tags VALUES (1, 'a'), (2, 'b')",
    "INSERT INTO contacts VALUES (1, 'a', '', false, 't1', 1), (2, 'b', '', false, 't2', 2)",
    "INSERT INTO contact_tags VALUES (1, 1), (2, 1)",
    "INSERT INTO phones VALUES (1, 'a', 1), (2, 'b', NULL)",
    "INSERT INTO lines VALUES ('d|1', 1, 'a', 't1', 1), ('d|2', 2, 'b', 't2', NULL)",
]


class TriggeredHistory(History):
    """The same session and the same index; now and then there are no triggers, and capture has to do."""

    def prepare(self) -> None:
        self.statements = 0
        with self.engine.begin() as connection:
            triggers.install(connection, self.registry)
            for statement in ROWS:
                connection.execute(text(statement))

    def raw(self, sql: str | Executable, **parameters: Any) -> None:
        """A statement of which no session knows what it does; every second one is committed."""

        def work(session: Session) -> None:
            session.flush()
            if triggers.installed(session.connection()):
                session.connection().execute(text(sql) if isinstance(sql, str) else sql, parameters)
                session.expire_all()

        self.attempt(work)
        self.statements += 1
        if self.statements % 2:
            self.commit()

    @rule(at=ids, name=names, tenant=tenants, account=maybe, conflict=conflicts)
    def insert_contact_by_sql(self, at: int, name: str, tenant: str, account: int | None, conflict: str) -> None:
        self.raw(
            f"INSERT {conflict} INTO contacts (id, name, secret, archived, tenant_id, account_id) "
            "VALUES (:at, :name, '', false, :tenant, :account)",
            at=at, name=name, tenant=tenant, account=account,
        )  # fmt: skip

    @rule(at=ids, name=names, tenant=tenants)
    def upsert_contact_by_sql(self, at: int, name: str, tenant: str) -> None:
        self.raw(
            "INSERT INTO contacts (id, name, secret, archived, tenant_id) VALUES (:at, :name, '', false, :tenant) "
            "ON CONFLICT (id) DO UPDATE SET name = excluded.name, tenant_id = excluded.tenant_id",
            at=at, name=name, tenant=tenant,
        )  # fmt: skip

    @rule(at=ids, name=names, tenant=tenants, account=maybe, conflict=conflicts)
    def insert_line_by_sql(self, at: int, name: str, tenant: str, account: int | None, conflict: str) -> None:
        self.raw(
            f"INSERT {conflict} INTO lines VALUES (:deal, :at, :name, :tenant, :account)",
            deal=f"d|{at}", at=at, name=name, tenant=tenant, account=account,
        )  # fmt: skip

    @rule(table=tables, at=ids, name=names, conflict=conflicts)
    def insert_by_sql(self, table: str, at: int, name: str, conflict: str) -> None:
        self.raw(f"INSERT {conflict} INTO {table} (id, name) VALUES (:at, :name)", at=at, name=name)

    @rule(at=ids, name=names, contact=maybe, conflict=conflicts)
    def insert_phone_by_sql(self, at: int, name: str, contact: int | None, conflict: str) -> None:
        self.raw(f"INSERT {conflict} INTO phones VALUES (:at, :name, :contact)", at=at, name=name, contact=contact)

    @rule(at=ids, tag=ids, conflict=conflicts)
    def tag_by_sql(self, at: int, tag: int, conflict: str) -> None:
        self.raw(f"INSERT {conflict} INTO contact_tags VALUES (:at, :tag)", at=at, tag=tag)

    @rule(at=maybe, tag=maybe)
    def untag_by_sql(self, at: int | None, tag: int | None) -> None:
        self.raw("DELETE FROM contact_tags WHERE contact_id = :at OR tag_id = :tag", at=at, tag=tag)

    @rule(at=ids, tag=ids, conflict=conflicts)
    def move_tags_by_sql(self, at: int, tag: int, conflict: str) -> None:
        self.raw(f"UPDATE {conflict} contact_tags SET contact_id = :at WHERE tag_id = :tag", at=at, tag=tag)

    @rule(table=st.sampled_from(["contacts", "accounts", "owners", "tags", "phones"]), at=ids, to=ids, or_=conflicts)
    def change_key_by_sql(self, table: str, at: int, to: int, or_: str) -> None:
        self.raw(f"UPDATE {or_} {table} SET id = :to WHERE id = :at", at=at, to=to)

    @rule(table=st.sampled_from(["contacts", "lines"]), at=ids, tenant=tenants, account=maybe, name=names)
    def change_all_by_sql(self, table: str, at: int, tenant: str, account: int | None, name: str) -> None:
        self.raw(
            f"UPDATE {table} SET tenant_id = :tenant, account_id = :account, name = :name WHERE rowid >= :at",
            at=at, tenant=tenant, account=account, name=name,
        )  # fmt: skip

    @rule(at=ids, archived=st.booleans(), secret=names)
    def change_what_when_looks_at_by_sql(self, at: int, archived: bool, secret: str) -> None:
        self.raw(
            "UPDATE contacts SET archived = :archived, secret = :secret WHERE id <= :at",
            at=at, archived=archived, secret=secret,
        )  # fmt: skip

    @rule(table=tables, at=ids, name=names)
    def rename_by_sql(self, table: str, at: int, name: str) -> None:
        self.raw(f"UPDATE {table} SET name = :name WHERE id >= :at", at=at, name=name)

    @rule(at=ids, contact=maybe)
    def move_phone_by_sql(self, at: int, contact: int | None) -> None:
        self.raw("UPDATE phones SET contact_id = :contact WHERE id = :at", at=at, contact=contact)

    @rule(at=ids, owner=maybe)
    def change_owner_by_sql(self, at: int, owner: int | None) -> None:
        self.raw("UPDATE accounts SET owner_id = :owner WHERE id = :at", at=at, owner=owner)

    @rule(table=st.sampled_from(["contacts", "accounts", "owners", "tags", "phones", "lines"]), at=ids)
    def delete_by_sql(self, table: str, at: int) -> None:
        self.raw(f"DELETE FROM {table} WHERE rowid = :at", at=at)

    @rule(model=st.sampled_from([Account, Owner, Tag, Phone]), rows=st.lists(ids, min_size=1, max_size=3), name=names)
    def insert_by_core(self, model: type[Account], rows: list[int], name: str) -> None:
        table = model.__table__
        assert isinstance(table, Table)

        self.raw(table.insert().values([{"id": at, "name": name} for at in rows]))

    @rule()
    def delete_all_tags_by_core(self) -> None:
        self.raw(contact_tags.delete())

    # -- the triggers themselves

    @rule()
    def remove_triggers(self) -> None:
        """In the middle of a transaction, which may be rolled back."""
        self.attempt(lambda session: (session.flush(), triggers.remove(session.connection())))

    @rule()
    def install_triggers(self) -> None:
        self.attempt(lambda session: (session.flush(), triggers.install(session.connection(), self.registry)))

    @rule(name=names)
    def change_the_schema(self, name: str) -> None:
        self.attempt(lambda session: session.execute(text(f"CREATE TABLE IF NOT EXISTS other_{name} (id INTEGER)")))


class TriggeredHistoryOnPostgreSQL(TriggeredHistory):
    """The same with what PostgreSQL has instead."""

    server: ClassVar[Postgres]

    def open(self) -> Engine:
        engine = create_engine(self.opened.enter_context(self.server.database()))
        engine.dialect.ddl_compiler = WithoutForeignKeys
        return engine

    def raw(self, sql: str | Executable, **parameters: Any) -> None:
        if isinstance(sql, str):
            ignore = sql.startswith("INSERT OR IGNORE")
            sql = sql.replace("OR REPLACE ", "").replace("OR IGNORE ", "")
            sql = sql.replace("rowid", "number" if " lines " in sql else "id")
            sql += " ON CONFLICT DO NOTHING" if ignore else ""
        super().raw(sql, **parameters)

    @rule(table=st.sampled_from(["contacts", "accounts", "owners", "tags", "phones", "lines", "contact_tags"]))
    def truncate(self, table: str) -> None:
        self.raw(f"TRUNCATE {table}")

    @rule(ats=st.tuples(ids, ids), names_=st.tuples(names, names), account=maybe)
    def change_much_in_one_statement(self, ats: tuple[int, int], names_: tuple[str, str], account: int | None) -> None:
        self.raw(
            "WITH a AS (UPDATE accounts SET name = :first, owner_id = :account WHERE id = :one RETURNING id),"
            " t AS (DELETE FROM contact_tags WHERE tag_id = :other RETURNING tag_id)"
            " UPDATE contacts SET id = CASE id WHEN 1 THEN 2 WHEN 2 THEN 1 ELSE id END, name = :second,"
            " account_id = :other WHERE id IN (1, :other)",
            first=names_[0], second=names_[1], account=account, one=ats[0], other=ats[1],
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")  # of histories that no application should have
def test_index_equals_the_database_after_any_history_with_plain_sql() -> None:
    run(TriggeredHistory)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
def test_index_equals_the_database_after_any_history_on_postgresql(postgres: Postgres) -> None:
    TriggeredHistoryOnPostgreSQL.server = postgres
    run(TriggeredHistoryOnPostgreSQL)
