"""What a client gets: every error as JSON, with what, where and how to fix it, and a status that fits."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

from qwendet.errors import EnvironmentLacksError, Problem, QwendetError

MOST_PROBLEMS_SHOWN = 10


class RefusedError(QwendetError):
    """A request that is not answered: status of HTTP, what is wrong, in which field, what to send instead."""

    def __init__(self, status: int, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.status = status


def response_to(error: QwendetError) -> JSONResponse:
    """An error as its answer; images and labels that cannot be used are 422."""
    status = error.status if isinstance(error, RefusedError) else 422
    if isinstance(error, EnvironmentLacksError):
        status = 503
    problems = [{"what": item.what, "where": item.where, "fix": item.fix} for item in error.problems]
    body: dict[str, Any] = {
        "message": str(error),
        "type": "server_error" if status >= 500 else "invalid_request_error",
        "code": status,
        "problems": problems,
    }
    headers = {"Retry-After": "1"} if status == 503 else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": body}, status, headers)


def unfit(error: ValidationError, body: type[BaseModel], status: int) -> RefusedError:
    """All that is wrong with a request's fields."""
    refusal = RefusedError(status, "")
    refusal.problems = tuple(
        _problem(detail, body) for detail in error.errors(include_url=False)[:MOST_PROBLEMS_SHOWN]
    )
    return refusal


def _problem(detail: Any, body: type[BaseModel]) -> Problem:
    where, said = ".".join(map(str, detail["loc"]))[:100], str(detail["msg"])
    if detail["type"] == "extra_forbidden":
        return Problem("unknown field", where, f"leave it out; known are {', '.join(body.model_fields)}")
    if detail["type"] == "value_error":
        what, _, fix = str(detail["ctx"]["error"]).partition("; ")
        return Problem(what, where, fix)
    if detail["type"] == "json_invalid":
        return Problem(said[:1].lower() + said[1:], "body", "send one JSON object")
    what = f"{said[:1].lower()}{said[1:]}, got {detail['input']!r:.60}"
    return Problem(what, where or "body", "correct it, or leave it out if it may be absent")
