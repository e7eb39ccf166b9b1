"""The registry: which models are documents, of which fields, under which index and `_id`; and loading them.

registry = EntityRegistry()
registry.add(Contact, index="contacts", fields=["first_name", "email", "account.name"], tenant="tenant_id")
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, false, func, inspect, select, tuple_
from sqlalchemy.exc import DBAPIError, NoInspectionAvailable, SQLAlchemyError
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    ColumnProperty,
    Mapper,
    RelationshipProperty,
    Session,
    SynonymProperty,
    joinedload,
    selectinload,
    undefer,
)
from sqlalchemy.orm.interfaces import ORMOption

from outbox import documents
from outbox.entities import keys
from outbox.entities.keys import DocumentKey, Tenancy, TextForm
from outbox.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    InvalidDocument,
    InvalidName,
    is_no_text,
    shortened,
)
from outbox.settings import WriteSettings, write_settings
from outbox.store.models import Event

if TYPE_CHECKING:
    from outbox.write.capture import Capture

TENANT_FIELD = "tenantId"
"""The field of a document that names its tenant."""

MOST_PARAMETERS = 30_000
"""SQLite takes 32,766 in one statement."""

PAGE_BYTES = 5_000_000
"""A page of documents ends when it is as large as that, however few they are."""

OBJECTS_AT_ONCE = 250
ROWS_AT_ONCE = 100  # one by one costs more than to make a small document; all together they may be large

UNKNOWN_ENTITY = "unknown_entity"
"""Error type of a row whose entity is not registered."""

S = TypeVar("S")


class LoadFailed(NamedTuple):
    """Why a document cannot be made of its row. `error_type` is a word for programs, `error` a line for people."""

    error_type: str
    error: str


Loaded = bytes | LoadFailed | None
"""The document as JSON; or None, if there shall be none; or why it cannot be made."""


@dataclass(frozen=True)
class Dependency:
    """How an entity's documents depend on rows of another model, see `EntityRegistry.add`."""

    via: str | Sequence[str]
    watch: Sequence[str] | None = None


@dataclass(frozen=True, eq=False)
class Entity:
    """One model that has documents. Made by `EntityRegistry.add`, which says what each part means."""

    name: str
    mapper: Mapper[Any]
    index: str
    tenancy: Tenancy
    fields: tuple[str, ...] | None
    to_document: Callable[[Any], Mapping[str, Any]] | None
    when: Callable[[Any], bool] | None
    tenant: str | None
    changed_at: str | None
    watch: frozenset[str] | None
    depends_on: Mapping[Mapper[Any], Dependency]
    mappings: Mapping[str, Any] | None
    settings: Mapping[str, Any] | None
    load_options: tuple[ORMOption, ...] | None
    key: tuple[str, ...]  # attributes of the primary key
    key_forms: tuple[TextForm, ...]
    tenant_form: TextForm | None
    tree: Branch

    @property
    def model(self) -> type[Any]:
        return self.mapper.class_

    def column(self, attribute: str) -> Any:
        """The mapped attribute, as statements need it."""
        return getattr(self.mapper.class_, attribute)

    @property
    def key_columns(self) -> list[Any]:
        """The columns of the primary key, as statements need them."""
        return [self.column(name) for name in self.key]

    def key_of(self, identity: Sequence[Any], tenant: Any = None) -> DocumentKey:
        """Where the document of a row stands, by primary key and tenant. Raises `InvalidName` for illegal ones."""
        return self.place_of(identity, self.tenant_text(tenant))

    def tenant_text(self, tenant: Any) -> str | None:
        """A tenant as text."""
        return None if self.tenant_form is None or tenant is None else self.tenant_form.to_text(tenant)

    def place_of(self, identity: Sequence[Any], tenant_id: str | None) -> DocumentKey:
        """The same, of a tenant that is text already."""
        if len(identity) == len(self.key_forms) == 1:
            form = self.key_forms[0]
            return keys.place(self.index, self.tenancy, tenant_id, form.to_text(identity[0]), short=form.short)
        return keys.place(self.index, self.tenancy, tenant_id, keys.join(self.key_text(identity)))

    def key_text(self, identity: Sequence[Any]) -> list[str]:
        """A primary key as text, each part by itself."""
        return [form.to_text(value) for form, value in zip(self.key_forms, identity, strict=True)]

    def key_of_object(self, instance: Any) -> DocumentKey:
        """The same, of an object with a primary key."""
        tenant = None if self.tenant is None else getattr(instance, self.tenant)
        identity = [getattr(instance, name) for name in self.key]
        if None in identity:
            raise InvalidName(f"{shortened(instance)} has no primary key yet; add it to the session first")
        return self.key_of(identity, tenant)

    def has(self, mapper: object) -> bool:
        """Whether objects of a mapped class are of this entity."""
        return isinstance(mapper, Mapper) and mapper.isa(self.mapper)

    def identity_of(self, document_id: str) -> tuple[Any, ...] | None:
        """The primary key of the row that an `_id` belongs to; None if it is no `_id` of this entity."""
        text = keys.id_text_of(self.tenancy, document_id)
        parts = None if text is None else keys.split(text, len(self.key))
        if parts is None:
            return None
        try:
            return tuple([form.from_text(part) for form, part in zip(self.key_forms, parts, strict=True)])
        except ValueError:
            return None

    def index_names(self, name: str) -> bool:
        """Whether documents of this entity stand in the index `name`."""
        if self.tenancy is Tenancy.INDEX:
            return keys.is_tenant_index(name, self.index)
        return name == self.index

    # The same places in SQL, of the mapped columns; `tests/test_entities.py` holds both against each other.

    def index_sql(self) -> ColumnElement[str]:
        """The index name, made by the database. NULL for a tenant that must not become part of one."""
        return keys.index_sql(self.index, self.tenancy, self.tenant_sql())

    def document_id_sql(self) -> ColumnElement[str]:
        """The `_id`, made by the database."""
        parts = [form.sql(self.column(name)) for form, name in zip(self.key_forms, self.key, strict=True)]
        return keys.document_id_sql(self.tenancy, self.tenant_sql(), keys.join_sql(parts))

    def refused_sql(self) -> ColumnElement[bool]:
        """Whether a row can have no place, so that it must not be written, asked of the database."""
        return keys.refused_sql(
            self.tenancy,
            self.index_sql(),
            self.document_id_sql(),
            self.tenant_sql(),
            short_key=all(form.short for form in self.key_forms),
            short_tenant=self.tenant_form is None or self.tenant_form.short,
        )

    def tenant_sql(self) -> ColumnElement[str] | None:
        """The tenant as text, made by the database."""
        if self.tenant is None or self.tenant_form is None:
            return None
        return self.tenant_form.sql(self.column(self.tenant))


@dataclass(slots=True)
class Branch:
    """Fields of one model: its own attributes, and relationships with fields of theirs."""

    leaves: list[str] = field(default_factory=list)
    branches: dict[str, Branch] = field(default_factory=dict)
    many: bool = False
    plain: bool = True  # nothing but columns, which need no objects
    sorted_by_database: bool = False

    def document(self, row: Any) -> dict[str, Any]:
        made = {name: getattr(row, name) for name in self.leaves}
        for name, branch in self.branches.items():
            related = getattr(row, name)
            if not branch.many:
                made[name] = None if related is None else branch.document(related)
                continue
            members = list(related.values() if isinstance(related, Mapping) else related)
            if not branch.sorted_by_database:
                members.sort(key=lambda member: inspect(member).identity)
            made[name] = [branch.document(member) for member in members]
        return made


class EntityRegistry:
    """The entities of an application. Fill it once at start; the relay loads documents through the same one."""

    def __init__(self, *, settings: WriteSettings | None = None) -> None:
        self._entities: dict[str, Entity] = {}
        self._settings = settings
        self.capturing: Capture | None = None
        self.generation = 0  # grows with each entity: for what others derive from the registry

    def __iter__(self) -> Iterator[Entity]:
        return iter(self._entities.values())

    def __len__(self) -> int:
        return len(self._entities)

    def __getitem__(self, name: str) -> Entity:
        try:
            return self._entities[name]
        except KeyError:
            raise ConfigurationError(
                f"no entity {shortened(name)} is registered{listed(self._entities)}{nearest(name, self._entities)}"
            ) from None

    def add(
        self,
        model: type[Any],
        *,
        index: str,
        name: str | None = None,
        fields: Sequence[str] | None = None,
        to_document: Callable[[Any], Mapping[str, Any]] | None = None,
        when: Callable[[Any], bool] | None = None,
        watch: Sequence[str] | None = None,
        tenant: str | None = None,
        tenancy: str = Tenancy.SHARED,
        depends_on: Mapping[type[Any], str | Sequence[str] | Dependency] | None = None,
        changed_at: str | None = None,
        mappings: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        load_options: Sequence[ORMOption] | None = None,
    ) -> Entity:
        """Register a mapped class. Its models must all be imported. Raises `ConfigurationError`.

        * `fields`: what a document holds: attributes of the model, or paths through its relationships
          (`account.name`; through a to-many one the field is a list of objects). Or `to_document`: a function that
          makes the document of an object.
        * `when`: rows for which it is false have no document. With fields that are columns it gets all columns of
          the row as attributes; with `to_document`, paths or `load_options` the object itself.
        * `watch`: what else has to change for the document to be made anew, beside `fields`: say here what
          `when` and `to_document` look at. Without it, if there is either of them, every column counts.
        * `tenant`: the attribute that names the tenant; documents hold it as `tenantId`. `tenancy`: `shared` (the
          primary key is unique over all tenants), `prefixed` (the `_id` begins with the tenant) or `index` (each
          tenant has its own, `{tenant}_{index}`).
        * `depends_on`: models whose changes make this entity's documents anew, with the column that points to them,
          or the relationships that lead there: `{Account: "account_id", Company: "account.company"}`; each row on the
          way counts. Only changes of some of their columns count with `Dependency("account_id", watch=["name"])`. What
          paths in `fields` lead to is known already.
        * `changed_at`: the attribute that says when a row changed last.
        * `mappings`, `settings`: of the index, when it is created.
        * `load_options`: loader options for the query that loads objects, e.g. `[joinedload(Deal.account)]`.
        """
        mapper = _mapper(model)
        # A table's name is a subclass of str, which the driver would look for an adapter for, at each row.
        name = str(name or mapper.local_table.name)  # type: ignore[attr-defined]
        if name in self._entities:
            raise ConfigurationError(
                f"an entity {name!r} is registered already, of {self._entities[name].model.__name__}; pass name="
            )
        documents.check_index_name(index)
        where = f"entity {name!r}"
        if (fields is None) == (to_document is None):
            raise ConfigurationError(f"{where}: give either fields or to_document, and not both")
        if isinstance(fields, str) or (fields is not None and not fields):
            raise ConfigurationError(f"{where}: fields must be a list of names, with at least one")
        if isinstance(watch, str):
            raise ConfigurationError(f"{where}: watch must be a list of names; use [{watch!r}]")
        if depends_on is not None and not isinstance(depends_on, Mapping):
            raise ConfigurationError(
                f"{where}: depends_on must say what leads to each model, e.g. {{Account: 'account_id'}}"
            )
        try:
            kind = Tenancy(tenancy)
        except ValueError:
            raise ConfigurationError(
                f"{where}: tenancy {shortened(tenancy)} is unknown; use {', '.join(map(repr, map(str, Tenancy)))}"
            ) from None
        if kind is not Tenancy.SHARED and tenant is None:
            raise ConfigurationError(f"{where}: tenancy {str(kind)!r} needs tenant=, the attribute that names it")
        key = tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key)
        entity = Entity(
            name=name,
            mapper=mapper,
            index=index,
            tenancy=kind,
            fields=None if fields is None else tuple(fields),
            to_document=to_document,
            when=when,
            tenant=None if tenant is None else _column(mapper, tenant, f"{where}: tenant").key,
            changed_at=None if changed_at is None else _column(mapper, changed_at, f"{where}: changed_at").key,
            watch=None if watch is None else frozenset(_attribute(mapper, each, f"{where}: watch") for each in watch),
            depends_on={
                _mapper(other): given if isinstance(given, Dependency) else Dependency(given)
                for other, given in (depends_on or {}).items()
            },
            mappings=mappings,
            settings=settings,
            load_options=None if load_options is None else tuple(load_options),
            key=key,
            key_forms=tuple(_form(mapper, each, where) for each in key),
            tenant_form=None if tenant is None else _form(mapper, tenant, f"{where}: tenant"),
            tree=_tree(mapper, fields or (), where),
        )
        self._check_neighbours(entity)
        _check_dependencies(entity)
        self._entities[name] = entity
        self.generation += 1
        return entity

    def _check_neighbours(self, entity: Entity) -> None:
        for other in self:
            apart = (other.tenancy is Tenancy.INDEX) != (entity.tenancy is Tenancy.INDEX)
            of_tenants, of_all = (other, entity) if other.tenancy is Tenancy.INDEX else (entity, other)
            if apart and of_tenants.index_names(of_all.index):
                raise ConfigurationError(
                    f"entities {other.name!r} and {entity.name!r}: an index of one tenant is the index of the other"
                )
            if other.index != entity.index or apart:
                continue
            if (other.mappings, other.settings) != (entity.mappings, entity.settings):
                raise ConfigurationError(
                    f"entities {other.name!r} and {entity.name!r} share the index {entity.index!r}, but not its "
                    "mappings and settings; give both the same"
                )

    def of_index(self, index: str) -> list[Entity]:
        """The entities whose documents stand in an index."""
        return [entity for entity in self if entity.index_names(index)]

    def index_options(self, index: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Mappings and settings to create an index with; None if no entity has documents in it."""
        found = self.of_index(index)
        if not found:
            return None
        mappings = dict(found[0].mappings or {})
        if any(entity.tenant for entity in found):
            mappings["properties"] = {TENANT_FIELD: {"type": "keyword"}} | dict(mappings.get("properties", {}))
        return mappings, dict(found[0].settings or {})

    def capture(self, sessions: S) -> S:
        """From now on, note the changes that such sessions make to entities; see `outbox.capture`.

        Takes a `sessionmaker`, `scoped_session`, subclass of `Session`, session or `async_sessionmaker`, and returns
        it. Raises `ConfigurationError` for anything else.
        """
        from outbox.write.capture import capture

        capture(self, sessions)
        return sessions

    # -- loading ------------------------------------------------------------------------------------------------

    def load(self, connection: Connection, events: Sequence[Event]) -> dict[int, Loaded]:
        """What the database says now of the documents of `refresh` rows, by event id.

        JSON text; or None, if there is no such row, if `when` excludes it, or if its document now stands elsewhere
        (another tenant); or why it cannot be made. One query an entity, and one more for each to-many path.
        Raises `DatabaseUnavailable`. Takes no lock of its own.
        """
        loaded: dict[int, Loaded] = {}
        by_entity: dict[str | None, list[Event]] = defaultdict(list)
        for event in events:
            by_entity[event.entity].append(event)
        for name, rows in by_entity.items():
            entity = self._entities.get(name or "")
            if entity is None:
                loaded |= dict.fromkeys((row.id for row in rows), self._unknown(name))
                continue
            places = [(row.index_name, row.document_id) for row in rows]
            made = self.load_places(connection, entity, places)
            loaded |= {row.id: made[place] for row, place in zip(rows, places, strict=True)}
        return loaded

    def _unknown(self, name: str | None) -> LoadFailed:
        return LoadFailed(
            UNKNOWN_ENTITY,
            f"no entity {shortened(name)} is registered here{nearest(name or '', self._entities)}; "
            "add it to the registry that OUTBOX_ENTITIES names, with the name= it had when the row was written",
        )

    def load_places(
        self, connection: Connection, entity: Entity, places: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], Loaded]:
        """The same of the documents of one entity, by where they stand: (index name, `_id`)."""
        identities = {place: entity.identity_of(place[1]) for place in places}
        wanted = list({identity for identity in identities.values() if identity is not None})
        found = self._found(connection, entity, wanted)
        return {
            place: _at(place, None if identity is None else found.get(identity))
            for place, identity in identities.items()
        }

    # -- walking through an entity ------------------------------------------------------------------------------

    def count(self, connection: Connection, entity: Entity, part: Part) -> int:
        """How many rows an entity has, also those that have no document. Raises `DatabaseUnavailable`."""
        with _or_unavailable(entity):
            return int(connection.execute(part.of(entity, select(func.count()).select_from(entity.model))).scalar_one())

    def tenants(self, connection: Connection, entity: Entity, limit: int = -1) -> list[str]:
        """The tenants that have rows, as text."""
        tenant = entity.tenant_sql()
        if tenant is None:
            return []
        statement = select(tenant).select_from(entity.model).where(tenant.is_not(None)).distinct().order_by(tenant)
        with _or_unavailable(entity):
            return [row[0] for row in connection.execute(statement.limit(limit))]

    def identities(
        self, connection: Connection, entity: Entity, part: Part, *, after: tuple[Any, ...] | None, limit: int
    ) -> list[tuple[Any, ...]]:
        """The next primary keys of an entity after that one, in their order. Raises `DatabaseUnavailable`.

        One short read for each page: a long one would keep the write-ahead log from being taken up.
        """
        statement = _after(entity, select(*entity.key_columns).select_from(entity.model), after)
        with _or_unavailable(entity):
            return [tuple(row) for row in connection.execute(part.of(entity, statement).limit(limit))]

    def page(
        self, connection: Connection, entity: Entity, part: Part, after: Sequence[str] | None, limit: int
    ) -> list[Row]:
        """The next rows in the order of the primary key, after that key (as text), with their documents.

        Fewer than `limit` where documents are large; none at the end. Takes no lock and holds no snapshot from one
        page to the next. Raises `DatabaseUnavailable`.
        """
        key = None
        if after is not None:
            key = tuple(form.from_text(text) for form, text in zip(entity.key_forms, after, strict=True))
        if not _needs_objects(entity):
            with suppress(_Unreadable):
                return self._page_of_columns(connection, entity, part, key, limit)
        rows: list[Row] = []
        size = 0
        identities = self.identities(connection, entity, part, after=key, limit=limit)
        for start in range(0, len(identities), OBJECTS_AT_ONCE):
            wanted = identities[start : start + OBJECTS_AT_ONCE]
            found = self._found(connection, entity, wanted)
            rows += [Row(entity, identity, *found.get(identity, _Found(None, None))) for identity in wanted]
            size += sum(map(_size, found.values()))
            if size >= PAGE_BYTES:
                break
        return rows

    def _page_of_columns(
        self, connection: Connection, entity: Entity, part: Part, after: tuple[Any, ...] | None, limit: int
    ) -> list[Row]:
        """In one query. Raises `_Unreadable` if the types of its columns cannot read one of the rows."""
        make, width = self._maker(entity), len(entity.key)
        rows: list[Row] = []
        size = 0
        try:
            statement = part.of(entity, _after(entity, _columns(entity), after)).limit(limit)
            with connection.execute(statement) as result:
                for some in result.partitions(ROWS_AT_ONCE):
                    for row in some:
                        found = make.of_row(row)
                        rows.append(Row(entity, row[:width], *found))
                        size += _size(found)
                    if size >= PAGE_BYTES:
                        break
        except Exception as error:
            _refuse_if_unavailable(entity, error)
            raise _Unreadable from error
        return rows

    def load_rows(
        self, connection: Connection, entity: Entity, identities: Sequence[tuple[Any, ...]]
    ) -> dict[tuple[Any, ...], tuple[DocumentKey | None, Loaded]]:
        """Where the documents of rows stand, and what the database says of them, by primary key.

        No place, and no document, for a row without a legal one; a row that is gone is missing.
        Raises `DatabaseUnavailable`.
        """
        found = self._found(connection, entity, identities)
        return {
            identity: (None if each.key is _NOWHERE else each.key, each.document) for identity, each in found.items()
        }

    def holders(
        self, connection: Connection, entity: Entity, places: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], DocumentKey]:
        """Those of the places at which a document shall stand; also one that cannot be made at present.

        Costs less than to load the documents, unless `when` has to look at them. Raises `DatabaseUnavailable`.
        """
        identities = {place: entity.identity_of(place[1]) for place in places}
        wanted = list({identity for identity in identities.values() if identity is not None})
        if entity.when is not None:
            found = self._found(connection, entity, wanted)
            keys_ = {identity: each.key for identity, each in found.items() if each.key and each.document is not None}
        elif entity.tenancy is Tenancy.SHARED:
            tenants = self._tenants_of(connection, entity, wanted)
            return {
                place: DocumentKey(*place, tenants[identity])
                for place, identity in identities.items()
                if identity in tenants and place[0] == entity.index
            }
        else:
            keys_ = {}
            for identity, tenant in self._tenants_of(connection, entity, wanted).items():
                with suppress(InvalidName):  # no place, no document
                    keys_[identity] = entity.place_of(identity, tenant)
        standing = ((place, keys_.get(identity)) for place, identity in identities.items() if identity is not None)
        return {place: key for place, key in standing if key is not None and key[:2] == place}

    def _tenants_of(
        self, connection: Connection, entity: Entity, wanted: Sequence[tuple[Any, ...]]
    ) -> dict[tuple[Any, ...], str | None]:
        """The tenants, as text, of those primary keys that have a row."""
        found: dict[tuple[Any, ...], str | None] = {}
        width, step = len(entity.key), MOST_PARAMETERS // len(entity.key)
        columns = [*entity.key_columns, *([entity.column(entity.tenant)] if entity.tenant else [])]
        for start in range(0, len(wanted), step):
            part = wanted[start : start + step]
            with _or_unavailable(entity):
                rows = connection.execute(
                    select(*columns).select_from(entity.model).where(among(entity.key_columns, part))
                ).all()
            for row in rows:
                found[row[:width]] = entity.tenant_text(row[width]) if entity.tenant else None
        return found

    def _found(self, connection: Connection, entity: Entity, wanted: Sequence[tuple[Any, ...]]) -> dict[Any, _Found]:
        found: dict[Any, _Found] = {}
        step = MOST_PARAMETERS // len(entity.key)
        for start in range(0, len(wanted), step):
            part = wanted[start : start + step]
            try:
                found |= self._query(connection, entity, part)
            except Exception as error:
                _refuse_if_unavailable(entity, error)
                # A row that driver, types of columns or a loader cannot read: find it, so that only it fails.
                if len(part) == 1:
                    said = (isinstance(error, DBAPIError) and error.orig) or error
                    found[part[0]] = _Found(None, LoadFailed("load_failed", _text(said)))
                else:
                    middle = len(part) // 2
                    for half in (part[:middle], part[middle:]):
                        found |= self._found(connection, entity, half)
        return found

    def _query(self, connection: Connection, entity: Entity, wanted: Sequence[tuple[Any, ...]]) -> dict[Any, _Found]:
        make = self._maker(entity)
        if _needs_objects(entity):
            with Session(connection, autoflush=False) as session:
                statement = select(entity.model).where(among(entity.key_columns, wanted)).options(*_options(entity))
                objects = session.scalars(statement).unique()
                return {tuple(getattr(each, name) for name in entity.key): make.of_object(each) for each in objects}
        found: dict[Any, _Found] = {}
        width = len(entity.key)
        with connection.execute(_columns(entity).where(among(entity.key_columns, wanted))) as result:
            for rows in result.partitions(ROWS_AT_ONCE):
                found |= {row[:width]: make.of_row(row) for row in rows}
        return found

    def _maker(self, entity: Entity) -> _Maker:
        return _Maker(entity, (self._settings or write_settings()).max_document_bytes)


class Row(NamedTuple):
    """A row of an entity: its primary key, where its document stands, and the document."""

    entity: Entity
    identity: tuple[Any, ...]
    place: DocumentKey | None
    document: Loaded

    @property
    def key(self) -> list[str]:
        """The primary key as text."""
        return self.entity.key_text(self.identity)


class Part(NamedTuple):
    """Which rows of an entity: of one tenant, changed since then, or all."""

    tenant: str | None = None
    since: Any = None

    def of(self, entity: Entity, statement: Select[Any]) -> Select[Any]:
        if self.tenant is not None:
            if entity.tenant is None or entity.tenant_form is None:
                return statement.where(false())  # an entity without tenants has nothing of one
            try:
                tenant = entity.tenant_form.from_text(self.tenant)
            except ValueError:  # nobody's
                return statement.where(false())
            statement = statement.where(entity.column(entity.tenant) == tenant)
        if self.since is not None and entity.changed_at is not None:
            statement = statement.where(entity.column(entity.changed_at) >= self.since)
        return statement


class _Found(NamedTuple):
    """A row's document and where it stands now."""

    key: DocumentKey | None
    document: Loaded


_NOWHERE = DocumentKey("", "", None)


class _Unreadable(Exception):
    """A row of several that were read at once; one by one it can be found."""


def _size(found: _Found) -> int:
    return len(found.document) if isinstance(found.document, bytes) else 0


def _after(entity: Entity, statement: Select[Any], after: tuple[Any, ...] | None) -> Select[Any]:
    """Rows in the order of their primary keys, after that one."""
    columns = entity.key_columns
    statement = statement.where(*(column.is_not(None) for column in columns)).order_by(*columns)
    if after is None:
        return statement
    return statement.where(columns[0] > after[0] if len(columns) == 1 else tuple_(*columns) > after)


def _at(place: tuple[str, str], found: _Found | None) -> Loaded:
    """What stands at a place: nothing, if the row that was to stand there now stands elsewhere."""
    if found is None or (found.key is not None and found.key[:2] != place):
        return None
    return found.document


class _Maker:
    """Makes documents of what was loaded; a failure is that document's alone."""

    def __init__(self, entity: Entity, max_bytes: int) -> None:
        self._entity, self._max_bytes = entity, max_bytes
        self._width = len(entity.key)
        self._tenant_at = self._width if entity.tenant else None
        self._fields_at = self._width + (1 if entity.tenant else 0)
        self._names = entity.tree.leaves
        self._all_columns = _column_names(entity)

    def of_row(self, row: Sequence[Any]) -> _Found:
        """Of its columns, in the order of `_columns`."""
        entity, end = self._entity, self._fields_at + len(self._names)
        document = dict(zip(self._names, row[self._fields_at : end], strict=True))
        whole = None
        if entity.when is not None:
            whole = SimpleNamespace(**dict(zip(self._all_columns, row[end:], strict=True)))
        tenant = None if self._tenant_at is None else row[self._tenant_at]
        return self._made(row[: self._width], tenant, whole, document, None)

    def of_object(self, instance: Any) -> _Found:
        entity = self._entity
        identity = [getattr(instance, name) for name in entity.key]
        tenant = getattr(instance, entity.tenant) if entity.tenant else None
        return self._made(identity, tenant, instance, None, entity.to_document or entity.tree.document)

    def _made(
        self,
        identity: Sequence[Any],
        tenant: Any,
        row: Any,
        content: Mapping[str, Any] | None,
        make: Callable[[Any], Mapping[str, Any]] | None,
    ) -> _Found:
        """`content` is made of the row by `make`, if that is given, but not for rows that have no document."""
        entity = self._entity
        try:
            key = entity.key_of(identity, tenant)
        except InvalidName as error:
            if entity.tenancy is not Tenancy.SHARED:
                return _Found(_NOWHERE, None)  # it left its place for one that cannot be
            return _Found(None, LoadFailed("invalid_name", str(error)))
        try:
            if entity.when is not None and not entity.when(row):
                return _Found(key, None)
        except Exception as error:
            return _Found(key, LoadFailed("when_failed", _text(error)))
        try:
            if make is not None:
                content = make(row)
            if key.tenant_id is not None and isinstance(content, Mapping):
                content = {**content, TENANT_FIELD: key.tenant_id}
        except Exception as error:
            return _Found(key, LoadFailed("to_document_failed", _text(error)))
        try:
            return _Found(key, documents.serialise(content, max_bytes=self._max_bytes))  # type: ignore[arg-type]
        except InvalidDocument as error:
            return _Found(key, LoadFailed("invalid_document", str(error)))
        except Exception as error:  # a mapping of the application's own that raises when it is read
            return _Found(key, LoadFailed("invalid_document", _text(error)))


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _unavailable(entity: Entity, error: DBAPIError) -> DatabaseUnavailable:
    return DatabaseUnavailable(f"entity {entity.name!r} cannot be loaded: {error.orig}")


def _refuse_if_unavailable(entity: Entity, error: Exception) -> None:
    """Raises `DatabaseUnavailable` for a failure of the database: one of a row is that row's alone."""
    if isinstance(error, DBAPIError) and not is_no_text(error.orig):
        raise _unavailable(entity, error) from error


@contextmanager
def _or_unavailable(entity: Entity) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise _unavailable(entity, error) from error


def _needs_objects(entity: Entity) -> bool:
    return entity.to_document is not None or entity.load_options is not None or not entity.tree.plain


def _column_names(entity: Entity) -> list[str]:
    """All columns of an entity, by the names of its attributes: what `when` may look at."""
    return [] if entity.when is None else [prop.key for prop in entity.mapper.column_attrs]


def _columns(entity: Entity) -> Select[Any]:
    tenant = [entity.tenant] if entity.tenant else []
    names = [*entity.key, *tenant, *entity.tree.leaves, *_column_names(entity)]
    return select(*(entity.column(name).label(f"c{at}") for at, name in enumerate(names))).select_from(entity.model)


def among(columns: Sequence[Any], wanted: Sequence[tuple[Any, ...]]) -> ColumnElement[bool]:
    """Rows with one of these keys."""
    if len(columns) == 1:
        condition: ColumnElement[bool] = columns[0].in_([identity[0] for identity in wanted])
    else:
        condition = tuple_(*columns).in_(wanted)
    return condition


def _options(entity: Entity) -> list[ORMOption]:
    return [*_tree_options(entity.mapper, entity.tree, None), *(entity.load_options or ())]


def _tree_options(mapper: Mapper[Any], tree: Branch, above: Any) -> list[ORMOption]:
    """Load with the objects what the paths lead to, and deferred columns among the fields."""
    options: list[ORMOption] = []
    for name in tree.leaves:
        prop = mapper.attrs.get(name)
        if isinstance(prop, ColumnProperty) and prop.deferred:
            attribute = getattr(mapper.class_, name)
            options.append(above.undefer(attribute) if above else undefer(attribute))
    for name, branch in tree.branches.items():
        attribute = getattr(mapper.class_, name)
        if branch.many:
            option = above.selectinload(attribute) if above else selectinload(attribute)
        else:
            option = above.joinedload(attribute) if above else joinedload(attribute)
        below = _tree_options(mapper.relationships[name].mapper, branch, option)
        options += [option, *below]
    return options


# -- what may be registered -------------------------------------------------------------------------------------


def _mapper(model: type[Any]) -> Mapper[Any]:
    try:
        mapper = inspect(model)
    except NoInspectionAvailable:
        mapper = None
    if not isinstance(mapper, Mapper):
        raise ConfigurationError(f"{shortened(model)} is no mapped class; register the model, not a table or an object")
    try:
        mapper.registry.configure()
    except SQLAlchemyError as error:
        raise ConfigurationError(f"{mapper.class_.__name__}: {error}; import all models before registering") from error
    return mapper


def _form(mapper: Mapper[Any], attribute: str, where: str) -> TextForm:
    prop = _column(mapper, attribute, where)
    return keys.text_form(prop.columns[0].type, f"{where}: {mapper.class_.__name__}.{attribute}")


def _column(mapper: Mapper[Any], name: str, where: str) -> ColumnProperty[Any]:
    prop = mapper.attrs.get(_attribute(mapper, name, where))
    if not isinstance(prop, ColumnProperty):
        raise ConfigurationError(f"{where}: {mapper.class_.__name__}.{name} is no column")
    return prop


def _attribute(mapper: Mapper[Any], name: str, where: str) -> str:
    """The mapped attribute of that name, synonyms resolved."""
    prop = mapper.attrs.get(name)
    if isinstance(prop, SynonymProperty):
        return _attribute(mapper, prop.name, where)
    if prop is None:
        raise ConfigurationError(
            f"{where}: {mapper.class_.__name__} has no attribute {shortened(name)}{nearest(name, _names(mapper))}"
        )
    return name


def _check_dependencies(entity: Entity) -> None:
    from outbox.entities.links import links_of  # not above: it imports this

    for _ in links_of(entity):
        pass


def listed(known: Iterable[str]) -> str:
    return f"; registered are {', '.join(sorted(known)) or 'none'}"


def nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _names(mapper: Mapper[Any]) -> list[str]:
    return [str(name) for name in mapper.all_orm_descriptors.keys()]  # noqa: SIM118  (no plain mapping)


def _tree(mapper: Mapper[Any], fields: Sequence[str], where: str) -> Branch:
    tree = Branch()
    for path in fields:
        at, model = tree, mapper
        *relations, last = path.split(".")
        for name in relations:
            prop = model.attrs.get(_attribute(model, name, f"{where}: field {path!r}"))
            if not isinstance(prop, RelationshipProperty):
                raise ConfigurationError(
                    f"{where}: field {path!r}: {model.class_.__name__}.{name} is no relationship; "
                    "make the document by to_document"
                )
            if name not in at.branches:
                at.branches[name] = Branch(many=bool(prop.uselist), sorted_by_database=bool(prop.order_by))
            at, model = at.branches[name], prop.mapper
            tree.plain = False
        tree.plain &= _check_leaf(model, last, f"{where}: field {path!r}")
        if last not in at.leaves:
            at.leaves.append(last)
    return tree


def _check_leaf(mapper: Mapper[Any], name: str, where: str) -> bool:
    """Whether the field is a column. Raises `ConfigurationError` if it is nothing that a document can hold."""
    descriptor = mapper.all_orm_descriptors.get(name)
    if isinstance(descriptor, hybrid_property) or isinstance(getattr(mapper.class_, name, None), property):
        return False
    prop = mapper.attrs.get(_attribute(mapper, name, where))
    if isinstance(prop, RelationshipProperty):
        raise ConfigurationError(f"{where} is a relationship; name fields of it, e.g. {name}.id")
    if not isinstance(prop, ColumnProperty):
        raise ConfigurationError(f"{where} is no column; make the document by to_document")
    return True
