"""Checkpoints over HTTP and on the disk: signed outside first, proven, kept up through whatever is away."""

import asyncio
import json
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests.conftest import NEW_TICKET, Service, eventually, fresh_database, running_service
from tickets.checkpoints import Checkpoint, parse, read_key, verifier_key, verify_note
from tickets.connections import Connection
from tickets.integrity import leaf
from tickets.merkle import verify_consistency, verify_inclusion
from tickets.permissions import Role

TICKETS = "/api/v1/tickets"
LEDGER = "/api/v1/ledger"
SOON = {"CHECKPOINT_SECONDS": "0.1"}

Starting = Callable[..., Service]


@pytest.fixture(scope="module")
def signing(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that signs what is new at once, for tests that ask no more of it."""
    with (
        fresh_database(server, template) as dsn,
        running_service(dsn, tmp_path_factory.mktemp("signing"), **SOON) as running,
    ):
        yield running


def until(client: httpx.Client, holds: Callable[[dict[str, Any]], bool], timeout: float = 15) -> dict[str, Any]:
    """What health says of checkpoints once it says that."""
    deadline = time.monotonic() + timeout
    while not holds(told := client.get("/health").json()["checkpoints"]):
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    return dict(told)


def made(client: httpx.Client, tickets: int = 1) -> dict[str, Any]:
    for _ in range(tickets - 1):
        made(client)
    answer = client.post(TICKETS, json=NEW_TICKET)
    assert answer.status_code == 201, answer.text
    return {**answer.json(), "position": int(answer.headers["Ledger-Position"])}


def signed(client: httpx.Client) -> Checkpoint:
    """The newest checkpoint, once it covers all there is."""
    position = client.get("/health").json()["ledger"]["position"]
    until(client, lambda told: told["size"] >= position)
    ledger = client.get(LEDGER).json()
    return verify_note(ledger["checkpoint"], verifier_key(ledger["public_key"]))


def test_what_is_new_is_signed_and_kept_outside_and_each_names_the_one_before(
    own_service: Starting, tmp_path: Path
) -> None:
    running = own_service(**SOON)
    with running.client() as admin:
        made(admin)
        first = signed(admin)
        made(admin, 3)
        second = signed(admin)
        listed = admin.get(f"{LEDGER}/checkpoints").json()
    chain = [parse(one["note"]) for one in listed["items"]]
    assert (chain[0], chain[-1].previous) == (second, None)
    assert first in chain
    assert [one.previous for one in chain[:-1]] == [one.digest for one in chain[1:]]
    assert [(one["size"], b64decode(one["root"])) for one in listed["items"]] == [(one.size, one.root) for one in chain]
    folder = tmp_path / "checkpoints"
    before = 0
    for one in reversed(chain):
        assert (folder / f"{one.size:020d}.checkpoint").read_text() == one.note
        assert len((folder / f"{one.size:020d}.leaves").read_bytes()) == 32 * (one.size - before)
        before = one.size
    assert len(list(folder.iterdir())) == 2 * len(chain)


def test_without_new_facts_nothing_is_signed(signing: Service) -> None:
    with signing.client() as admin:
        made(admin)
        newest = signed(admin)
        time.sleep(1.5)
        assert admin.get(f"{LEDGER}/checkpoints").json()["items"][0]["note"] == newest.note


def test_after_many_facts_there_is_a_checkpoint_before_it_is_time(own_service: Starting) -> None:
    with own_service(CHECKPOINT_SECONDS="3600", CHECKPOINT_FACTS="5").client() as admin:
        made(admin)
        first = until(admin, lambda told: told["size"] > 0)
        made(admin, 6)
        assert until(admin, lambda told: told["size"] > first["size"])["size"] >= first["size"] + 5


def test_every_version_of_a_ticket_is_proven(signing: Service) -> None:
    running = signing
    with running.client(teams=("Network",), username="ada") as admin:
        ticket = made(admin)
        url = f"{TICKETS}/{ticket['id']}"
        titles = {1: NEW_TICKET["title"], 2: "Prüfung „eins“", 3: "Zwei"}
        for later in (2, 3):
            assert admin.patch(url, json={"title": titles[later]}).status_code == 200
        made(admin, 3)
        newest = signed(admin)
        for version in (1, 2, 3, None):
            answer = admin.get(f"{url}/proof", params={} if version is None else {"version": version})
            assert answer.status_code == 200, answer.text
            proof = answer.json()
            fact, included = proof["fact"], proof["inclusion"]
            checkpoint = verify_note(proof["checkpoint"], verifier_key(proof["public_key"]))
            assert checkpoint.size >= newest.size
            assert (fact["version"], fact["stream_id"]) == (version or 3, ticket["id"])
            assert (included["index"], included["size"]) == (fact["position"] - 1, checkpoint.size)
            recomputed = leaf(
                UUID(fact["stream_id"]),
                fact["version"],
                fact["topic"],
                _moment(fact["occurred_at"]),
                fact["metadata"].encode(),
                fact["state"].encode(),
            )
            assert b64decode(proof["leaf"]) == recomputed
            path = [b64decode(one) for one in included["path"]]
            assert verify_inclusion(recomputed, included["index"], included["size"], path, checkpoint.root)
            assert json.loads(fact["state"]).get("title") == titles[fact["version"]]
        assert admin.get(f"{url}/proof", params={"version": 4}).status_code == 404
        assert admin.get(f"{TICKETS}/{uuid4()}/proof").status_code == 404
        assert admin.get(f"{url}/proof", params={"version": 0}).json()["errors"][0]["field"] == "version"


def _moment(text: str) -> datetime:
    assert len(text) == len("2026-11-25T12:00:00.000000Z")
    return datetime.fromisoformat(text)


def test_between_any_two_checkpoints_facts_were_only_added(signing: Service) -> None:
    with signing.client() as admin:
        for _ in range(3):
            made(admin, 2)
            signed(admin)
        chain = [parse(one["note"]) for one in admin.get(f"{LEDGER}/checkpoints").json()["items"]][::-1]
        assert len(chain) >= 3
        for n, first in enumerate(chain):
            for second in chain[n:]:
                answer = admin.get(f"{LEDGER}/consistency", params={"first": first.size, "second": second.size}).json()
                path = [b64decode(one) for one in answer["path"]]
                assert (parse(answer["first"]["note"]), parse(answer["second"]["note"])) == (first, second)
                assert verify_consistency(first.size, second.size, first.root, second.root, path)
        default = admin.get(f"{LEDGER}/consistency").json()
        assert (default["first"]["size"], default["second"]["size"]) == (chain[-2].size, chain[-1].size)
        swapped = admin.get(f"{LEDGER}/consistency", params={"first": chain[1].size, "second": chain[0].size})
        assert (swapped.status_code, swapped.json()["errors"][0]["field"]) == (400, "first")
        for name in ("first", "second"):
            assert admin.get(f"{LEDGER}/consistency", params={name: 10**9}).status_code == 404
            assert admin.get(f"{LEDGER}/consistency", params={name: 2**63}).status_code == 400
        page = admin.get(f"{LEDGER}/checkpoints", params={"page_size": 1}).json()
        assert page["next_cursor"] == str(chain[-1].size)
        after = admin.get(f"{LEDGER}/checkpoints", params={"page_size": 1, "cursor": page["next_cursor"]}).json()
        assert parse(after["items"][0]["note"]) == chain[-2]


def test_what_is_not_under_a_checkpoint_yet_says_when_to_ask_again(own_service: Starting) -> None:
    with own_service(CHECKPOINT_SECONDS="600").client() as admin:
        made(admin)
        until(admin, lambda told: told["size"] > 0)
        ticket = made(admin)
        assert admin.get(TICKETS, headers={"Ledger-Position": str(ticket["position"])}).status_code == 200
        answer = admin.get(f"{TICKETS}/{ticket['id']}/proof")
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/not-under-checkpoint")
        assert 0 < int(answer.headers["Retry-After"]) <= 602
        assert admin.get(f"{TICKETS}/{ticket['id']}/proof", params={"version": 2}).status_code == 404


def test_proofs_are_for_staff_alone(signing: Service) -> None:
    running = signing
    with running.client(Role.END_USER) as user, running.client(Role.DEVOPS_ENGINEER) as engineer:
        own, other = made(user), made(engineer)
        signed(engineer)
        assert user.get(f"{TICKETS}/{own['id']}/proof").status_code == 403
        assert user.get(f"{TICKETS}/{other['id']}/proof").status_code == 404
        assert engineer.get(f"{TICKETS}/{own['id']}/proof").status_code == 200
        assert user.get(LEDGER).status_code == user.get(f"{LEDGER}/checkpoints").status_code == 200


def test_an_outside_that_is_away_is_told_and_waited_for_while_commands_go_on(
    own_service: Starting, tmp_path: Path
) -> None:
    outside = tmp_path / "there" / "checkpoints"
    outside.parent.touch()  # a file where the folder should be
    with own_service(**SOON, CHECKPOINT_URL=outside.as_uri()).client() as admin:
        made(admin)
        until(admin, lambda told: told["outside"] == "away")
        assert admin.get(f"{LEDGER}/checkpoints").json()["total"] == 0, "outside first"
        made(admin, 3)
        outside.parent.unlink()
        told = until(admin, lambda told: told["size"] >= 4)
        assert told["outside"] == "ok"
        assert len(list(outside.glob("*.checkpoint"))) == admin.get(f"{LEDGER}/checkpoints").json()["total"]


async def _without_the_newest(owner: Connection) -> str:
    """Take the newest checkpoint out of the database, as if it had not come into it."""
    async with owner.transaction():
        await owner.execute("set local session_replication_role = replica")
        note: str = await owner.fetchval(
            """delete from ledger.checkpoints where size = (select max(size) from ledger.checkpoints) returning note"""
        )
    return note


async def test_what_came_outside_and_not_into_the_database_is_taken_in_at_the_next_start(
    own_service: Starting, owner: Connection
) -> None:
    running = own_service(**SOON)
    with running.client() as admin:
        made(admin, 2)
        await asyncio.to_thread(signed, admin)
    running.stop()
    note = await _without_the_newest(owner)
    with own_service(**SOON).client() as admin:
        made(admin)
        await asyncio.to_thread(signed, admin)
        assert note in [one["note"] for one in admin.get(f"{LEDGER}/checkpoints").json()["items"]]


@pytest.mark.parametrize("what", ["a fact", "the tail", "the key"])
async def test_nothing_is_signed_that_contradicts_what_was_signed(
    own_service: Starting, owner: Connection, tmp_path: Path, what: str
) -> None:
    running = own_service(**SOON)
    with running.client() as admin:
        made(admin, 3)
        newest = await asyncio.to_thread(signed, admin)
    running.stop()
    async with owner.transaction():
        await owner.execute("set local session_replication_role = replica")
        if what == "a fact":
            await owner.execute("update ledger.events set leaf = sha256(leaf) where position = 2")
        if what == "the tail":
            await owner.execute("delete from ledger.events where position > 1; update ledger.head set position = 1")
    if what == "the key":
        (tmp_path / "checkpoint.key").unlink()
    with own_service(**SOON).client() as admin:
        if what != "the tail":
            made(admin)
        told = await asyncio.to_thread(until, admin, lambda told: told["outside"] == "refused")
        assert told["size"] == newest.size
    assert await owner.fetchval("select note from ledger.checkpoints order by size desc limit 1") == newest.note


async def test_of_two_processes_one_signs_and_the_other_takes_over(own_service: Starting) -> None:
    first = own_service(**SOON)
    with first.client() as admin:
        made(admin)
        signed(admin)
    second = own_service(**SOON)
    with second.client() as admin:
        told = until(admin, lambda told: told["size"] > 0)
        assert told["outside"] == "standby"
        first.stop()
        made(admin)
        until(admin, lambda told: told["outside"] == "ok")
        signed(admin)


def test_a_process_without_projections_signs_nothing_and_knows_what_was_signed(own_service: Starting) -> None:
    own_service("--only", "projections", **SOON)
    with own_service("--only", "commands", "--only", "queries").client() as admin:
        assert "checkpoints" not in admin.get("/health").json()
        made(admin)
        deadline = time.monotonic() + 15
        while (ledger := admin.get(LEDGER).json())["checkpoint"] is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        verify_note(ledger["checkpoint"], verifier_key(ledger["public_key"]))


async def test_the_signer_survives_the_database_being_away(own_service: Starting, owner: Connection) -> None:
    with own_service(**SOON).client() as admin:
        made(admin)
        signed(admin)
        for _ in range(3):
            await owner.execute(
                """select pg_terminate_backend(pid) from pg_stat_activity
                   where datname = current_database() and pid <> pg_backend_pid()"""
            )
            await eventually(lambda: _answers(admin))
            await asyncio.to_thread(signed, admin)


async def _answers(client: httpx.Client) -> bool:
    return (await asyncio.to_thread(client.post, TICKETS, json=NEW_TICKET)).status_code == 201


def test_a_key_that_is_none_stops_the_start(own_service: Starting, tmp_path: Path) -> None:
    (tmp_path / "some.key").write_text("nonsense")
    with pytest.raises(AssertionError, match="CHECKPOINT_KEY_FILE is not usable"):
        own_service(CHECKPOINT_KEY_FILE=str(tmp_path / "some.key"))


def test_the_key_is_made_once_and_stays(own_service: Starting, tmp_path: Path) -> None:
    own_service(**SOON).stop()
    key = tmp_path / "checkpoint.key"
    before = key.read_bytes()
    own_service(**SOON).stop()
    assert key.read_bytes() == before
    read_key(key)
