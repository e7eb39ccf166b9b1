"""What comes in through the API, as pydantic models."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from outbox.admin.shapes import Model, Number, Text


class DeadSelection(Model):
    """Dead rows: those named, or all that fit what else is given."""

    ids: list[Number] = Field([], max_length=1_000)
    index: Text | None = None
    tenant_id: Text | None = None
    error_type: Text | None = None
    all: bool = Field(False, description="must be true if nothing else is given")

    @model_validator(mode="after")
    def _says_which(self) -> DeadSelection:
        if not (self.ids or self.index or self.tenant_id or self.error_type or self.all):
            raise ValueError("say which rows: ids, index, tenantId, errorType, or all")
        return self

    def words(self) -> dict[str, Any]:
        """As the store asks for them."""
        return {"ids": self.ids, "index": self.index, "tenant": self.tenant_id, "error_type": self.error_type}


class ResumeRequest(Model):
    """What was paused by the same words; with neither, the pause of everything."""

    index: Text | None = None
    tenant_id: Text | None = None


class PauseRequest(ResumeRequest):
    """Rows of an index, of a tenant, or of a tenant in an index; with neither, all."""

    reason: Text = Field(description="why; shown by status and dashboard")


class VerifyRequest(Model):
    """What to compare; everything by default."""

    entity: Text | None = None
    tenant_id: Text | None = None
    sample: float = Field(1.0, ge=0.001, le=1, description="part of the documents, 1: all")
    repair: bool = Field(False, description="write a refresh row for each document that is wrong")


# -- what goes out ----------------------------------------------------------------------------------------------------


class ReindexRequest(Model):
    """Which index to rebuild; with a tenant or a date only that part, in place."""

    entity: Text = Field(description="name of a registered entity")
    tenant_id: Text | None = None
    from_date: Text | None = Field(None, description="only rows that changed from then on, e.g. 2026-11-01")


class DocumentChoice(Model):
    index: Text
    document_id: Text
