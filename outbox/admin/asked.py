"""What comes in through the API, as pydantic models."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from outbox.admin.shapes import Model, Number, Text
from outbox.settings import SPAN


class RowSelection(Model):
    """Rows that fit all that is given."""

    ids: list[Number] = Field([], max_length=1_000)
    document: Text | None = None
    index: Text | None = None
    tenant_id: Text | None = None
    older_than: str | None = Field(None, pattern=f"^{SPAN}$", description="written longer ago, e.g. 36h or 7d")
    all: bool = Field(False, description="must be true if nothing else is given")
    dry_run: bool = Field(False, description="say how many they are, and change nothing")

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        if not (any(self.words().values()) or self.all):
            raise ValueError(
                "say which rows: ids, document, index, tenantId, olderThan, of dead ones errorType, errorField, or all"
            )
        return self

    def words(self) -> dict[str, Any]:
        """What is given, as commands call it."""
        return {
            "ids": self.ids,
            "document": self.document,
            "index": self.index,
            "tenant": self.tenant_id,
            "older_than": self.older_than,
        }


class DeadSelection(RowSelection):
    """Dead rows that fit all that is given."""

    error_type: Text | None = None
    error_field: Text | None = Field(None, description="the field that the error names; (none): it names none")

    def words(self) -> dict[str, Any]:
        return {**super().words(), "error_type": self.error_type, "error_field": self.error_field}


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


class ReindexRequest(Model):
    """Which index to rebuild; with a tenant or a date only that part, in place."""

    entity: Text = Field(description="name of a registered entity")
    tenant_id: Text | None = None
    from_date: Text | None = Field(None, description="only rows that changed from then on, e.g. 2026-11-01")
    keep_old: bool = Field(False, description="keep sending rows to the old index too, for a rollback")


class DocumentChoice(Model):
    index: Text
    document_id: Text
