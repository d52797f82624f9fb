"""The papers are read by tests, so that they cannot lie."""

import re
import tomllib
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from api.cli import main
from api.commands import COMMAND_ROUTES
from api.queries import QUERY_ROUTES
from api.settings import Settings
from tickets.lifecycle import TRANSITIONS
from tickets.permissions import GRANTS, Permission
from tickets.sla import TARGETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, without its head."""
    rows = re.search(r"((?:^\|.*\n)+)", text.split(heading, 1)[1], re.MULTILINE)
    assert rows is not None, heading
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1].splitlines()[2:]]


def test_the_workflow_table_is_the_workflow() -> None:
    told = {row[0]: row[1].split(", ") for row in table(README, "### Workflow")}
    assert told == {status.value: [to.value for to in steps] for status, steps in TRANSITIONS.items()}


def test_the_roles_table_is_the_grants() -> None:
    told = {row[0]: row[1:] for row in table(README, "### Roles")}
    grants = {
        role.value: [scopes[permission].value if permission in scopes else "–" for permission in Permission]
        for role, scopes in GRANTS.items()
    }
    assert told == grants


def test_the_service_levels_table_is_the_targets() -> None:
    told = {row[0]: (float(row[1]), float(row[2])) for row in table(README, "### Service levels")}
    hour = timedelta(hours=1)
    assert told == {
        priority.value: (target.response / hour, target.resolution / hour) for priority, target in TARGETS.items()
    }


def test_every_setting_reaches_the_services_of_the_compose_file() -> None:
    passed = set(re.findall(r"^  ([A-Z0-9_]+):", (ROOT / "compose.yaml").read_text(), re.MULTILINE))
    assert {field.encode_name for field in msgspec.structs.fields(Settings)} <= passed


def test_the_settings_table_has_every_setting_with_its_default() -> None:
    told = {row[0].strip("`"): row[1].strip("`") for row in table(README, "## Settings")}
    for field in msgspec.structs.fields(Settings):
        name = field.encode_name
        if re.match(r"SLA_P[234]", name):
            continue  # "and so on"
        default = field.default
        plain = "–" if default in (None, ()) else ",".join(default) if isinstance(default, tuple) else str(default)
        expected = f"{default:g}" if isinstance(default, float) else plain.lower() if default is False else plain
        assert told.pop(name) == expected, name
    assert told == {}


@pytest.mark.parametrize(("heading", "routes"), [("| Command | |", COMMAND_ROUTES), ("| Query | |", QUERY_ROUTES)])
def test_the_api_tables_have_every_endpoint(heading: str, routes: tuple[object, ...]) -> None:
    rows = table(README.replace(heading, heading + "\n\n" + heading, 1), heading)
    told = {row[0].strip("`") for row in rows}
    actual = set()
    for route in routes:
        (method,) = route.http_methods  # type: ignore[attr-defined] # a litestar handler
        (path,) = route.paths  # type: ignore[attr-defined]
        actual.add(f"{method} {path.replace('{ticket_id:uuid}', '{id}').replace(':uuid}', '}')}")
    assert told == actual


def test_the_command_line_table_has_every_command() -> None:
    told = [row[0].strip("`") for row in table(README, "## The command line")]
    actual = []
    for name, command in main.commands.items():
        below = getattr(command, "commands", None)
        actual += [f"tickets {name} {sub}" for sub in below] if below else [f"tickets {name}"]
    assert sorted(" ".join(one.split()[: len(one.split()) - one.isupper()]) for one in actual) == sorted(
        re.sub(r" [A-Z]+$", "", one) for one in told
    )


def test_the_first_command_that_the_readme_shows_is_the_one_that_make_has() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_the_code_map_has_every_module() -> None:
    mapped = set(re.findall(r"`([\w/]+(?:\.py|/))`", ARCHITECTURE))
    for module in (ROOT / "src").rglob("*.py"):
        room, *rest = module.relative_to(ROOT / "src").parts
        name = f"{rest[0]}/" if len(rest) > 1 else rest[0]
        assert name == "__init__.py" or name in mapped, f"{room}/{name}"


def test_the_code_map_has_no_module_that_is_not_there() -> None:
    modules = {module.name for module in (ROOT / "src").rglob("*.py")} | {"tests/architecture.py"}
    folders = {f"{folder.name}/" for folder in (ROOT / "src").rglob("*") if folder.is_dir()}
    rooms = ARCHITECTURE.split("## Code map")[1].split("## A command, traced")[0]
    for name in re.findall(r"^\| (`.*?`) \|", rooms, re.MULTILINE):
        for one in re.findall(r"`([\w/.]+)`", name):
            assert one in modules | folders, one


def test_every_dependency_has_its_reason() -> None:
    told = {row[0].lower() for row in table(ARCHITECTURE, "## Dependencies")}
    actual = {re.split(r"[\[<>=;]", one)[0].lower() for one in PROJECT["dependencies"]}
    assert told == actual
    for one in PROJECT["optional-dependencies"]["dev"]:
        name = re.split(r"[\[<>=;]", one)[0]
        assert name in ARCHITECTURE.split("For development:")[1], name


def test_this_version_is_in_the_changelog() -> None:
    assert f"\n## {PROJECT['version']}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert Settings().service_version == PROJECT["version"]
