"""Paths through relationships of every kind."""

from __future__ import annotations

from itertools import count
from typing import Any

from sqlalchemy import Column, Computed, ForeignKey, Table, and_, delete, func, insert, inspect, select, update
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import (
    Mapped,
    Session,
    aliased,
    attribute_keyed_dict,
    backref,
    column_property,
    mapped_column,
    relationship,
)

from tests.entities.constructs.columns import GONE, a_base, changing, removing
from tests.entities.constructs.made import Constructs, Made, registered

RELATIONSHIPS = Constructs()


def adding(*made: Any) -> Any:
    return lambda session: session.add_all([make() for make in made])


def _append(parent: Any, name: str, child: Any) -> None:
    getattr(parent, name).append(child)


@RELATIONSHIPS.add("many-to-one, one-to-many; `backref`, `order_by`, `lazy='raise'`, `collection_class`, `primaryjoin`")
def foreign_keys() -> Made:
    base = a_base()

    class Owner(base):  # type: ignore[misc]
        __tablename__ = "owners"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Part(base):  # type: ignore[misc]
        __tablename__ = "parts"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        it_id: Mapped[int | None] = mapped_column(ForeignKey("it.id"))

    class It(base):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        owner_id: Mapped[int | None] = mapped_column(ForeignKey("owners.id"))
        owner: Mapped[Owner | None] = relationship(lazy="raise", backref=backref("its"))
        parts: Mapped[dict[str, Part]] = relationship(
            collection_class=attribute_keyed_dict("name"), order_by=Part.name.desc(), lazy="raise_on_sql"
        )

    It.good = relationship(Part, primaryjoin=and_(Part.it_id == It.id, Part.name.like("b%")), viewonly=True)
    return Made(
        base,
        registered(It, fields=["owner.name", "parts.name", "good.id"]),
        adding(
            lambda: Owner(id=1, name="a"),
            lambda: It(id=1, owner_id=1),
            lambda: Part(id=1, name="a", it_id=1),
            lambda: Part(id=2, name="b", it_id=1),
        ),
        [
            changing(Owner, name="c"),
            changing(Part, name="bb"),
            changing(It, owner=None),
            lambda session: _append(session.get_one(Owner, 1), "its", session.get_one(It, 1)),
            changing(Part, it_id=None),
            removing(Part),
        ],
        [update(Part).values(name="d"), update(Owner).values(name="e"), insert(Part).values(id=9, name="b", it_id=1)],
        ["UPDATE parts SET name = 'f' || id", "DELETE FROM parts WHERE id = 2", "UPDATE it SET owner_id = NULL", GONE],
    )


@RELATIONSHIPS.add("`order_by` a column that nobody sets: `onupdate`, `Computed`")
def ordered_by_what_nobody_sets() -> Made:
    base, clock = a_base(), count(10)

    class Part(base):  # type: ignore[misc]
        __tablename__ = "parts"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        it_id: Mapped[int | None] = mapped_column(ForeignKey("it.id"))
        changed: Mapped[int] = mapped_column(default=clock.__next__, onupdate=clock.__next__)
        length: Mapped[int] = mapped_column(Computed("length(name)"))

    class It(base):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        parts: Mapped[list[Part]] = relationship(order_by=Part.changed)
        longest: Mapped[list[Part]] = relationship(order_by=(Part.length.desc(), Part.id), viewonly=True)

    return Made(
        base,
        registered(It, fields=["parts.id", "longest.id"]),
        adding(
            lambda: It(id=1),
            lambda: Part(id=1, name="long", it_id=1),
            lambda: Part(id=2, name="no", it_id=1),
        ),
        [changing(Part, name="n"), changing(Part, name="longest"), removing(Part)],
        [update(Part).where(Part.id == 1).values(name="longer")],
        ["UPDATE parts SET name = 'longer', changed = 99 WHERE id = 1", GONE],
    )


def _ordered_by_uses(depends: bool) -> Made:
    base = a_base()

    class Use(base):  # type: ignore[misc]
        __tablename__ = "uses"
        id: Mapped[int] = mapped_column(primary_key=True)
        part_id: Mapped[int] = mapped_column(ForeignKey("parts.id"))

    class Part(base):  # type: ignore[misc]
        __tablename__ = "parts"
        id: Mapped[int] = mapped_column(primary_key=True)
        it_id: Mapped[int] = mapped_column(ForeignKey("it.id"))
        uses = relationship(Use)

    Part.used = column_property(select(func.count(Use.id)).where(Use.part_id == Part.id).scalar_subquery())

    class It(base):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        parts: Mapped[list[Part]] = relationship(order_by=Part.used.desc())

    options: dict[str, Any] = {"depends_on": {Use: "parts.uses"}} if depends else {}
    return Made(
        base,
        registered(It, fields=["parts.id"], **options),
        adding(lambda: It(id=1), *(lambda at=at: Part(id=at, it_id=1) for at in (1, 2)), lambda: Use(id=1, part_id=1)),
        [changing(Use, part_id=2), removing(Use)],
        [insert(Use).values(id=2, part_id=2), update(Use).values(part_id=1)],
        ["UPDATE uses SET part_id = 2", "DELETE FROM uses", GONE],
    )


@RELATIONSHIPS.add(
    "`order_by` what reads other tables",
    refused="field 'parts' reads the table uses; name in depends_on the model of it and what leads there",
)
def ordered_by_other_tables() -> Made:
    return _ordered_by_uses(depends=False)


@RELATIONSHIPS.add("`order_by` what reads other tables, with `depends_on`")
def ordered_by_other_tables_named() -> Made:
    return _ordered_by_uses(depends=True)


def _tagged(path: str, *, mapped: bool = False, other: Any = None, **how: Any) -> Made:
    base = a_base()

    class Tag(base):  # type: ignore[misc]
        __tablename__ = "tags"
        id: Mapped[int] = mapped_column(primary_key=True)
        label: Mapped[str]

    ends = {"it_id": ForeignKey("it.id"), "tag_id": ForeignKey("tags.id")}
    pair = [Column(name, key, primary_key=True) for name, key in ends.items()]
    if mapped:

        class Tagging(other or base):  # type: ignore[misc]
            __table__ = Table("taggings", base.metadata, *pair)
            tag = relationship(Tag)

        secondary = Tagging.__table__
    else:
        secondary = Table("taggings", base.metadata, *pair)

    class It(base):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        tags = relationship(Tag, secondary=secondary, **({"viewonly": True} if mapped else how))
        read = relationship(Tag, secondary=secondary, viewonly=True)
        labels: AssociationProxy[Any] = association_proxy(
            "taggings" if mapped else "tags", "tag" if mapped else "label"
        )
        if mapped:
            taggings = relationship(Tagging, cascade="all, delete-orphan")

    Tag.its = relationship(It, secondary=secondary, viewonly=mapped, overlaps="tags")

    def put(session: Session) -> None:
        it, tag = session.get_one(It, 1), session.get_one(Tag, 2)
        (it.tags.add if how.get("lazy") == "write_only" else it.tags.append)(tag)

    def put_back(session: Session) -> None:
        it, tag = session.get_one(It, 1), session.get_one(Tag, 3)
        tag.its.append(it)

    def by_object(session: Session) -> None:
        it = session.get_one(It, 1)
        it.taggings.append(Tagging(tag=session.get_one(Tag, 2)))

    def clear(session: Session) -> None:
        it = session.get_one(It, 1)
        it.taggings.clear()

    statements: list[Any] = [update(Tag).values(label="c")]
    if mapped:
        statements += [insert(Tagging).values(it_id=1, tag_id=1), delete(Tagging)]
    into = "INSERT INTO taggings (it_id, tag_id) VALUES (1, 3)"
    return Made(
        base,
        registered(It, fields=[path]),
        adding(lambda: It(id=1), *(lambda at=at: Tag(id=at, label="a") for at in (1, 2, 3))),
        [by_object, changing(Tag, label="b"), clear] if mapped else [put, put_back, changing(Tag, label="b")],
        [
            update(Tag).values(label="c"),
            *([insert(Tagging).values(it_id=1, tag_id=1), delete(Tagging)] if mapped else []),
        ],
        [into, "UPDATE tags SET label = 'd'", "DELETE FROM taggings WHERE tag_id = 3", GONE],
    )


@RELATIONSHIPS.add(
    "many-to-many (`secondary`), from both ends", remark="of a table without a class, bulk: its ends only"
)
def many_to_many() -> Made:
    return _tagged("tags.label")


@RELATIONSHIPS.add("association object, its `secondary` read by `viewonly`")
def association_object() -> Made:
    return _tagged("read.label", mapped=True)


@RELATIONSHIPS.add("association object of another base or registry")
def association_object_of_another_base() -> Made:
    return _tagged("read.label", mapped=True, other=a_base())


@RELATIONSHIPS.add(
    "association proxy", refused="It.labels is an association proxy; name the path that it leads along, 'tags.label'"
)
def proxies() -> Made:
    return _tagged("labels")


@RELATIONSHIPS.add("`dynamic`", refused="It.tags is dynamic, so that it cannot be loaded with the row")
def dynamic() -> Made:
    return _tagged("tags.label", lazy="dynamic")


@RELATIONSHIPS.add("`write_only`", refused="It.tags is write_only, so that it cannot be loaded with the row")
def write_only() -> Made:
    return _tagged("tags.label", lazy="write_only")


@RELATIONSHIPS.add("`dynamic`, read by a second relationship that is `viewonly`")
def dynamic_and_viewonly() -> Made:
    return _tagged("read.label", lazy="dynamic")


@RELATIONSHIPS.add("`write_only`, read by a second relationship that is `viewonly`")
def write_only_and_viewonly() -> Made:
    return _tagged("read.label", lazy="write_only")


def _of_three(depends: bool) -> Made:
    base = a_base()
    ends = {"it_id": ForeignKey("it.id"), "tag_id": ForeignKey("tags.id"), "list_id": ForeignKey("lists.id")}
    between = Table("betweens", base.metadata, *(Column(name, key, primary_key=True) for name, key in ends.items()))

    class It(base):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        tags = relationship("Tag", secondary=between, viewonly=True)
        lists = relationship("List", secondary=between, viewonly=True)

    class Tag(base):  # type: ignore[misc]
        __tablename__ = "tags"
        id: Mapped[int] = mapped_column(primary_key=True)

    class List(base):  # type: ignore[misc]
        __tablename__ = "lists"
        id: Mapped[int] = mapped_column(primary_key=True)
        tags = relationship(Tag, secondary=between)

    def start(session: Session) -> None:
        session.add_all([It(id=1), *(kind(id=at) for kind in (Tag, List) for at in (1, 2))])
        session.flush()
        session.execute(insert(between), [{"it_id": 1, "tag_id": at, "list_id": at} for at in (1, 2)])

    options: dict[str, Any] = {"depends_on": {List: "lists"}} if depends else {}
    return Made(
        base,
        registered(It, fields=["tags.id"], **options),
        start,
        [changing(List, tags=[]), lambda session: session.delete(session.get_one(List, 2))],
        [delete(Tag).where(Tag.id == 2)],
        ["INSERT INTO betweens VALUES (1, 1, 2)", "DELETE FROM betweens WHERE tag_id = 1", GONE],
    )


@RELATIONSHIPS.add(
    "a table between three classes that a collection of the third writes",
    refused="List.tags adds and removes rows of betweens that It.tags reads, and no session knows of whose documents",
)
def of_three() -> Made:
    return _of_three(depends=False)


@RELATIONSHIPS.add("a table between three classes that a collection of the third writes, with `depends_on`")
def of_three_named() -> Made:
    return _of_three(depends=True)


def _far(how: str, *, depends: bool = False) -> Made:
    base = a_base()

    class It(base):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        near_id: Mapped[int | None] = mapped_column(ForeignKey("nears.id"))

    class Near(base):  # type: ignore[misc]
        __tablename__ = "nears"
        id: Mapped[int] = mapped_column(primary_key=True)
        far_id: Mapped[int | None] = mapped_column(ForeignKey("fars.id"))
        far = relationship("Far")

    class Far(base):  # type: ignore[misc]
        __tablename__ = "fars"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    It.near = relationship(Near)
    if how == "secondary":
        It.far = relationship(
            Far,
            secondary=Near.__table__.join(Far.__table__),
            primaryjoin=It.near_id == Near.id,
            secondaryjoin=Near.far_id == Far.id,
            viewonly=True,
        )
    elif how == "alias":
        joined = aliased(Far, select(Far, Near.id.label("near_id")).join(Near).subquery())
        It.far = relationship(joined, primaryjoin=It.near_id == inspect(joined).selectable.c.near_id, viewonly=True)
    else:
        It.far = relationship(
            Far,
            secondary=Near.__table__,
            primaryjoin=It.near_id == Near.id,
            secondaryjoin=Near.far_id == Far.id,
            viewonly=True,
        )
    options: dict[str, Any] = {"depends_on": {Near: "near"}} if depends else {}
    return Made(
        base,
        registered(It, fields=["far.name"], **options),
        adding(lambda: Far(id=1, name="a"), lambda: Near(id=1, far_id=1), lambda: It(id=1, near_id=1)),
        [changing(Far, name="b"), changing(Near, far_id=None), changing(Near, far_id=1), changing(It, near_id=None)],
        [update(Far).values(name="c"), update(Near).values(far_id=None)],
        [] if depends else ["UPDATE nears SET far_id = 1", "UPDATE fars SET name = 'd'", GONE],
    )


@RELATIONSHIPS.add(
    "`secondary` that is a join of tables",
    refused="field 'far' reads the table nears; name in depends_on the model of it and what leads there",
)
def secondary_join() -> Made:
    return _far("secondary")


@RELATIONSHIPS.add(
    "`secondary` that is a join of tables, with `depends_on`",
    triggers="It.far leads through no table, so triggers cannot follow it",
)
def secondary_join_named() -> Made:
    return _far("secondary", depends=True)


@RELATIONSHIPS.add("relationship with a class as `secondary`")
def secondary_class() -> Made:
    return _far("class")


@RELATIONSHIPS.add("relationship to an aliased class", refused="It.far leads to an aliased class; make the document by")
def to_an_alias() -> Made:
    return _far("alias")


@RELATIONSHIPS.add("self-referential, to one and to many")
def self_referential() -> Made:
    class It(a_base()):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        above_id: Mapped[int | None] = mapped_column(ForeignKey("it.id"))
        above: Mapped[It | None] = relationship(remote_side=[id], back_populates="below")
        below: Mapped[list[It]] = relationship(back_populates="above", order_by="It.id")

    return Made(
        It,
        registered(It, fields=["above.name", "below.name", "above.above.name"]),
        adding(*(lambda at=at: It(id=at, name="a", above_id=at - 1 or None) for at in (1, 2, 3))),
        [
            changing(It, name="b"),
            lambda s: setattr(s.get_one(It, 3), "above", None),
            lambda s: _append(s.get_one(It, 3), "below", s.get_one(It, 1)),
        ],
        [update(It).where(It.id == 3).values(name="c"), update(It).where(It.id == 1).values(above_id=None)],
        ["UPDATE it SET name = 'd' || id", "UPDATE it SET above_id = 1 WHERE id > 1", "DELETE FROM it WHERE id = 3"],
    )


@RELATIONSHIPS.add("path to a hierarchy, or to one kind of it")
def polymorphic_target() -> Made:
    base = a_base()

    class Animal(base):  # type: ignore[misc]
        __tablename__ = "animals"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str]
        it_id: Mapped[int | None] = mapped_column(ForeignKey("it.id"))

    class Dog(Animal):
        __tablename__ = "dogs"
        __mapper_args__ = {"polymorphic_identity": "dog"}
        id: Mapped[int] = mapped_column(ForeignKey("animals.id"), primary_key=True)
        breed: Mapped[str]

    class Cat(Animal):
        __mapper_args__ = {"polymorphic_identity": "cat"}

    class It(base):  # type: ignore[misc]
        __tablename__ = "it"
        id: Mapped[int] = mapped_column(primary_key=True)
        animals: Mapped[list[Animal]] = relationship()
        cats: Mapped[list[Cat]] = relationship(viewonly=True)
        dogs: Mapped[list[Dog]] = relationship(viewonly=True)

    return Made(
        base,
        registered(It, fields=["animals.name", "cats.name", "dogs.breed"]),
        adding(lambda: It(id=1), lambda: Dog(id=1, name="a", breed="b", it_id=1), lambda: Cat(id=2, name="c", it_id=1)),
        [
            changing(Dog, breed="d"),
            changing(Animal, name="e"),
            lambda session: setattr(session.get_one(Animal, 2), "kind", "animal"),
            removing(Dog),
        ],
        [update(Animal).values(name="f"), update(Animal).where(Animal.id == 2).values(kind="cat"), delete(Cat)],
        [
            "INSERT INTO animals VALUES (3, 'cat', 'g', 1)",
            "UPDATE animals SET kind = 'animal' WHERE id = 3",
            "DELETE FROM animals WHERE id > 1",
        ],
    )
