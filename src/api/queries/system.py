"""What operators and browsers look at: health, readiness, metrics, what a problem means.

Outside the API's prefix and without a token. Deliberately absent: anything about a ticket.
"""

from typing import Any

import msgspec
from litestar import Response, get
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api.problems import PROBLEMS, AnyRequest
from api.requests import Installation, installation
from tickets.errors import NotFound


def _health(served: Installation) -> dict[str, Any]:
    behind = max(0, served.ledger.newest - served.freshness.projected)
    ok = served.ledger.connected
    return {
        "status": "ok" if ok else "degraded",
        "service": served.settings.service_name,
        "version": served.settings.service_version,
        "ledger": {
            "connected": ok,
            "position": served.ledger.newest,
            "waiting": served.ledger.waiting,
        },
        "projections": {
            "position": served.freshness.projected,
            "behind": behind,
            "sampled": served.sampler.sampled,
            "drifted": [str(ticket) for ticket in served.sampler.found],
            **({} if (seen := served.watch.seen) is None else msgspec.to_builtins(seen) | {"behind": behind}),
        },
        **({} if served.checkpointer is None else {"checkpoints": served.checkpointer.health}),
    }


@get("/health", operation_id="health", tags=["System"])
async def health(request: AnyRequest) -> Response[bytes]:
    """Whether the process is alive, and how it is: always 200 as long as it can answer."""
    return Response(msgspec.json.encode(_health(installation(request))), media_type="application/json")


@get("/ready", operation_id="ready", tags=["System"])
async def ready(request: AnyRequest) -> Response[bytes]:
    """Whether to send requests here: 503 while the database is away."""
    told = _health(installation(request))
    status = 200 if told["status"] == "ok" else 503
    headers = {} if status == 200 else {"Retry-After": "1"}
    return Response(msgspec.json.encode(told), status_code=status, media_type="application/json", headers=headers)


@get("/metrics", operation_id="metrics", tags=["System"])
async def metrics() -> Response[bytes]:
    """Prometheus metrics."""
    return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@get("/problems/{slug:str}", operation_id="explainProblem", tags=["System"])
async def explain_problem(slug: str) -> Response[str]:
    """What a kind of problem means and what to do about it."""
    kind = PROBLEMS.get(slug)
    if kind is None:
        raise NotFound
    return Response(f"{kind.status} {kind.title}\n\n{kind.advice}\n", media_type="text/plain")
