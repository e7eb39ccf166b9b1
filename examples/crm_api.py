"""The CRM as a web API: how an application whose data can be searched looks with the outbox.

An endpoint that writes commits to the database, and that is all: the rows for the index are in the same transaction,
and a relay delivers them. So a search engine that is slow or away fails no write and delays none; only `GET /search`
answers 503 meanwhile.

    outbox-relay migrate && outbox-relay run        beside it
    uvicorn crm_api:app                             then http://127.0.0.1:8000/docs

Both read the environment, or a file `.env`: OUTBOX_DATABASE_URL=sqlite:///crm.db (or postgresql+psycopg://…),
OUTBOX_ENTITIES=crm:registry, and where documents go, e.g. OUTBOX_ELASTICSEARCH_URL=http://localhost:9200.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import date
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import anyio
import crm
from anyio.to_thread import run_sync
from crm import Account, Contact, Deal, Sessions
from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from outbox import DestinationError, IndexMissing, Search

INDEXES = {"accounts": crm.ACCOUNTS, "contacts": crm.CONTACTS, "deals": crm.DEALS}
SEARCHES = 8  # at the same time

M = TypeVar("M", Account, Contact, Deal)

# Sessions that have one view of the database each, as SQLite and as PostgreSQL call it.
one_view = (
    {"outbox_begin": "DEFERRED"} if crm.engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
)
Readers = sessionmaker(crm.engine.execution_options(**one_view))
search_index = Search(timeout=3, concurrency=SEARCHES)
searchers = anyio.CapacityLimiter(SEARCHES)
log = logging.getLogger("uvicorn.error")


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    crm.Base.metadata.create_all(crm.engine)
    yield
    search_index.close()


app = FastAPI(title="CRM", lifespan=lifespan)


@app.exception_handler(RequestValidationError)
def refuse(_request: Request, error: RequestValidationError) -> JSONResponse:
    """Says what is wrong, and does not repeat what was sent: half a character, for one, cannot be sent back."""
    return JSONResponse({"detail": [{"loc": each["loc"], "msg": each["msg"]} for each in error.errors()]}, 422)


# -- what comes in and goes out --------------------------------------------------------------------------------------

Tenant = Annotated[str, Header(alias="X-Tenant", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Id = Annotated[int, Field(ge=1, le=2**63 - 1)]
After = Annotated[int, Field(ge=0, le=2**63 - 1)]
Limit = Annotated[int, Field(ge=1, le=1_000)]
Text = Annotated[str, Field(min_length=1, max_length=2_000, pattern=r"^[^\x00]*$")]  # no document can hold a NUL


class AccountIn(BaseModel):
    name: Text
    industry: Text
    city: Text
    country: Text
    employees: int = Field(ge=0, lt=2**31)  # as in the mapping of the index


class ContactIn(BaseModel):
    account_id: Id
    name: Text
    email: Text
    job_title: Text
    notes: str = Field("", max_length=10_000, pattern=r"^[^\x00]*$")


class DealIn(BaseModel):
    account_id: Id
    title: Text
    stage: Literal["lead", "qualified", "offer", "negotiation", "won", "lost"]
    amount: int = Field(ge=0, lt=2**53)
    closes_on: date


class Stored(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: int


class AccountOut(AccountIn, Stored): ...


class ContactOut(ContactIn, Stored): ...


class DealOut(DealIn, Stored): ...


class Found(BaseModel):
    id: int
    score: float
    document: dict[str, Any]


def find(session: Session, model: type[M], id: int, tenant: str, missing: int = 404) -> M:
    """What belongs to another tenant is not there."""
    found = session.get(model, id)
    if found is None or found.tenant_id != tenant:
        raise HTTPException(missing, f"there is no {model.__name__.lower()} {id}")
    return found


def page(session: Session, model: type[M], tenant: str, after: int, limit: int) -> Sequence[M]:
    """Those that follow an id."""
    of_tenant = select(model).where(model.tenant_id == tenant, model.id > after)
    return session.scalars(of_tenant.order_by(model.id).limit(limit)).all()


def fields(session: Session, given: ContactIn | DealIn, tenant: str) -> dict[str, Any]:
    """What was given, with the account itself in the place of its id."""
    account = find(session, Account, given.account_id, tenant, missing=422)
    return {"account": account, **given.model_dump(exclude={"account_id"})}


# -- accounts --------------------------------------------------------------------------------------------------------


@app.post("/accounts", status_code=201)
def create_account(tenant: Tenant, given: AccountIn) -> AccountOut:
    # The transaction ends inside the endpoint: what the client is told is committed.
    with Sessions.begin() as session:
        account = Account(tenant_id=tenant, **given.model_dump())
        session.add(account)
        session.flush()  # gives it its id
        return AccountOut.model_validate(account)


@app.get("/accounts")
def list_accounts(tenant: Tenant, after: After = 0, limit: Limit = 100) -> list[AccountOut]:
    with Readers() as session:
        return [AccountOut.model_validate(each) for each in page(session, Account, tenant, after, limit)]


@app.get("/accounts/{id}")
def read_account(tenant: Tenant, id: Id) -> AccountOut:
    with Readers() as session:
        return AccountOut.model_validate(find(session, Account, id, tenant))


@app.put("/accounts/{id}")
def replace_account(tenant: Tenant, id: Id, given: AccountIn) -> AccountOut:
    with Sessions.begin() as session:
        account = find(session, Account, id, tenant)
        crm.change_account(session, account, **given.model_dump())
        return AccountOut.model_validate(account)


@app.delete("/accounts/{id}", status_code=204)
def delete_account(tenant: Tenant, id: Id) -> None:
    with Sessions.begin() as session:
        crm.close_account(session, find(session, Account, id, tenant))


# -- contacts --------------------------------------------------------------------------------------------------------


@app.post("/contacts", status_code=201)
def create_contact(tenant: Tenant, given: ContactIn) -> ContactOut:
    with Sessions.begin() as session:
        contact = crm.hire(session, **fields(session, given, tenant))
        session.flush()
        return ContactOut.model_validate(contact)


@app.get("/contacts")
def list_contacts(tenant: Tenant, after: After = 0, limit: Limit = 100) -> list[ContactOut]:
    with Readers() as session:
        return [ContactOut.model_validate(each) for each in page(session, Contact, tenant, after, limit)]


@app.get("/contacts/{id}")
def read_contact(tenant: Tenant, id: Id) -> ContactOut:
    with Readers() as session:
        return ContactOut.model_validate(find(session, Contact, id, tenant))


@app.put("/contacts/{id}")
def replace_contact(tenant: Tenant, id: Id, given: ContactIn) -> ContactOut:
    with Sessions.begin() as session:
        contact = find(session, Contact, id, tenant)
        for name, value in fields(session, given, tenant).items():
            setattr(contact, name, value)
        session.flush()
        return ContactOut.model_validate(contact)


@app.delete("/contacts/{id}", status_code=204)
def delete_contact(tenant: Tenant, id: Id) -> None:
    with Sessions.begin() as session:
        session.delete(find(session, Contact, id, tenant))


# -- deals -----------------------------------------------------------------------------------------------------------


@app.post("/deals", status_code=201)
def create_deal(tenant: Tenant, given: DealIn) -> DealOut:
    with Sessions.begin() as session:
        return DealOut.model_validate(crm.open_deal(session, **fields(session, given, tenant)))


@app.get("/deals")
def list_deals(tenant: Tenant, after: After = 0, limit: Limit = 100) -> list[DealOut]:
    with Readers() as session:
        return [DealOut.model_validate(each) for each in page(session, Deal, tenant, after, limit)]


@app.get("/deals/{id}")
def read_deal(tenant: Tenant, id: Id) -> DealOut:
    with Readers() as session:
        return DealOut.model_validate(find(session, Deal, id, tenant))


@app.put("/deals/{id}")
def replace_deal(tenant: Tenant, id: Id, given: DealIn) -> DealOut:
    with Sessions.begin() as session:
        deal = find(session, Deal, id, tenant)
        crm.rewrite_deal(session, deal, **fields(session, given, tenant))
        return DealOut.model_validate(deal)


@app.delete("/deals/{id}", status_code=204)
def delete_deal(tenant: Tenant, id: Id) -> None:
    with Sessions.begin() as session:
        crm.drop_deal(session, find(session, Deal, id, tenant))


# -- search ----------------------------------------------------------------------------------------------------------


@app.get("/search")
async def search(
    tenant: Tenant, q: Text, index: Literal["accounts", "contacts", "deals"] = "contacts", limit: Limit = 10
) -> list[Found]:
    """Words, their beginnings and misspelt words; the best matches first."""
    ask = partial(search_index, INDEXES[index], q, tenant=tenant, limit=limit)
    try:
        # In threads of its own: a search engine that hangs must not take those of the endpoints that write.
        with anyio.fail_after(5):
            hits = await run_sync(ask, limiter=searchers)
    except IndexMissing:
        return []  # nothing was written to it yet
    except (DestinationError, TimeoutError) as error:
        log.warning("no search: %s", error or "too many wait for one")
        raise HTTPException(
            503,
            "the search does not answer at present, try again later; all else does, and what is written meanwhile "
            "will be found",
            {"Retry-After": "5"},
        ) from error
    return [Found(id=int(hit.document_id), score=hit.score, document=hit.source) for hit in hits]
