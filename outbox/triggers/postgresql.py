"""The triggers of a registry in PL/pgSQL: their text, and what a database has of them.

For each source of an entity's documents there is a trigger for each way to change its table, with a function of its
own. It inserts a row for every document that was made of the changed rows, or is now: once for a statement, whose rows
it finds in transition tables. Triggers of partitioned tables look at each row instead: those of a statement would not
see what is written to a partition.

A function has the rights of whoever installs it, so that a program needs none on the outbox tables, nor on those that
lead to documents; and it looks for tables where the installation found them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Select, Table, literal_column, select
from sqlalchemy import text as sql_text
from sqlalchemy.dialects.postgresql.base import PGCompiler, PGDialect

from outbox.entities.entity import Entity
from outbox.entities.registry import EntityRegistry
from outbox.triggers.sources import NEW, OLD, Source, quoted
from outbox.triggers.trigger import (
    PREFIX,
    VIEW,
    Listed,
    Literals,
    Refused,
    Statement,
    Stored,
    Trigger,
    changed_columns,
    inserted,
    noted,
    sources_by_table,
    statements_of,
    text_literal,
    unused,
    view_of,
)

MARK: Final = "outbox-relay "
"""Begins the comment by which a trigger is known as ours; its fingerprint follows. Its function has it, too."""

MOST_BYTES: Final = 63
"""Of a name. PostgreSQL cuts off what is longer."""


class _Way(NamedTuple):
    """A way to change a table. `changes`: where a trigger of a statement finds the rows."""

    when: str
    changes: str
    tables: str = ""  # the transition tables; empty: there are none


_WAYS: Final = {
    "insert": _Way("AFTER INSERT", "outbox_relay_new AS new", "NEW TABLE AS outbox_relay_new"),
    # Neither keys nor order pair the rows before and after: what has another key is a row on one side alone. A full
    # join never compares each row with each, even when PostgreSQL has planned it for a statement that changed one.
    "update": _Way(
        "AFTER UPDATE",
        "outbox_relay_old AS old FULL JOIN outbox_relay_new AS new ON {pairs}",
        "OLD TABLE AS outbox_relay_old NEW TABLE AS outbox_relay_new",
    ),
    "delete": _Way("AFTER DELETE", "outbox_relay_old AS old", "OLD TABLE AS outbox_relay_old"),
    "truncate": _Way("BEFORE TRUNCATE", "{table} AS old"),  # after it there are no rows to be seen
    "before_update": _Way("BEFORE UPDATE", ""),
    "before_delete": _Way("BEFORE DELETE", ""),
}


_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class _Literals(Literals, PGCompiler):
    """See `Literals`."""

    def special(self, stored: Any) -> str | None:
        if isinstance(stored, bytes):
            return f"'\\x{stored.hex()}'::bytea"
        if isinstance(stored, str) and _CONTROL.search(stored):
            escaped = _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", stored.replace("\\", "\\\\"))
            return f"E{text_literal(escaped)}"
        return None


_DIALECT: Final = PGDialect(paramstyle="named")  # type: ignore[no-untyped-call]  # others double each percent sign
_DIALECT.statement_compiler = _Literals
_DIALECT._backslash_escapes = False  # as the server has it since version 9.1

_name: Final = _DIALECT.identifier_preparer.quote


def compiled(statement: Any) -> str:
    """The text of a statement, its values in it."""
    return str(statement.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True}))


# -- what a registry asks for -----------------------------------------------------------------------------------


class _Wanted(NamedTuple):
    """The triggers for changes of a table, as far as they are about one entity."""

    entity: Entity
    table: Table
    sources: list[Source]


class _Known(NamedTuple):
    """What was made of a registry; the triggers by the tables whose rows they look at one by one."""

    generation: int
    wanted: list[_Wanted]
    triggers: dict[frozenset[str], list[Trigger]]


_known: WeakKeyDictionary[EntityRegistry, _Known] = WeakKeyDictionary()


def _known_of(registry: EntityRegistry) -> _Known:
    known = _known.get(registry)
    if known is None or known.generation != registry.generation:
        wanted = [
            _Wanted(entity, table, sources)
            for entity in registry
            for table, sources in sources_by_table(entity, compiled)
        ]
        known = _known[registry] = _Known(registry.generation, wanted, {})
    return known


def triggers_of(registry: EntityRegistry, connection: Connection | None, /) -> list[Trigger]:
    """See `Language.triggers_of`."""
    known = _known_of(registry)
    tables = {each.table.fullname: each.table for each in known.wanted}
    if connection is None:
        found = {
            name: _Found(name, bool(table.dialect_options["postgresql"]["partition_by"]))
            for name, table in tables.items()
        }
    else:
        found = _look(connection, tables)
    by_row = frozenset(name for name, table in found.items() if table.is_partitioned)
    if by_row not in known.triggers:
        known.triggers[by_row] = list(_triggers(known.wanted, by_row))
    return [each._replace(key=_key(each.name, found[each.table].name)) for each in known.triggers[by_row]]


def _triggers(wanted: Iterable[_Wanted], by_row: Collection[str]) -> Iterator[Trigger]:
    names: list[str] = []
    for entity, table, sources in wanted:
        for operation in _WAYS:
            if statements := [each for source in sources for each in _statements(source, operation)]:
                names.append(unused(f"{PREFIX}{table.name}_{entity.name}_{operation}", names, MOST_BYTES))
                for_row = operation.startswith("before") or (operation != "truncate" and table.fullname in by_row)
                write = _for_each_row if for_row else _for_each_statement
                yield _trigger(names[-1], table, entity, *write(table, operation, statements))


def _statements(source: Source, operation: str) -> Iterator[Statement | Refused]:
    """What a trigger for changes of a table has to do."""
    if operation == "truncate":
        yield Statement(OLD, source.documents(OLD), None, source.entity)
    else:
        yield from statements_of(source, operation)


def _trigger(name: str, table: Table, entity: Entity, head: str, body: str) -> Trigger:
    on = _DIALECT.identifier_preparer.format_table(table)
    function = f"{f'{_name(table.schema)}.' if table.schema else ''}{_name(name)}()"
    head = f"CREATE TRIGGER {_name(name)} {head} EXECUTE FUNCTION {function}"
    comment = f"{MARK}{hashlib.sha256(f'{head}{_function(function, body)}'.encode()).hexdigest()[:12]}"
    body = f"\n#variable_conflict use_column\n/* {comment} */\n{body}\n"
    return Trigger(
        name,
        table.fullname,
        entity.name,
        (
            _function(function, body),
            f"DO {_dollars(_pinned(function))}",
            f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC",  # it has our rights, and is for our triggers only
            head,
            f"COMMENT ON TRIGGER {_name(name)} ON {on} IS {text_literal(comment)}",
        ),
        (f"DROP TRIGGER IF EXISTS {_name(name)} ON {on}", f"DROP FUNCTION IF EXISTS {function}"),
        f"{comment}\n{body}",
        name,
    )


def _function(name: str, body: str) -> str:
    return f"CREATE OR REPLACE FUNCTION {name} RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS {_dollars(body)}"


def _pinned(function: str) -> str:
    # The schema of temporary tables last: in front, where it is otherwise, anyone could have one called like ours.
    altered = text_literal(f"ALTER FUNCTION {function} SET search_path = ")
    return f"BEGIN EXECUTE {altered} || current_setting('search_path') || ', pg_temp'; END"


def _dollars(body: str) -> str:
    quote = "$outbox$"
    while quote in body:
        quote = f"{quote[:-1]}_$"
    return f"{quote}{body}{quote}"


def _for_each_row(table: Table, operation: str, statements: Sequence[Statement | Refused]) -> tuple[str, str]:
    """The head of a trigger and the body of its function, where these look at the rows one by one."""
    when = _WAYS[operation].when
    columns = changed_columns(statements) if when.endswith("UPDATE") else None
    lines = []
    for each in statements:
        rows = _refused_rows(each) if isinstance(each, Refused) else each.rows
        if each.columns is not None and each.columns != columns:
            rows = rows.where(literal_column(f"({_changed(each.columns)})"))
        if isinstance(each, Refused):
            lines += _refusal(compiled(rows), each)
        else:
            lines.append(f"{compiled(inserted(rows, each.entity))};")
    condition = "" if columns is None else f" WHEN ({_changed(columns)})"
    returned = "NULL" if when.startswith("AFTER") else OLD if when.endswith("DELETE") else NEW
    on = _DIALECT.identifier_preparer.format_table(table)
    return f"{when} ON {on} FOR EACH ROW{condition}", _block(lines, returned)


def _for_each_statement(table: Table, operation: str, statements: Sequence[Statement | Refused]) -> tuple[str, str]:
    """The same for all rows of a statement together."""
    way, on = _WAYS[operation], _DIALECT.identifier_preparer.format_table(table)
    changes = way.changes.format(table=on, pairs=_pairs(table, changed_columns(statements)))
    lines = []
    for each in statements:
        row = NEW if isinstance(each, Refused) else each.row
        # `IS NOT NULL` would be true of no row with an empty column; a bare `new` may be the name of one.
        there = [f"NOT ({row}.* IS NULL)", _changed(each.columns)] if each.columns is not None else []
        where = f"\nWHERE {' AND '.join(there)}" if there else ""
        if isinstance(each, Refused):
            refused = f"CROSS JOIN LATERAL (\n{compiled(_refused_rows(each))}\n) AS refused"
            lines += _refusal(f"SELECT FROM {changes} {refused}{where}", each)
            continue
        names, rows = noted(each.rows, each.entity)
        distinct = ""
        if rows.get_final_froms():
            # Row by row, through the indexes of the tables that lead to documents: PostgreSQL keeps the plan that it
            # made for the first statement of a connection, however many rows the next ones change.
            rows, distinct = rows.offset(literal_column("0")), "DISTINCT "
        lines.append(
            f"INSERT INTO outbox_events ({', '.join(names)})\nSELECT {distinct}document.* FROM {changes} "
            f"CROSS JOIN LATERAL (\n{compiled(rows)}\n) AS document{where};"
        )
    tables = f" REFERENCING {way.tables}" if way.tables else ""
    return f"{way.when} ON {on}{tables} FOR EACH STATEMENT", _block(lines, "NULL")


def _pairs(table: Table, columns: Sequence[str]) -> str:
    """The condition by which a row before a statement and one after it are the same."""
    if key := [quoted(column.name) for column in table.primary_key]:
        return " AND ".join(f"{NEW}.{name} = {OLD}.{name}" for name in key)
    return f"{_image(NEW, columns)} *= {_image(OLD, columns)}"


def _changed(columns: Sequence[str]) -> str:
    # By the bytes: some types have no equality (json), and by the others 'ada' may equal 'Ada', which are different
    # in a document.
    return f"{_image(OLD, columns)} *<> {_image(NEW, columns)}"


def _image(row: str, columns: Sequence[str]) -> str:
    return f"ROW({', '.join(f'{row}.{quoted(name)}' for name in columns)})::record"


def _refused_rows(statement: Refused) -> Select[Any]:
    return select(literal_column("1")).where(*statement.refusal.conditions)


def _refusal(rows: str, statement: Refused) -> list[str]:
    return [
        f"IF EXISTS (\n{rows}\n) THEN",
        f"RAISE EXCEPTION USING ERRCODE = 'check_violation', MESSAGE = {text_literal(statement.refusal.text)};",
        "END IF;",
    ]


def _block(lines: Iterable[str], returned: str) -> str:
    return "\n".join(["BEGIN", *lines, f"RETURN {returned};", "END"])


# -- what a database has ----------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A table as the database calls it, None: it has none; and whether rows of it are in partitions, or it is one."""

    name: str | None
    is_partitioned: bool


_TABLES: Final = sql_text("""
    SELECT given.name, c.oid::regclass::text, coalesce(c.relkind = 'p' OR c.relispartition, false)
    FROM unnest(CAST(:names AS text[])) AS given (name) LEFT JOIN pg_class AS c ON c.oid = to_regclass(given.name)
""")

# Those of partitions are copies, and go with that of the whole table.
_TRIGGERS: Final = sql_text("""
    SELECT t.tgname, t.tgrelid::regclass::text, coalesce(obj_description(t.oid, 'pg_trigger'), ''), p.prosrc,
        p.oid::regprocedure::text, t.tgenabled NOT IN ('O', 'A')
    FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
    JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE t.tgname LIKE 'outbox\\_%' AND NOT t.tgisinternal AND t.tgparentid = 0
    AND (n.nspname = ANY (current_schemas(false)) OR n.nspname = ANY (CAST(:schemas AS text[])))
    ORDER BY t.tgname, 2
""")

_FUNCTIONS: Final = sql_text("""
    SELECT p.oid::regprocedure::text FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE p.proname LIKE 'outbox\\_%' AND strpos(p.prosrc, :mark) > 0
    AND (n.nspname = ANY (current_schemas(false)) OR n.nspname = ANY (CAST(:schemas AS text[])))
    AND NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgfoid = p.oid)
""")


def _look(connection: Connection, tables: Mapping[str, Table]) -> dict[str, _Found]:
    by_name = {_DIALECT.identifier_preparer.format_table(table): name for name, table in tables.items()}
    found = connection.execute(_TABLES, {"names": list(by_name)})
    return {by_name[given]: _Found(name, partitioned) for given, name, partitioned in found}


def _key(name: str, table: str | None) -> str:
    return f"{name} on {table}"


def stored(connection: Connection, registry: EntityRegistry | None, /) -> Mapping[str, Stored]:
    """See `Language.stored`."""
    schemas = _schemas(connection)
    if registry is not None:
        schemas |= {str(each.table.schema) for each in _known_of(registry).wanted if each.table.schema}
    found = {}
    for name, table, comment, body, function, disabled in connection.execute(_TRIGGERS, {"schemas": list(schemas)}):
        ours, drop = MARK in body, [f"DROP TRIGGER {_name(name)} ON {table}"]
        if ours:
            drop.append(f"DROP FUNCTION IF EXISTS {function}")
        text = "" if disabled else f"{comment}\n{body}"
        found[_key(name, table)] = Stored(name, table, text, ours or comment.startswith(MARK), tuple(drop), disabled)
    return found


def _schemas(connection: Connection) -> set[str]:
    """Those beside the ones of `search_path` in which there were triggers of ours."""
    return {table.rpartition(".")[0] for _, table, _ in listed(connection) or () if "." in table}


def listed(connection: Connection, /) -> list[Listed] | None:
    """See `Language.listed`."""
    if connection.exec_driver_sql(f"SELECT to_regclass('{VIEW}')").scalar_one() is None:
        return None
    found = connection.exec_driver_sql(f"SELECT name, table_name, entity FROM {VIEW}")
    return [(name, table, entity) for name, table, entity in found]


def view(made: Sequence[Trigger], /) -> list[str]:
    """See `Language.view`. Captured sessions read it as the application's role, and `check` as the relay's.

    What it says stands in `pg_trigger` as well, which everybody may read.
    """
    return [view_of(made), f"GRANT SELECT ON {VIEW} TO PUBLIC"]


def leftovers(connection: Connection, /) -> list[str]:
    """See `Language.leftovers`: the functions of triggers whose tables are gone."""
    found = connection.execute(_FUNCTIONS, {"mark": f"/* {MARK}", "schemas": list(_schemas(connection))})
    return [f"DROP FUNCTION IF EXISTS {name}" for name in found.scalars()]


def unseen_keys(_connection: Connection, _registry: EntityRegistry, /) -> list[str]:
    """See `Language.unseen_keys`: nothing replaces rows unseen."""
    return []
