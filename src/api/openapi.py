"""The OpenAPI document and the pages that show it, from packaged files, without internet.

Deliberately absent: the endpoints; they describe themselves, and here is what they have in common.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import msgspec
from litestar import Litestar, Request, Response, Router, get
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import RedocRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme, Tag
from litestar.static_files import create_static_files_router
from litestar.types import ControllerRouterHandler
from msgspec import Struct

from api.problems import MEDIA_TYPE, ProblemDetails

ASSETS: Final = "/docs/assets"

_PAGE_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; worker-src blob:"
    )
}
"""The pages ask nobody but us for anything."""

_TICKET: Final[dict[str, Any]] = {
    "id": "01a20a58-ca6b-71ac-903d-6ff6d25faa81",
    "number": "TKT-2026-000042",
    "version": 1,
    "title": "Production server down",
    "description": "Web server not responding",
    "category": "INCIDENT",
    "priority": "P1",
    "status": "NEW",
    "environment": "PRODUCTION",
    "affected_service": "web-app-01",
    "tags": ["web"],
    "requester_id": "01a20a58-ca61-7021-bac3-1f6ca509c2fb",
    "assignee_id": None,
    "team": None,
    "resolution_notes": None,
    "sla": {
        "response_due_at": "2026-11-23T22:38:40.875355Z",
        "resolution_due_at": "2026-11-24T01:38:40.875355Z",
        "responded_at": None,
        "paused_since": None,
        "response_breached": False,
        "resolution_breached": False,
    },
    "comment_count": 0,
    "attachment_count": 0,
    "reopen_count": 0,
    "deleted": False,
    "created_at": "2026-11-23T21:38:40.875355Z",
    "updated_at": "2026-11-23T21:38:40.875355Z",
    "resolved_at": None,
    "closed_at": None,
}

_COMMENT: Final[dict[str, Any]] = {
    "id": "01a20a5b-0d1e-7a30-8c31-0fb0f6b4fb10",
    "ticket_id": _TICKET["id"],
    "body": "It began after the upgrade",
    "internal": True,
    "system": False,
    "author": {"id": _TICKET["requester_id"], "username": "alice", "role": "TEAM_LEAD"},
    "created_at": "2026-11-23T21:41:00.125Z",
    "edited_at": None,
}

_ATTACHMENT: Final[dict[str, Any]] = {
    "id": "01a20a5c-1f00-7b10-9d5e-6a7c1c0f5b21",
    "ticket_id": _TICKET["id"],
    "filename": "proxy.log",
    "content_type": "text/plain",
    "size": 18_231,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "scan": "clean",
    "uploaded_by": {"id": _TICKET["requester_id"], "username": "alice", "role": "TEAM_LEAD"},
    "created_at": "2026-11-23T21:42:00.125Z",
}

_BODY_EXAMPLES: Final[dict[str, Any]] = {
    "createTicket": {
        "title": "Production server down",
        "description": "Web server not responding",
        "category": "INCIDENT",
        "priority": "P1",
        "environment": "PRODUCTION",
        "affected_service": "web-app-01",
        "tags": ["web"],
    },
    "replaceTicket": {
        "title": "Production web server down",
        "description": "502 from the proxy since 21:30",
        "category": "INCIDENT",
        "priority": "P2",
        "environment": "PRODUCTION",
        "affected_service": "web-app-01",
        "tags": ["web", "proxy"],
    },
    "editTicket": {"priority": "P2", "affected_service": None},
    "assignTicket": {"team": "Network", "reason": "They run the proxy"},
    "changeStatus": {"status": "IN_PROGRESS", "reason": "Looking into it"},
    "resolveTicket": {"resolution_notes": "Restarted the proxy and raised its limits"},
    "closeTicket": {"reason": "Confirmed by the requester"},
    "reopenTicket": {"reason": "It is down again"},
    "addComment": {"body": "It began after the upgrade", "internal": True},
    "editComment": {"body": "It began after the upgrade at 21:10"},
}
"""An example of each command's body, by operation."""

_ENTRY: Final[dict[str, Any]] = {
    "position": 17,
    "version": 2,
    "action": "STATUS_CHANGE",
    "actor": {"id": _TICKET["requester_id"], "username": "alice", "role": "TEAM_LEAD"},
    "ip_address": "192.0.2.7",
    "occurred_at": "2026-11-23T21:40:00Z",
    "recorded_at": "2026-11-23T21:40:00.002Z",
    "changes": [{"field": "status", "old": "NEW", "new": "OPEN"}],
    "reason": None,
    "command_id": "01a20a5a-0000-7000-8000-000000000000",
    "metadata": {"request_id": "5c0de"},
}

_EVENT: Final[dict[str, Any]] = {
    "specversion": "1.0",
    "id": "17",
    "source": "/api/v1/events",
    "type": "ticket.status_changed.v1",
    "subject": _TICKET["id"],
    "time": "2026-11-23T21:40:00Z",
    "datacontenttype": "application/json",
    "sequence": "0000000000000000017",
    "ticketversion": 2,
    "data": _ENTRY,
    "ticketnumber": _TICKET["number"],
}

_NOTE: Final = (
    "tickets\n17\nRSNUDxUEzRcQDEg16Ft+79SZEVgPjv/wWZqPKDvmueM=\ntime 2026-11-23T21:45:00.000000Z\nprevious none\n\n"
    "— tickets "
    "O5Is8fuOPa4N3tShdwnl6blVW68xoETdVuFULcybDkit4BKsx9vg4OwwddUoDrDm9R3KNoJphREkK0DuFmkGeIbAhwU=\n"
)

_CHECKPOINT: Final[dict[str, Any]] = {
    "size": 17,
    "root": "RSNUDxUEzRcQDEg16Ft+79SZEVgPjv/wWZqPKDvmueM=",
    "time": "2026-11-23T21:45:00Z",
    "note": _NOTE,
}

_PUBLIC_KEY: Final = "tickets+3b922cf1+AUvq3isjNDC5cYuqzs8P4FHLIqILbXmlqfxa2HOI4vc8"

_ANSWERS: Final[dict[str, Any]] = {
    "EventList": {"items": [_EVENT], "next_after": 17, "end_of_stream": True},
    "LedgerView": {"size": 18, "seal": "9f86d081884c7d65" * 4, "checkpoint": _NOTE, "public_key": _PUBLIC_KEY},
    "CheckpointList": {
        "items": [_CHECKPOINT],
        "page": 1,
        "page_size": 20,
        "total": 1,
        "total_is_exact": True,
        "next_cursor": None,
    },
    "Consistency": {"first": _CHECKPOINT, "second": _CHECKPOINT, "path": []},
    "Proof": {
        "fact": {
            "position": 17,
            "stream_id": _TICKET["id"],
            "version": 2,
            "topic": "ticket.status_changed.v1",
            "occurred_at": "2026-11-23T21:40:00.000000Z",
            "metadata": '{"actor":…}',
            "state": '{"originator_id":…}',
        },
        "leaf": "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=",
        "inclusion": {"index": 16, "size": 17, "path": ["RSNUDxUEzRcQDEg16Ft+79SZEVgPjv/wWZqPKDvmueM="]},
        "checkpoint": _NOTE,
        "public_key": _PUBLIC_KEY,
    },
    "TicketView": _TICKET,
    "TicketList": {
        "items": [_TICKET],
        "page": 1,
        "page_size": 20,
        "total": 1,
        "total_is_exact": True,
        "next_cursor": None,
    },
    "History": {
        "items": [_ENTRY],
        "page": 1,
        "page_size": 20,
        "total": 1,
        "total_is_exact": True,
        "next_cursor": None,
    },
    "CommentView": _COMMENT,
    "CommentList": {
        "items": [_COMMENT],
        "page": 1,
        "page_size": 20,
        "total": 1,
        "total_is_exact": True,
        "next_cursor": None,
    },
    "AttachmentView": _ATTACHMENT,
    "AttachmentList": {
        "items": [_ATTACHMENT],
        "page": 1,
        "page_size": 20,
        "total": 1,
        "total_is_exact": True,
        "next_cursor": None,
    },
    "Counts": {
        "total": 42,
        "status": {
            "NEW": 4,
            "OPEN": 7,
            "IN_PROGRESS": 9,
            "PENDING_INFO": 3,
            "ESCALATED": 1,
            "RESOLVED": 6,
            "CLOSED": 11,
            "REOPENED": 1,
        },
        "priority": {"P1": 2, "P2": 8, "P3": 27, "P4": 5},
        "category": {"INCIDENT": 20, "SERVICE_REQUEST": 12, "CHANGE_REQUEST": 4, "PROBLEM": 2, "QUESTION": 4},
        "team": {"Network": 17},
        "assignee": {_TICKET["requester_id"]: 5},
        "unassigned": 37,
        "breached": 3,
    },
    "Diff": {
        "from": 1,
        "to": 3,
        "changes": [{"field": "status", "old": "NEW", "new": "OPEN"}],
        "versions": 2,
        "actors": [{"id": _TICKET["requester_id"], "username": "alice", "role": "TEAM_LEAD"}],
    },
    "Blame": {
        "version": 2,
        "items": [
            {
                "field": "status",
                "value": "OPEN",
                "since": "2026-11-23T21:40:00Z",
                "version": 2,
                "position": 17,
                "actor": {"id": _TICKET["requester_id"], "username": "alice", "role": "TEAM_LEAD"},
                "command_id": "01a20a5a-0000-7000-8000-000000000000",
            }
        ],
    },
    "Transitions": {
        "status": "RESOLVED",
        "items": [
            {"to": "CLOSED", "allowed": True, "reason": None},
            {"to": "REOPENED", "allowed": True, "reason": None},
        ],
    },
}
"""An example of each answer, by its type."""

_COMMON_PROBLEMS: Final = {
    400: "Malformed or out of range; `errors` names the fields.",
    401: "No good token.",
    404: "Not there, or not yours to see.",
    503: "Overloaded, or the database is away. `Retry-After` says when to try again.",
}
_COMMAND_PROBLEMS: Final = {
    403: "Your role may not.",
    409: "The state says no.",
    412: "If-Match was stale; `current_version` and `events` say what happened.",
    413: "The body is too large.",
    415: "Not JSON; or a file of a kind that is not taken.",
    422: "Understood, cannot be done.",
    428: "If-Match is required here.",
}


def answers(status: int, kind: type | None, description: str) -> dict[int, ResponseSpec]:
    """What an endpoint can answer: its success, and the problems that its half of the API has."""
    return {
        status: ResponseSpec(kind, description=description, generate_examples=False),
        **{
            code: ResponseSpec(ProblemDetails, description=text, media_type=MEDIA_TYPE, generate_examples=False)
            for code, text in (_COMMON_PROBLEMS | _COMMAND_PROBLEMS).items()
        },
    }


_COMMAND_HEADERS: Final = {
    "Idempotency-Key": "1 to 255 characters, bare or quoted. The same key and body gives the first answer again.",
    "If-Match": "The ETag that the command is meant for; 412 if the ticket has moved on.",
    "Prefer": "`return=minimal` leaves the body out of the answer.",
}
_QUERY_HEADERS: Final = {
    "Ledger-Position": "Answer no older than this position, which an earlier answer gave.",
}
_UPLOAD: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "additionalProperties": False,
                "properties": {"file": {"type": "string", "contentMediaType": "application/octet-stream"}},
            },
            "encoding": {"file": {"contentType": "application/octet-stream"}},
        }
    },
}
_BYTES: Final[dict[str, Any]] = {
    "application/octet-stream": {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
}
_PARTIAL: Final = {"Range": "`bytes=first-last`: one part of the bytes.", "If-Range": "Only if it still has this ETag."}
_WAITING: Final = {
    "Prefer": "`wait=N`: if there is nothing yet, wait for it, so many seconds at most (RFC 7240).",
    "Last-Event-ID": "Of a stream: begin after this id, whatever `after` says.",
}
_EVENT_STREAM: Final[dict[str, Any]] = {
    "schema": {"type": "string", "description": "Server-sent events; `data` is a CloudEvent, `id` its position."},
    "example": f"retry: 1000\n\nid: 17\ndata: {msgspec.json.encode(_EVENT).decode()}\n\n:\n\n",
}
_FURTHER_PROBLEMS: Final[dict[str, dict[int, str]]] = {
    "getAttachment": {409: "In quarantine.", 416: "The file has no such part."},
    "getProof": {403: "Only staff may.", 409: "Not under a checkpoint yet; `Retry-After` says when to ask again."},
}
"""What single queries can answer beside what all can."""
_PROBLEM: Final[dict[str, Any]] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
_STANDING: Final[dict[str, Any]] = {"application/json": {"schema": {"type": "object"}}}
_TEXT: Final[dict[str, Any]] = {"text/plain": {"schema": {"type": "string"}}}
_SYSTEM: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "health": {"200": {"description": "How it is.", "content": _STANDING}},
    "ready": {
        "200": {"description": "Send requests here.", "content": _STANDING},
        "503": {"description": "The database is away; do not.", "content": _STANDING},
    },
    "metrics": {"200": {"description": "In Prometheus' text format.", "content": _TEXT}},
    "explainProblem": {
        "200": {"description": "What it means.", "content": _TEXT},
        "404": {"description": "There is no such kind of problem.", "content": _PROBLEM},
    },
}
"""What can be answered outside the two halves."""
_BY_THE_SERVER: Final[dict[str, dict[str, Any]]] = {
    "414": {"description": "Path and query are over 64 KiB; refused without a body."},
    "431": {"description": "Path, query and headers are over 64 KiB, or too many; refused without a body."},
}
"""What the server answers before there is a request for anybody to look at."""
_CONDITIONAL: Final = {"If-None-Match": "304 if it still has this ETag."}
_MADE: Final = {"createTicket": "ticket_id", "addComment": "comment_id", "addAttachment": "attachment_id"}
"""How the paths of other operations call what an operation makes."""
_MINIMAL: Final = {"description": "Done; what `Prefer: return=minimal` asked for."}
_NOT_MODIFIED: Final = {"description": "It still has the ETag that `If-None-Match` named."}


def documentation(
    routes: Sequence[ControllerRouterHandler],
    queries: Mapping[str, type[Struct]],
    bodies: Mapping[str, type[Struct]],
    title: str,
    version: str,
) -> list[ControllerRouterHandler]:
    """The routes that show what `routes` are: /openapi.json, /docs, /redoc, and the files that those need.

    `queries` has the query parameters of an operation, by its id, `bodies` what its body is.

    The document is made when it is first asked for, in a thread: that takes as long as all the rest of a start.
    """

    @cache
    def document() -> dict[str, Any]:
        return _document(routes, queries, bodies, title, version)

    icon = f'<link rel="icon" href="{ASSETS}/swagger-ui-dist/favicon-32x32.png">'
    swagger = SwaggerRenderPlugin(
        js_url=f"{ASSETS}/swagger-ui-dist/swagger-ui-bundle.js",
        css_url=f"{ASSETS}/swagger-ui-dist/swagger-ui.css",
        standalone_preset_js_url=f"{ASSETS}/swagger-ui-dist/swagger-ui-standalone-preset.js",
        favicon=icon,
    )
    redoc = RedocRenderPlugin(js_url=f"{ASSETS}/redoc/bundles/redoc.standalone.js", google_fonts=False, favicon=icon)

    @get("/openapi.json", sync_to_thread=True)
    def openapi_json() -> Response[bytes]:
        return Response(msgspec.json.encode(document()), media_type="application/json")

    @get("/docs", sync_to_thread=True)
    def docs(request: Request[Any, Any, Any]) -> Response[bytes]:
        return Response(swagger.render(request, document()), media_type="text/html", headers=_PAGE_HEADERS)

    @get("/redoc", sync_to_thread=True)
    def redoc_page(request: Request[Any, Any, Any]) -> Response[bytes]:
        return Response(redoc.render(request, document()), media_type="text/html", headers=_PAGE_HEADERS)

    @get("/", sync_to_thread=False)
    def root() -> Response[None]:
        return Response(None, status_code=303, headers={"Location": "/docs"})

    return [openapi_json, docs, redoc_page, root, _assets()]


def _document(
    routes: Sequence[ControllerRouterHandler],
    queries: Mapping[str, type[Struct]],
    bodies: Mapping[str, type[Struct]],
    title: str,
    version: str,
) -> dict[str, Any]:
    """What the routes are, by an application of its own.

    The one that serves would add its own pages and its own way of saying 404.
    """
    described = Litestar(
        list(routes),
        openapi_config=OpenAPIConfig(
            title=title,
            version=version,
            description="Tickets, event-sourced: commands append facts, queries read what follows from them.",
            use_handler_docstrings=True,
            tags=[
                Tag(
                    "Commands",
                    "What changes something. Each answers with the `Ledger-Position` of what it wrote, or if it was "
                    "refused, of what it was refused for.",
                ),
                Tag("Queries", "What only looks. Each says in `Ledger-Position` how far its data goes."),
                Tag("System", "For operators."),
            ],
            components=Components(
                security_schemes={"bearer": SecurityScheme(type="http", scheme="bearer", bearer_format="JWT")}
            ),
        ),
        logging_config=None,
    )
    document = described.openapi_schema.to_schema()
    _complete(document, queries, bodies)
    return document


def _complete(
    document: dict[str, Any], queries: Mapping[str, type[Struct]], bodies: Mapping[str, type[Struct]]
) -> None:
    """Add what all commands and all queries have in common, their bodies and parameters, and the examples."""
    components = document["components"]["schemas"]
    for path in document["paths"].values():
        for method, operation in path.items():
            headers = {"Commands": _COMMAND_HEADERS, "Queries": _QUERY_HEADERS}.get(operation["tags"][0], {})
            if operation["tags"] == ["System"]:
                operation["responses"] = _SYSTEM[operation["operationId"]]
            if operation["operationId"] in ("getTicket", "getAttachment"):
                headers = headers | _CONDITIONAL
                operation["responses"]["304"] = _NOT_MODIFIED
            if operation["operationId"] == "getAttachment":
                headers = headers | _PARTIAL
                for code in ("200", "206"):
                    operation["responses"][code]["content"] = _BYTES
            if operation["operationId"] == "addAttachment":
                operation["requestBody"] = _UPLOAD
            if operation["operationId"] == "listEvents":
                headers = headers | _WAITING
                operation["responses"]["200"]["content"]["text/event-stream"] = _EVENT_STREAM
            if operation["tags"] == ["Commands"] and "200" in operation["responses"]:
                operation["responses"]["204"] = _MINIMAL
            parameters = [
                {
                    "name": name,
                    "in": "header",
                    "description": text,
                    "required": False,
                    "schema": {"type": "string"},
                }
                for name, text in headers.items()
            ]
            if operation["operationId"] in queries:
                parameters += _parameters(queries[operation["operationId"]], components)
            if parameters:
                operation["parameters"] = [*operation.get("parameters", []), *parameters]
            if operation["operationId"] in bodies:
                kinds = (
                    ("application/json", "application/merge-patch+json") if method == "patch" else ("application/json",)
                )
                operation["requestBody"] = _body(operation["operationId"], bodies, kinds, components)
            for response in operation["responses"].values():
                for media in response.get("content", {}).values():
                    answer = media["schema"].get("$ref", "").rpartition("/")[2]
                    if answer in _ANSWERS:  # here and not as litestar's Example, which loses what is null
                        media["example"] = _ANSWERS[answer]
            if operation["tags"] == ["Queries"]:
                further: dict[str, Any] = {}
                for status in _COMMAND_PROBLEMS:
                    problem = operation["responses"].pop(str(status))
                    for extra, why in _FURTHER_PROBLEMS.get(operation["operationId"], {}).items():
                        further[str(extra)] = {**problem, "description": why}
                operation["responses"] |= further
            operation["responses"] |= _BY_THE_SERVER
            if operation["operationId"] in _MADE:
                operation["responses"]["201"]["links"] = _links(document["paths"], _MADE[operation["operationId"]])


def _links(paths: dict[str, Any], parameter: str) -> dict[str, Any]:
    """To every operation whose path has this parameter, from an answer that has its value in `id`."""
    return {
        operation["operationId"]: {
            "operationId": operation["operationId"],
            "parameters": {parameter: "$response.body#/id"},
        }
        for path, operations in paths.items()
        if f"{{{parameter}}}" in path
        for operation in operations.values()
    }


def _body(
    operation: str, bodies: Mapping[str, type[Struct]], kinds: Sequence[str], components: dict[str, Any]
) -> dict[str, Any]:
    """A request's body; what it is made of is added to the components."""
    (schema,), defined = msgspec.json.schema_components([bodies[operation]], ref_template="#/components/schemas/{name}")
    for name, one in defined.items():
        components.setdefault(name, one)
    optional = not defined[bodies[operation].__name__].get("required")
    media = {"schema": schema, "example": _BODY_EXAMPLES[operation]}
    return {"required": not optional, "content": dict.fromkeys(kinds, media)}


def _parameters(query: type[Struct], components: dict[str, Any]) -> list[dict[str, Any]]:
    """The fields of a query's Struct as parameters; what they refer to is added to the components."""
    _, defined = msgspec.json.schema_components([query], ref_template="#/components/schemas/{name}")
    fields = defined.pop(query.__name__)["properties"]
    for name, schema in defined.items():
        components.setdefault(name, schema)
    return [
        {"name": name, "in": "query", "required": False, "schema": _not_null(schema)} for name, schema in fields.items()
    ]


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter that is not there is not null but not there."""
    rest = [one for one in schema.get("anyOf", []) if one != {"type": "null"}]
    if len(rest) == 1:
        schema = {
            **{key: value for key, value in schema.items() if key not in ("anyOf", "default")},
            **rest[0],
        }
    if schema.get("default") is None:
        schema = {key: value for key, value in schema.items() if key != "default"}
    return schema


def _assets() -> Router:
    """The scripts and styles of the documentation pages, as drf-spectacular-sidecar packages them."""
    package = find_spec("drf_spectacular_sidecar")
    if package is None or package.origin is None:
        raise RuntimeError("drf-spectacular-sidecar is not installed; the documentation pages are made of it")
    folder = Path(package.origin).parent / "static" / "drf_spectacular_sidecar"
    return create_static_files_router(ASSETS, [folder], include_in_schema=False, name="docs")
