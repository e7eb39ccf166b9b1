"""The registry: what it refuses, and what it knows of indexes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import pytest
from sqlalchemy import Float, ForeignKey, String, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column

from outbox import ConfigurationError, EntityRegistry, InvalidName
from tests.entities.world import Contact, Person, Tag


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"fields": ["name", "emial"]}, r"no attribute 'emial'; did you mean 'email'\?"),
        ({"fields": ["account.nmae"]}, r"field 'account.nmae': Account has no attribute 'nmae'; did you mean 'name'\?"),
        ({"fields": ["name.first"]}, "Contact.name is no relationship"),
        ({"fields": ["account"]}, r"is a relationship; name fields of it, e.g. account.id"),
        ({"fields": []}, "at least one"),
        ({"fields": "name"}, "list of names"),
        ({}, "either fields or to_document"),
        ({"fields": ["name"], "to_document": dict}, "either fields or to_document"),
        ({"fields": ["name"], "tenant": "tennant_id"}, r"did you mean 'tenant_id'\?"),
        ({"fields": ["name"], "tenant": "account"}, "Contact.account is no column"),
        (
            {"fields": ["name"], "tenant": "account.name"},
            "tenant: 'account.name' is a path; it takes a column of C",
        ),
        ({"fields": ["name"], "tenancy": "prefixed"}, "needs tenant="),
        ({"fields": ["name"], "tenancy": "own", "tenant": "tenant_id"}, "'shared', 'prefixed', 'index'"),
        ({"fields": ["name"], "watch": "archived"}, r"watch must be a list of names; use \['archived'\]"),
        ({"fields": ["name"], "watch": ["archive"]}, r"did you mean 'archived'\?"),
        (
            {"fields": ["name"], "watch": ["words"]},
            r"watch: Contact\.words changes with other rows than those of Contact; name Word in depends_on, with what",
        ),
        ({"fields": ["name"], "changed_at": "changed"}, "changed_at: Contact has no attribute 'changed'"),
        ({"fields": ["name"], "index": "Contacts"}, "use 'contacts'"),
    ],
)
def test_mistake_in_a_registration_is_named(registry: EntityRegistry, given: dict[str, Any], reason: str) -> None:
    with pytest.raises((ConfigurationError, InvalidName), match=reason):
        registry.add(Contact, **({"index": "contacts"} | given))
    assert len(registry) == 0


@pytest.mark.parametrize("model", [Contact.__table__, "Contact", Contact(name="Ada"), dict])
def test_what_is_no_model_cannot_be_registered(registry: EntityRegistry, model: Any) -> None:
    with pytest.raises(ConfigurationError, match="no mapped class"):
        registry.add(model, index="contacts", fields=["name"])


def test_key_of_a_type_without_a_text_form_is_refused(registry: EntityRegistry) -> None:
    class Other(DeclarativeBase):
        pass

    class Point(Other):
        __tablename__ = "points"
        at: Mapped[float] = mapped_column(Float, primary_key=True)

    with pytest.raises(ConfigurationError, match=r"Point.at is of type Float\(\)"):
        registry.add(Point, index="points", fields=["at"])


def test_tenant_that_is_no_column_of_the_row_is_refused(registry: EntityRegistry) -> None:
    class Other(DeclarativeBase):
        pass

    class Owner(Other):
        __tablename__ = "owners"
        id: Mapped[int] = mapped_column(primary_key=True)
        tenant: Mapped[str]

    class Pet(Other):
        __tablename__ = "pets"
        id: Mapped[int] = mapped_column(primary_key=True)
        owner_id: Mapped[int] = mapped_column(ForeignKey("owners.id"))
        tenant = column_property(select(Owner.tenant).where(Owner.id == owner_id).scalar_subquery())

    class OwnedPet(Other):
        __table__ = (
            select(Pet.id, Pet.owner_id, func.lower(Owner.tenant, type_=String).label("tenant")).join(Owner).subquery()
        )
        __mapper_args__: ClassVar[Any] = {"primary_key": [__table__.c.id]}

    with pytest.raises(ConfigurationError, match=r"tenant: Pet\.tenant is made of other columns.*; name a column"):
        registry.add(Pet, index="pets", fields=["owner_id"], tenant="tenant", depends_on={Owner: "owner_id"})
    registry.add(OwnedPet, index="pets", fields=["owner_id"], tenant="tenant", depends_on={Pet: "id"})


def test_two_entities_need_two_names(registry: EntityRegistry) -> None:
    registry.add(Contact, index="contacts", fields=["name"])
    with pytest.raises(ConfigurationError, match="'contacts' is registered already, of Contact; pass name="):
        registry.add(Contact, index="people", fields=["name"])
    registry.add(Contact, index="people", fields=["name"], name="people")
    with pytest.raises(
        ConfigurationError, match=r"no entity 'poeple' is registered; registered are .*; did you mean 'people'\?"
    ):
        registry["poeple"]


def test_two_entities_on_one_index_need_the_same_mappings(registry: EntityRegistry) -> None:
    registry.add(Contact, index="people", fields=["name"], id_prefix="contact-", mappings={"dynamic": "strict"})
    with pytest.raises(ConfigurationError, match="share the index 'people', but not its mappings"):
        registry.add(Person, index="people", fields=["name"])
    registry.add(Person, index="people", fields=["name"], mappings={"dynamic": "strict"})
    assert [entity.name for entity in registry.of_index("people")] == ["contacts", "people"]


def test_index_that_a_tenant_could_have_is_refused_to_another_entity(registry: EntityRegistry) -> None:
    registry.add(Contact, index="contacts", fields=["name"], tenant="tenant_id", tenancy="index")
    with pytest.raises(ConfigurationError, match="index of one tenant is the index of the other"):
        registry.add(Tag, index="acme_contacts", fields=["label"])
    registry.add(Tag, index="contacts", fields=["label"])  # no tenant's


def test_index_options_know_the_tenant_field_and_the_indexes_of_tenants(registry: EntityRegistry) -> None:
    registry.add(
        Contact,
        index="contacts",
        fields=["name"],
        tenant="tenant_id",
        tenancy="index",
        mappings={"dynamic": False, "properties": {"name": {"type": "text"}}},
        settings={"number_of_replicas": 0},
    )
    registry.add(Tag, index="tags", fields=["label"])
    options = (
        {"dynamic": False, "properties": {"tenantId": {"type": "keyword"}, "name": {"type": "text"}}},
        {"number_of_replicas": 0},
    )
    assert registry.index_options("t1_contacts") == options
    assert registry.index_options("contacts") is None
    assert registry.index_options("T1_contacts") is None
    assert registry.index_options("a_b_contacts") is None
    assert registry.index_options("tags") == ({}, {})


def test_registry_needs_neither_relay_nor_elasticsearch() -> None:
    unwanted = ("elasticsearch", "click", "alembic", "loguru")
    code = f"import sys, outbox.entities; print([m for m in {unwanted} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
