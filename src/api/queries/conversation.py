"""The queries about what was said of a ticket, and about the files that came with it.

Deliberately absent: where the bytes are (api/files/).
"""

import re
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

from litestar import get
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Struct

from api.openapi import answers
from api.problems import Problem
from api.queries.answering import (
    QUERY,
    ListedOfTicket,
    NoQuery,
    ThenQuery,
    growing,
    lived,
    version_then,
    visible_ticket,
)
from api.requests import Answer, ApiRequest, header, installation, not_modified, query
from projections import attachments, comments, past
from projections.attachments import AttachmentView
from projections.comments import CommentView
from tickets.errors import NotFound
from tickets.values import Scan

_RANGE: Final = re.compile(r"(?i:bytes)=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})")

CONVERSATION_QUERIES: Final[dict[str, type[Struct]]] = {
    "listComments": ThenQuery,
    "listAttachments": ThenQuery,
    "getAttachment": NoQuery,
}
"""The parameters of each operation here."""


class CommentList(ListedOfTicket):
    """A page of a ticket's comments, oldest first."""

    items: list[CommentView]


class AttachmentList(ListedOfTicket):
    """A page of a ticket's attachments, oldest first."""

    items: list[AttachmentView]


class Download(Struct, frozen=True):
    """An answer that is streamed."""

    headers: dict[str, str]
    body: Any
    """An async iterator of bytes, which litestar would want to describe."""
    status: int

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        """Send it (ASGI)."""
        headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        if not scope["state"].get("head"):
            async for chunk in self.body:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@get(
    "/tickets/{ticket_id:uuid}/comments",
    operation_id="listComments",
    responses=answers(200, CommentList, "A page of comments."),
    **QUERY,
)
async def list_comments(request: ApiRequest, ticket_id: UUID) -> Answer:
    """What was said of the ticket, oldest first, with a line by the system for each change of status."""
    served, wanted = installation(request), query(request, ThenQuery)
    position = served.freshness.projected
    upto = await version_then(request, ticket_id, wanted.version, wanted.as_of)
    internal, after, page_size = request.user.is_staff, wanted.after, wanted.page_size
    if upto is None:
        await visible_ticket(request, ticket_id)
        read = await comments.read(served.ledger.pool, ticket_id, internal=internal, after=after, page_size=page_size)
    else:
        position = max(position, served.ledger.newest)
        found = await lived(request, ticket_id, upto)
        read = past.comments_then(found, internal=internal, after=after, page_size=page_size)
    return growing(request, read.docs, wanted, read, position)


@get(
    "/tickets/{ticket_id:uuid}/attachments",
    operation_id="listAttachments",
    responses=answers(200, AttachmentList, "A page of attachments."),
    **QUERY,
)
async def list_attachments(request: ApiRequest, ticket_id: UUID) -> Answer:
    """The files that are attached to the ticket, oldest first."""
    served, wanted = installation(request), query(request, ThenQuery)
    position = served.freshness.projected
    upto = await version_then(request, ticket_id, wanted.version, wanted.as_of)
    if upto is None:
        await visible_ticket(request, ticket_id)
        read = await attachments.read(served.ledger.pool, ticket_id, after=wanted.after, page_size=wanted.page_size)
    else:
        position = max(position, served.ledger.newest)
        found = await lived(request, ticket_id, upto)
        read = past.attachments_then(found, after=wanted.after, page_size=wanted.page_size)
    return growing(request, read.docs, wanted, read, position)


_BYTES: Final = {
    **answers(200, None, "The bytes."),
    206: ResponseSpec(None, description="The part of them that `Range` asked for.", generate_examples=False),
}


@get("/attachments/{attachment_id:uuid}", operation_id="getAttachment", responses=_BYTES, **QUERY)
async def get_attachment(request: ApiRequest, attachment_id: UUID) -> Download:
    """The bytes, or with `Range` a part of them; never to be shown inside a page."""
    query(request, NoQuery)
    served = installation(request)
    position = served.freshness.projected
    found = await attachments.find(served.ledger.pool, attachment_id)
    if found is None:
        raise NotFound
    await visible_ticket(request, found.ticket_id)
    if found.scan is Scan.QUARANTINED:
        raise Problem("file-quarantined", f"{found.filename} has not been found clean by the virus scanner.")
    etag = f'"{found.sha256}"'
    headers = {
        "ETag": etag,
        "Ledger-Position": str(position),
        "Cache-Control": "private, no-cache",
        "Accept-Ranges": "bytes",
    }
    if not_modified(request, etag):
        return Download(headers, _chained(), 304)
    start, end = _part(request, found.size, etag)
    partial = (start, end) != (0, found.size)
    if partial:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{found.size}"
    headers |= {
        "Content-Type": found.content_type,
        "Content-Length": str(end - start),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(found.filename, safe='')}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    bytes_ = served.files.storage.read(found.sha256, start, end)
    first = b"" if request.scope["state"].get("head") else await anext(bytes_, b"")  # while there can be another answer
    return Download(headers, _chained(first, bytes_), 206 if partial else 200)


CONVERSATION_QUERY_ROUTES: Final = (list_comments, list_attachments, get_attachment)
"""All queries about comments and attachments."""


async def _chained(first: bytes = b"", rest: AsyncIterator[bytes] | None = None) -> AsyncIterator[bytes]:
    if first:
        yield first
    if rest is not None:
        async for chunk in rest:
            yield chunk


def _part(request: ApiRequest, size: int, etag: str) -> tuple[int, int]:
    """What is asked for, from and up to but not including; all of it, where it is not one range (RFC 9110, 14.2)."""
    wanted = _RANGE.fullmatch(header(request, b"range") or "")
    whole = wanted is None or header(request, b"if-range") not in (None, etag)
    if wanted is None or whole or request.scope["state"].get("head"):
        return 0, size
    first, last = wanted["first"], wanted["last"]
    if not first and not last:
        return 0, size
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if first and last and int(last) < int(first):
        return 0, size
    if start >= size or (not first and int(last) == 0):
        raise Problem("range-not-satisfiable", f"The file has {size:,} bytes.", {"Content-Range": f"bytes */{size}"})
    return start, end
