"""Requests made up by schemathesis from the OpenAPI document, by three roles: no 5xx, and nothing undocumented.

It follows the document and breaks it, and goes from one operation to the next by what answers had in them. Deliberately
absent: bad input that somebody thought of (tests/api/test_bad_input.py has some 360 of it).
"""

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from api.commands import COMMAND_ROUTES
from api.queries import QUERY_ROUTES
from tests.conftest import Service, token
from tests.faults.conftest import SEED, Tell
from tickets.permissions import Role

SEEDS = int(os.environ.get("FUZZ_SEEDS", "0"))
"""How many seeds there are in the long form; in the short one, one, with one role and few operations."""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
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
                f"--checks={CHECKS}",
                f"--seed={seed}",
                *(("--max-examples=25",) if SEEDS else ("--phases=fuzzing", "--max-examples=3")),
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
        if SEEDS:
            assert _number_after("Scenarios:", done.stdout) > 0, "it was to go from one operation to the next"
            tell(f"links from one operation to the next: {_number_after('API Links:', done.stdout)} followed")
        tell(f"{role.value}, seed {seed}: {_counted(done.stdout)}")
    assert "Traceback" not in service.log.read_text()
    if SEEDS:  # all of it could have been refused
        done_well = _routes_that_answered_well(service)
        assert {("POST", "/tickets"), ("GET", "/tickets"), ("GET", "/tickets/{ticket_id}")} <= done_well
        tell(
            f"{role.value}: {len(done_well)} of {len(COMMAND_ROUTES) + len(QUERY_ROUTES)} operations did what was asked"
        )


def _number_after(words: str, report: str) -> int:
    found = re.search(rf"{words}\s+(\d+)", report)
    assert found is not None, report
    return int(found[1])


def _routes_that_answered_well(service: Service) -> set[tuple[str, str]]:
    """Method and path, without the prefix of the API, of those that were ever answered 2xx."""
    with service.client() as http:
        counted = re.findall(
            r'http_requests_total{method="(\w+)",route="/api/v1([^"]+)",status="2\d\d"}', http.get("/metrics").text
        )
    return set(counted)


def _counted(report: str) -> str:
    return next((line.strip() for line in report.splitlines() if "generated" in line), "done")
