"""Requests made up by schemathesis from the OpenAPI document, by three roles: no 5xx, and nothing undocumented.

One test follows the document and breaks it, operation by operation; the other goes by the links of the document, from
what it made to what can be done with it. Deliberately absent: bad input that somebody thought of
(tests/api/test_bad_input.py has some 360 of it).
"""

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.commands import COMMAND_ROUTES
from api.queries import QUERY_ROUTES
from tests.conftest import Service, token
from tests.faults.conftest import SEED, Tell
from tickets.permissions import Role

SEEDS = int(os.environ.get("FUZZ_SEEDS", "0"))
"""How many seeds there are in the long form; in the short one, one, with one role and few operations."""
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
ROLES = (Role.ADMIN, Role.SENIOR_ENGINEER, Role.END_USER) if SEEDS else (Role.SENIOR_ENGINEER,)


@pytest.mark.parametrize("role", ROLES, ids=str)
def test_whatever_is_asked_the_answer_is_documented_and_no_fault_of_ours(
    own_service: Callable[..., Service], tmp_path: Path, role: Role, chance: random.Random, tell: Tell
) -> None:
    service = own_service(FEED_WAIT_SECONDS="0", LOG_LEVEL="ERROR")
    some = chance.sample([str(route.operation_id) for route in (*COMMAND_ROUTES, *QUERY_ROUTES)], 4)
    for seed in range(SEED, SEED + max(1, SEEDS)):
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("st")),
                "run",
                f"{service.url}/openapi.json",
                f"--header=Authorization: Bearer {token(role, uuid4(), username='fuzz', teams=('Network',))}",
                # A made-up position is beyond the ledger, and 503 after the wait is then the answer of the contract.
                "--header=Ledger-Position: 0",
                f"--checks={','.join(check.__name__ for check in CHECKS)}",
                f"--seed={seed}",
                f"--phases={'examples,coverage,fuzzing' if SEEDS else 'fuzzing'}",
                f"--max-examples={25 if SEEDS else 3}",
                *(() if SEEDS else (f"--include-operation-id={name}" for name in some)),
                "--no-shrink",
                "--suppress-health-check=all",  # how hard it is to make something up is not our concern here
                "--generation-database=none",
                "--no-color",
                "--warnings=off",
                "--exclude-path=/docs",
                "--exclude-path=/redoc",
            ],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=1_800,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        tell(f"{role.value}, seed {seed}: {_counted(done.stdout)}")
    assert "Traceback" not in service.log.read_text()
    if SEEDS:  # all of it could have been refused
        done_well = _routes_that_answered_well(service)
        assert {("POST", "/tickets"), ("GET", "/tickets"), ("GET", "/tickets/{ticket_id}")} <= done_well
        tell(
            f"{role.value}: {len(done_well)} of {len(COMMAND_ROUTES) + len(QUERY_ROUTES)} operations did what was asked"
        )


@pytest.mark.parametrize("role", ROLES, ids=str)
def test_whatever_is_done_with_what_was_made_the_answer_is_documented_and_no_fault_of_ours(
    own_service: Callable[..., Service], role: Role, tell: Tell
) -> None:
    service = own_service(FEED_WAIT_SECONDS="0", LOG_LEVEL="ERROR")
    with service.client() as http:
        document = http.get("/openapi.json").json()
    # What names somebody whom no operation makes is bound to fail, thinks schemathesis, and would never begin with it.
    del document["components"]["schemas"]["Create"]["properties"]["requester_id"]
    by_no_other_links: dict[str, Any] = {"phases": {"stateful": {"inference": {"algorithms": []}}}}
    schema = schemathesis.openapi.from_dict(document, config=SchemathesisConfig.from_dict(by_no_other_links))
    schema.config.update(base_url=service.url)

    class Walk(schema.as_state_machine()):  # type: ignore[misc]  # a class that is made of the document
        def setup(self) -> None:
            # Somebody new each time: keys that were used once would make the same walk end elsewhere the next time.
            actor = token(role, uuid4(), username="fuzz", teams=("Network",))
            self.headers = {"Authorization": f"Bearer {actor}", "Ledger-Position": "0"}

        def get_call_kwargs(self, _: schemathesis.Case[Any]) -> dict[str, Any]:
            return {"headers": self.headers}

        def validate_response(self, response: schemathesis.Response, case: schemathesis.Case[Any], **_: Any) -> None:
            case.validate_response(response, checks=[*CHECKS])

    lengths = hypothesis.settings(
        max_examples=40 if SEEDS else 2,
        stateful_step_count=25 if SEEDS else 10,
        phases=[hypothesis.Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    for seed in range(SEED, SEED + max(1, SEEDS)):
        hypothesis.seed(seed)(Walk).run(settings=lengths)
    assert "Traceback" not in service.log.read_text()
    if SEEDS:  # it could have come nowhere
        done_well = _routes_that_answered_well(service)
        assert {("POST", "/tickets/{ticket_id}/comments"), ("PUT", "/comments/{comment_id}")} <= done_well
        tell(f"{role.value}: {len(done_well)} operations did what was asked on the way")


def _routes_that_answered_well(service: Service) -> set[tuple[str, str]]:
    """Method and path, without the prefix of the API, of those that were ever answered 2xx."""
    with service.client() as http:
        counted = re.findall(
            r'http_requests_total{method="((?!HEAD|OPTIONS)\w+)",route="/api/v1([^"]+)",status="2\d\d"}',
            http.get("/metrics").text,
        )
    return set(counted)


def _counted(report: str) -> str:
    return next((line.strip() for line in report.splitlines() if "generated" in line), "done")
