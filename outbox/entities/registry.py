"""The registry: which models are documents, of which fields, under which index and `_id`.

registry = EntityRegistry()
registry.add(Contact, index="contacts", fields=["first_name", "email", "account.name"], tenant="tenant_id")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sqlalchemy import Engine
from sqlalchemy.orm.interfaces import ORMOption

from outbox import documents
from outbox.documents import TENANT_FIELD
from outbox.entities import checks, derived, links, neighbours
from outbox.entities.entity import Dependency, DerivedMappings, Entity
from outbox.entities.keys import Tenancy
from outbox.entities.refusals import check_mapper, nearest
from outbox.errors import ConfigurationError, shortened
from outbox.settings import WriteSettings

if TYPE_CHECKING:
    from outbox.write.capture import Capture

S = TypeVar("S")


class EntityRegistry:
    """The entities of an application. Fill it once at start; the relay loads documents through the same one."""

    def __init__(self, *, settings: WriteSettings | None = None) -> None:
        self._entities: dict[str, Entity] = {}
        self._settings = settings
        self._capture: Capture | None = None
        self.generation = 0  # grows with each entity: for what others derive from the registry

    def __iter__(self) -> Iterator[Entity]:
        return iter(self._entities.values())

    def __len__(self) -> int:
        return len(self._entities)

    def __getitem__(self, name: str) -> Entity:
        try:
            return self._entities[name]
        except KeyError:
            known = self._entities
            raise ConfigurationError(
                f"no entity {shortened(name)} is registered{checks.listed(known)}{nearest(name, known)}"
            ) from None

    def add(
        self,
        model: type[Any],
        *,
        index: str,
        name: str | None = None,
        id: str | None = None,
        id_prefix: str = "",
        fields: Sequence[str] | Mapping[str, str] | None = None,
        to_document: Callable[[Any], Mapping[str, Any]] | None = None,
        when: Callable[[Any], bool] | None = None,
        watch: Sequence[str] | None = None,
        tenant: str | None = None,
        tenancy: str = Tenancy.SHARED,
        depends_on: Mapping[type[Any], str | Sequence[str] | Dependency] | None = None,
        changed_at: str | None = None,
        mappings: Mapping[str, Any] | DerivedMappings | Literal["derived"] | None = None,
        settings: Mapping[str, Any] | None = None,
        load_options: Sequence[ORMOption] | None = None,
        skip_unchanged: bool = False,
    ) -> Entity:
        """Register a mapped class. Its models must all be imported. Raises `ConfigurationError`.

        * `fields`: what a document holds: attributes of the model, or paths through its relationships
          (`account.name`; through a to-many one the field is a list of objects) and into JSON columns
          (`settings.theme`; null if it is missing). `{"account": "account.name"}` gives names, without objects in
          objects. Or `to_document`: a function that makes the document of an object.
        * `when`: rows for which it is false have no document. It gets the object, or what behaves as one: where
          `fields` are columns, no object is built unless `when` asks for a property, a method or a relationship.
        * `watch`: what else has to change for the document to be made anew, beside `fields`: say here what `when` and
          `to_document` look at. Without it, if there is either of them, every column counts.
        * `tenant`: the attribute that names the tenant; documents hold it as `tenantId`. `tenancy`: `shared` (its key
          is unique over all tenants), `prefixed` (the `_id` begins with the tenant), `index` (each has `tenant_index`).
        * `depends_on`: models whose changes make this entity's documents anew, beside those on paths in `fields`, with
          the column that points to them (several for a composite key) or the relationships that lead there: `{Account:
          "account_id", User: ["owner", "team.head"]}`. Only some columns count with `Dependency(…, watch=["name"])`.
        * `id`: the attribute whose value is the `_id`, in place of the primary key: a column that is unique and never
          NULL. If it changes, the document moves. `id_prefix`: what each `_id` begins with. Two entities may share an
          index if their ids cannot meet, or if they are classes of one table's hierarchy: of a row that is both, the
          document is made by the subclass.
        * `changed_at`: the attribute that says when a row changed last.
        * `mappings`, `settings`: of the index, when it is created; `"derived"`: of its fields, see `DerivedMappings`.
        * `skip_unchanged`: read first what the index holds, and write no document that it holds already.
        * `load_options`: loader options for the query that loads objects, e.g. `[joinedload(Deal.account)]`.
        """
        mapper = checks.mapper_of(model)
        name = self._free(name or mapper.local_table.name)  # type: ignore[attr-defined]
        documents.check_index_name(index)
        check_mapper(mapper, where := f"entity {name!r}")
        checks.check_lists(where, fields, to_document, watch)
        id_key = checks.id_key_of(mapper, id, f"{where}: id")
        entity = Entity(
            name=name,
            mapper=mapper,
            index=index,
            tenancy=checks.tenancy_of(where, tenancy, tenant),
            fields=None if fields is None else tuple(fields),
            to_document=to_document,
            when=when,
            tenant=checks.tenant_key(mapper, tenant, f"{where}: tenant"),
            changed_at=checks.column_key(mapper, changed_at, f"{where}: changed_at"),
            watch=checks.attribute_names(mapper, watch, f"{where}: watch"),
            depends_on=checks.dependencies_of(where, depends_on),
            mappings=derived.given(mappings, where),
            settings=settings,
            skip_unchanged=skip_unchanged,
            load_options=None if load_options is None else tuple(load_options),
            id_key=id_key,
            id_forms=tuple(checks.form_of(mapper, each, where) for each in id_key),
            id_prefix=checks.prefix_of(where, id_prefix),
            tenant_form=None if tenant is None else checks.form_of(mapper, tenant, f"{where}: tenant"),
            tree=checks.tree_of(mapper, fields or (), where),
            limits=self._settings,
        )
        return self._register(entity)

    def _register(self, entity: Entity) -> Entity:
        neighbours.check(entity, self)
        links.check(entity)
        derived.check(entity, self)
        self._entities[entity.name] = entity
        self.generation += 1
        return entity

    def _free(self, name: str) -> str:
        """The name of an entity. Raises `ConfigurationError` if there is one of that name."""
        if name in self._entities:
            raise ConfigurationError(
                f"an entity {name!r} is registered already, of {self._entities[name].model.__name__}; pass name="
            )
        # A table's name is a subclass of str, which the driver would look for an adapter for, at each row.
        return str(name)

    def of_index(self, index: str) -> list[Entity]:
        """The entities that have documents in an index. Of a row of several, the first makes the document: subclasses
        come before their bases, otherwise it is the order of `add`."""
        return sorted((entity for entity in self if entity.index_names(index)), key=lambda entity: -entity.depth)

    def index_options(self, index: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Mappings and settings to create an index with; None if no entity has documents in it."""
        found = self.of_index(index)
        if not found:
            return None
        mappings = derived.mappings_of(found)
        if any(entity.tenant for entity in found):
            mappings["properties"] = {TENANT_FIELD: {"type": "keyword"}} | dict(mappings.get("properties", {}))
        return mappings, dict(found[0].settings or {})

    def capture(self, sessions: S) -> S:
        """From now on, note the changes that such sessions make to entities; see `outbox.write.capture`.

        Takes a `sessionmaker`, `scoped_session`, subclass of `Session`, session or `async_sessionmaker`, and returns
        it. Raises `ConfigurationError` for anything else.
        """
        from outbox.write.capture import Capture  # not above: the write side imports this

        if self._capture is None:
            self._capture = Capture(self)
        self._capture.listen(sessions)
        return sessions

    def engines(self) -> set[Engine]:
        """The engines that captured sessions are known to use."""
        return set() if self._capture is None else self._capture.engines()
