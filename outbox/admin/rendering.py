"""Templates become pages."""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from outbox.admin import formats
from outbox.admin.filter import QUALIFIERS
from outbox.admin.roles import Operator
from outbox.settings.tokens import Role

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=formats.visible,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= formats.FILTERS
_environment.globals["QUALIFIERS"] = QUALIFIERS


_ADDRESS: Final = re.compile(r' (?:href|src|action|formaction)="(?=/)')
"""Before each address of a page here. What was stored cannot look like it: its quotes are escaped."""


def page(request: Request, template: str, status: int = 200, **shown: Any) -> HTMLResponse:
    """A page of the dashboard, for whoever asks. Templates name addresses as if no proxy were there."""
    operator: Operator | None = request.scope.get("outbox.operator")
    shown |= {"operator": operator, "may": operator.role if operator else Role.ADMINISTER, "Role": Role}
    done = request.query_params.get("done", "")[:500]
    made = _environment.get_template(template).render(path=request.scope["outbox.path"], done=done, **shown)
    root_path = request.app.state.context.root_path
    return HTMLResponse(_ADDRESS.sub(rf"\g<0>{root_path}", made) if root_path else made, status)


def error_page(request: Request, status: int, detail: str) -> Response | None:
    """An error as a browser gets it; None for programs, which get JSON."""
    if request.scope["outbox.path"].startswith("/api/v1/") or "text/html" not in request.headers.get("accept", ""):
        return None
    return page(request, "error.html", status, title=HTTPStatus(status).phrase, detail=detail)
