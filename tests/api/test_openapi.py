"""The OpenAPI document and its pages: complete, true, and of use without internet."""

import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest

from api.commands import BODIES, COMMAND_ROUTES
from api.problems import PROBLEMS, ProblemDetails
from api.queries import QUERIES, QUERY_ROUTES
from api.queries.conversation import AttachmentList, CommentList
from api.queries.events import EventList
from api.queries.ledger import CheckpointList, Consistency, LedgerView
from api.queries.tickets import History, TicketList, Transitions
from projections.attachments import AttachmentView
from projections.comments import CommentView
from projections.counts import Counts
from projections.past import Blame, Diff
from projections.tickets import TicketView
from tests.conftest import NEW_TICKET, Service
from tickets.permissions import Role
from tickets.proofs import Proof

PREFIX = "/api/v1"
METHODS = {"get", "put", "post", "delete", "patch"}
CONTRACT = {400, 401, 403, 404, 409, 412, 413, 415, 422, 428, 429, 503}
BY_THE_SERVER = {414, 431}
"""What is said before the application has the request."""
SUCCESS = {200, 201, 204, 206, 304}
DOWNLOAD = {206, 304, 409, 416}
"""What only the download of a file can answer, of the queries."""
UPLOAD = "multipart/form-data"
ANSWERS: dict[str, Any] = {
    "TicketView": TicketView,
    "TicketList": TicketList,
    "History": History,
    "Transitions": Transitions,
    "CommentView": CommentView,
    "CommentList": CommentList,
    "AttachmentView": AttachmentView,
    "AttachmentList": AttachmentList,
    "Counts": Counts,
    "EventList": EventList,
    "Diff": Diff,
    "Blame": Blame,
    "LedgerView": LedgerView,
    "CheckpointList": CheckpointList,
    "Consistency": Consistency,
    "Proof": Proof,
}
CREATING = {"createTicket": "ticket_id", "addComment": "comment_id", "addAttachment": "attachment_id"}
"""What is answered by 201, with a body or without; and what the paths of other operations call what is made."""
OPERATIONS = sorted(str(route.operation_id) for route in (*COMMAND_ROUTES, *QUERY_ROUTES))

every_operation = pytest.mark.parametrize("name", OPERATIONS)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client(Role.ADMIN) as admin:
        yield admin


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    found: dict[str, Any] = answer.json()
    return found


class Operation:
    """One operation of the document, with where it is."""

    def __init__(self, document: dict[str, Any], name: str) -> None:
        ((self.path, self.method, self.said),) = (
            (path, method, operation)
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            if operation["operationId"] == name
        )

    @property
    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = self.said.get("requestBody", {}).get("content", {})
        return found

    @property
    def parameters(self) -> dict[tuple[str, str], dict[str, Any]]:
        found = self.said.get("parameters", [])
        named = {(one["in"], one["name"]): one for one in found}
        assert len(named) == len(found)
        return named


def references(value: Any) -> Iterator[str]:
    match value:
        case dict():
            for name, inner in value.items():
                if name == "$ref":
                    yield inner
                yield from references(inner)
        case list():
            for inner in value:
                yield from references(inner)
        case _:
            return


# The document


def test_the_document_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert document["info"]["title"]
    assert document["info"]["version"]
    assert {tag["name"] for tag in document["tags"]} == {"Commands", "Queries", "System"}
    assert all(tag["description"] for tag in document["tags"])
    assert document["components"]["securitySchemes"]["bearer"] == {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
    }


def test_every_operation_has_an_id_of_its_own_and_says_what_it_is(document: dict[str, Any]) -> None:
    ids = []
    for path, operations in document["paths"].items():
        assert path.startswith("/")
        assert operations.keys() <= METHODS
        for operation in operations.values():
            ids.append(operation["operationId"])
            assert operation["description"]
            assert operation["responses"]
            assert len(operation["tags"]) == 1
    assert len(ids) == len(set(ids))


def test_everything_that_is_referred_to_is_there(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert found
    for reference in found:
        place = document
        for step in reference.removeprefix("#/").split("/"):
            assert step in place, reference
            place = place[step]


def test_every_parameter_in_a_path_is_described_and_the_other_way_round(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            described = {one["name"]: one for one in operation.get("parameters", []) if one["in"] == "path"}
            assert set(described) == set(re.findall(r"{(\w+)}", path))
            assert all(one["required"] is True for one in described.values())


def test_the_document_has_every_route_of_the_application_and_no_other(document: dict[str, Any]) -> None:
    described = {
        (method.upper(), path.removeprefix(PREFIX))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if operation["tags"] != ["System"]
    }
    served = {
        (str(method), re.sub(r":\w+}", "}", path))
        for route in (*COMMAND_ROUTES, *QUERY_ROUTES)
        for path in route.paths
        for method in route.http_methods
    }
    assert described == served
    system = {
        path for path, operations in document["paths"].items() if operations.get("get", {}).get("tags") == ["System"]
    }
    assert system == {"/health", "/ready", "/metrics", "/problems/{slug}"}


@pytest.mark.parametrize(("tag", "routes"), [("Commands", COMMAND_ROUTES), ("Queries", QUERY_ROUTES)])
def test_commands_and_queries_are_told_apart_by_their_tag(document: dict[str, Any], tag: str, routes: Any) -> None:
    tagged = {
        operation["operationId"]
        for operations in document["paths"].values()
        for operation in operations.values()
        if operation["tags"] == [tag]
    }
    assert tagged == {route.operation_id for route in routes}
    for name in tagged:
        assert (Operation(document, name).method == "get") == (tag == "Queries")


@every_operation
def test_every_status_that_is_documented_is_one_of_the_contract(document: dict[str, Any], name: str) -> None:
    operation = Operation(document, name)
    statuses = {int(status) for status in operation.said["responses"]}
    assert statuses <= CONTRACT | SUCCESS | DOWNLOAD | BY_THE_SERVER
    assert len(statuses & SUCCESS) >= 1
    always = {400, 401, 404, 503}
    assert statuses >= (always if operation.method == "get" else always | {403, 409, 412, 413, 415, 422, 428})
    if operation.method == "get":
        assert not statuses & {412, 413, 415, 422, 428}
        further = {"getAttachment": {206, 409, 416}, "getProof": {403, 409}}
        assert statuses & {206, 403, 409, 416} == further.get(name, set())


@every_operation
def test_every_problem_is_documented_as_a_problem(document: dict[str, Any], name: str) -> None:
    operation = Operation(document, name)
    for status, response in operation.said["responses"].items():
        assert response["description"]
        if int(status) in BY_THE_SERVER:
            assert "content" not in response
        elif int(status) >= 400:
            assert list(response["content"]) == ["application/problem+json"]
            schema = response["content"]["application/problem+json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ProblemDetails"}
    assert operation.said["security"] == [{"bearer": []}]


@every_operation
def test_every_header_that_matters_is_documented(document: dict[str, Any], name: str) -> None:
    operation = Operation(document, name)
    headers = {header for place, header in operation.parameters if place == "header"}
    if operation.method == "get":
        assert headers >= {"Ledger-Position"}
        assert not headers & {"Idempotency-Key", "If-Match"}
        conditional = name in {"getTicket", "getAttachment"}
        assert ("If-None-Match" in headers) == ("304" in operation.said["responses"]) == conditional
        assert (headers >= {"Range", "If-Range"}) == (name == "getAttachment")
    else:
        assert headers >= {"Idempotency-Key", "If-Match", "Prefer"}
        assert ("204" in operation.said["responses"]) == (name not in CREATING)
        assert ("201" in operation.said["responses"]) == (name in CREATING)


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_parameter_is_documented_and_no_other(document: dict[str, Any], name: str) -> None:
    found = {name: one for (place, name), one in Operation(document, name).parameters.items() if place == "query"}
    assert set(found) == {field.encode_name for field in msgspec.structs.fields(QUERIES[name])}
    for one in found.values():
        assert one["required"] is False
        assert one["schema"]
        assert "null" not in str(one["schema"])


def test_what_a_list_can_be_asked_for_is_what_the_contract_says(document: dict[str, Any]) -> None:
    found = {name: one["schema"] for (place, name), one in Operation(document, "listTickets").parameters.items()}
    assert found.keys() >= {
        *("status", "priority", "category", "environment", "assignee_id", "team", "requester_id", "affected_service"),
        *("tag", "created_from", "created_to", "updated_from", "updated_to", "breached", "sort", "page", "page_size"),
        *("q", "cursor", "Ledger-Position"),
    }
    assert (found["page_size"]["minimum"], found["page_size"]["maximum"], found["page_size"]["default"]) == (1, 100, 20)
    assert found["page"]["minimum"] == 1
    assert "By default -created_at" in found["sort"]["description"]
    assert {"created_at", "-created_at", "updated_at", "priority", "-status"} <= set(found["sort"]["enum"])
    assert found["status"]["type"] == "array"


def test_the_bodies_are_closed(document: dict[str, Any]) -> None:
    for name in OPERATIONS:
        for kind, media in Operation(document, name).content.items():
            if kind == UPLOAD:
                assert media["schema"]["additionalProperties"] is False
                continue
            reference = next(references(media["schema"]), None)
            assert reference is not None
            schema = document["components"]["schemas"][reference.rpartition("/")[2]]
            assert schema["additionalProperties"] is False, name


@every_operation
def test_from_what_was_made_links_lead_to_all_that_can_be_done_with_it(document: dict[str, Any], name: str) -> None:
    responses = Operation(document, name).said["responses"]
    found = {(status, to): link for status, one in responses.items() for to, link in one.get("links", {}).items()}
    assert found == {
        ("201", other): {"operationId": other, "parameters": {CREATING[name]: "$response.body#/id"}}
        for other in OPERATIONS
        if name in CREATING and ("path", CREATING[name]) in Operation(document, other).parameters
    }
    assert bool(found) == (name in CREATING)


# Its examples

WAYS = {
    "assignTicket": (),
    "changeStatus": ("OPEN",),
    "resolveTicket": ("OPEN", "IN_PROGRESS"),
    "closeTicket": ("OPEN", "IN_PROGRESS", "RESOLVED"),
    "reopenTicket": ("OPEN", "IN_PROGRESS", "RESOLVED"),
}


def place(client: httpx.Client, operation: Operation, *steps: str) -> str:
    """The operation's path, for a ticket that has taken these steps and of which the client said something."""
    ticket = client.post(f"{PREFIX}/tickets", json=NEW_TICKET).json()["id"]
    for step in steps:
        moved = client.patch(f"{PREFIX}/tickets/{ticket}/status", json={"status": step, "reason": "because"})
        assert moved.status_code == 200
    path: str = operation.path.replace("{ticket_id}", ticket)
    if "{comment_id}" in path:
        comment = client.post(f"{PREFIX}/tickets/{ticket}/comments", json={"body": "Something"}).json()["id"]
        path = path.replace("{comment_id}", comment)
    if "{attachment_id}" in path:
        url = f"{PREFIX}/tickets/{ticket}/attachments"
        path = path.replace("{attachment_id}", client.post(url, files={"file": ("a.txt", b"Something")}).json()["id"])
    assert "{" not in path
    return path


def test_every_command_that_takes_a_body_says_so_and_no_other(document: dict[str, Any]) -> None:
    assert {name for name in OPERATIONS if Operation(document, name).content} == {*BODIES, "addAttachment"}
    assert list(Operation(document, "addAttachment").content) == [UPLOAD]


@pytest.mark.parametrize("name", sorted(BODIES))
def test_every_example_of_a_body_does_what_it_says(client: httpx.Client, document: dict[str, Any], name: str) -> None:
    operation = Operation(document, name)
    assert operation.content.keys() >= {"application/json"}
    assert ("application/merge-patch+json" in operation.content) == (operation.method == "patch")
    for kind, media in operation.content.items():
        example = media["example"]
        answer = client.request(
            operation.method,
            place(client, operation, *WAYS.get(name, ())),
            content=msgspec.json.encode(example),
            headers={"Content-Type": kind},
        )
        assert str(answer.status_code) in operation.said["responses"]
        assert answer.is_success, answer.text
        after = answer.json()
        for field, value in example.items():
            if field in after:
                assert after[field] == value


@every_operation
def test_every_example_of_an_answer_is_one(document: dict[str, Any], name: str) -> None:
    operation = Operation(document, name)
    if operation.method == "delete":
        assert "content" not in operation.said["responses"]["204"]
        return
    status = "201" if name in CREATING else "200"
    if name == "getAttachment":
        assert list(operation.said["responses"]["200"]["content"]) == ["application/octet-stream"]
        return
    media = operation.said["responses"][status]["content"]["application/json"]
    kind = ANSWERS[media["schema"]["$ref"].rpartition("/")[2]]
    decoded = msgspec.convert(media["example"], kind)
    assert msgspec.to_builtins(decoded).keys() == media["example"].keys()


def _under_a_checkpoint(client: httpx.Client, path: str) -> str:
    """The path for what has been signed: not this ticket, which is new, but the first of all facts."""
    oldest = client.get(f"{PREFIX}/events", params={"after": 0, "limit": 1}).json()["items"][0]
    _once_there_is_a_checkpoint(client, over=int(oldest["id"]))
    return re.sub(r"[0-9a-f-]{36}", oldest["subject"], path) + "?version=1"


def _once_there_is_a_checkpoint(client: httpx.Client, *, over: int = 1) -> None:
    deadline = time.monotonic() + 20
    while not any(one["size"] >= over for one in client.get(f"{PREFIX}/ledger/checkpoints").json()["items"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@every_operation
def test_every_answer_is_as_documented(client: httpx.Client, document: dict[str, Any], name: str) -> None:
    operation = Operation(document, name)
    if operation.method != "get":
        return
    path = place(client, operation)
    if name == "getProof":
        path = _under_a_checkpoint(client, path)
    if name == "getConsistency":
        _once_there_is_a_checkpoint(client)
    answer = client.get(path)
    assert answer.status_code == 200
    if name == "getAttachment":
        assert answer.content == b"Something"
        return
    media = operation.said["responses"]["200"]["content"]["application/json"]
    schema = document["components"]["schemas"][media["schema"]["$ref"].rpartition("/")[2]]
    assert set(answer.json()) == set(schema["required"])
    assert set(schema["properties"]) - set(schema["required"]) <= {"stale"}, "what is not always there"


@pytest.mark.parametrize("status", sorted(CONTRACT & {400, 401, 404, 409, 412, 415}))
def test_a_problem_is_as_documented(client: httpx.Client, document: dict[str, Any], status: int) -> None:
    ticket = client.post(f"{PREFIX}/tickets", json=NEW_TICKET).json()["id"]
    url = f"{PREFIX}/tickets/{ticket}"
    answer = {
        400: lambda: client.patch(url, json={"nope": 1}),
        401: lambda: client.get(url, headers={"Authorization": "Bearer x"}),
        404: lambda: client.get(f"{PREFIX}/tickets/{uuid4()}"),
        409: lambda: client.post(f"{url}/close"),
        412: lambda: client.patch(url, json={}, headers={"If-Match": '"9"'}),
        415: lambda: client.patch(url, content=b"x", headers={"Content-Type": "text/plain"}),
    }[status]()
    assert answer.status_code == status
    assert answer.json().keys() <= document["components"]["schemas"]["ProblemDetails"]["properties"].keys()
    assert msgspec.json.decode(answer.content, type=ProblemDetails).status == status
    explained = client.get(answer.json()["type"])
    assert explained.status_code == 200
    assert str(status) in explained.text


# What problems mean


@pytest.mark.parametrize("slug", PROBLEMS)
def test_every_kind_of_problem_is_explained_where_its_type_says(
    service: Service, client: httpx.Client, slug: str
) -> None:
    answer = client.get(f"/problems/{slug}", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    kind = PROBLEMS[slug]
    for text in (str(kind.status), kind.title, kind.advice):
        assert text in answer.text
    assert kind.status in CONTRACT | {405, 416, 500}
    assert service.url not in answer.text


# The pages


class _Links(HTMLParser):
    """What a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = {
            "script": ("src",),
            "link": ("href",),
            "img": ("src", "srcset"),
            "iframe": ("src",),
            "base": ("href",),
        }
        self.loaded += [value for name, value in attrs if value is not None and name in wanted.get(tag, ())]


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_a_page_needs_nothing_from_outside_and_all_it_loads_is_there(client: httpx.Client, page: str) -> None:
    answer = client.get(page, headers={"Authorization": ""})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    links = _Links()
    links.feed(answer.text)
    assert any(url.endswith(".js") for url in links.loaded)
    for url in links.loaded:
        assert not re.match(r"(?i)(?:[a-z]+:)?//", url), url
        loaded = client.get(urljoin(page, url), headers={"Authorization": ""})
        assert loaded.status_code == 200, url
        assert len(loaded.content) > 100
        kind = {"js": "javascript", "css": "css", "png": "image/png"}[url.rpartition(".")[2]]
        assert kind in loaded.headers["Content-Type"]
        for inner in re.findall(r"@import|url\(\s*[\"']?(?:https?:)?//", loaded.text) if url.endswith(".css") else []:
            raise AssertionError(f"{url} loads from outside: {inner}")
    styles = "".join(re.findall(r"(?s)<style.*?</style>", answer.text))
    assert not re.search(r"https?:|@import", styles)


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_a_page_forbids_the_browser_to_ask_anybody_else(client: httpx.Client, page: str) -> None:
    policy = client.get(page).headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "*" not in policy


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_a_page_shows_the_document(client: httpx.Client, document: dict[str, Any], page: str) -> None:
    text = client.get(page).text
    for path in document["paths"]:
        assert path in text


def test_the_root_leads_to_the_documentation(client: httpx.Client) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/docs")


def test_the_examples_have_ids_as_we_make_them(document: dict[str, Any]) -> None:
    example = Operation(document, "getTicket").said["responses"]["200"]["content"]["application/json"]["example"]
    assert UUID(example["id"]).version == 7
    assert re.fullmatch(r"TKT-\d{4}-\d{6,}", example["number"])
