"""The shape of the house: who may import whom, and what no module may be called."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
MAY_IMPORT = {
    "tickets": {"tickets"},
    "projections": {"projections", "tickets"},
    "api": {"api", "projections", "tickets"},
}
NAMES_THAT_SAY_NOTHING = {
    "util",
    "utils",
    "helper",
    "helpers",
    "common",
    "base",
    "manager",
    "managers",
    "service",
    "services",
    "misc",
}
MODULES = sorted(SRC.rglob("*.py"))
assert MODULES, "there is a house"


@cache
def _parsed(module: Path) -> ast.Module:
    return ast.parse(module.read_text())


@cache
def _imported(module: Path) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(_parsed(module)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written in full"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_point_one_way(module: Path) -> None:
    room = module.relative_to(SRC).parts[0]
    ours = {name.split(".")[0] for name in _imported(module)} & set(MAY_IMPORT)
    assert ours <= MAY_IMPORT[room]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_every_module_has_a_telling_name_and_says_what_lives_in_it(module: Path) -> None:
    assert module.stem not in NAMES_THAT_SAY_NOTHING
    assert ast.get_docstring(_parsed(module)), "a module opens with what lives there"


def test_the_write_side_knows_nothing_of_http_and_the_read_side_neither() -> None:
    edge = {"litestar", "granian", "jwt", "click", "rich", "httpx"}
    for module in MODULES:
        if module.relative_to(SRC).parts[0] != "api":
            assert not edge & {name.split(".")[0] for name in _imported(module)}, module


def test_decisions_and_the_ticket_have_no_io_and_no_clock() -> None:
    pure = {"events", "ticket", "comments", "commands", "lifecycle", "permissions", "sla", "errors", "values"}
    impure = {
        "asyncio",
        "asyncpg",
        "time",
        "random",
        "secrets",
        "socket",
        "os",
        "structlog",
        "tickets.ledger",
        "uuid_utils",
    }
    for name in sorted(pure):
        module = SRC / "tickets" / f"{name}.py"
        assert not impure & _imported(module), module
        nodes = list(ast.walk(_parsed(module)))
        called = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        called |= {node.id for node in nodes if isinstance(node, ast.Name)}
        assert not called & {"now", "utcnow", "today", "uuid4", "uuid7"}, f"{module} has a clock or draws ids"


def test_every_table_has_a_comment() -> None:
    schema = (ROOT / "schema.sql").read_text()
    tables = [line.split()[5] for line in schema.splitlines() if line.startswith("create table if not exists")]
    assert tables
    assert [table for table in tables if f"comment on table {table} is" not in schema] == []


LOCKS: Final = ("requirements.lock", "requirements.image.lock")
_TEXTS: Final = {".py", ".md", ".sql", ".lua", ".html", ".js", ".css", ".svg"}


def test_the_image_has_what_is_tested_but_for_what_only_tests_need() -> None:
    tested, shipped = (_pinned((ROOT / name).read_text()) for name in LOCKS)
    assert shipped.items() <= tested.items(), "make lock"
    names = {re.split("[=<>~[]", one)[0].lower() for one in _asked_for("dependencies")}
    assert names <= {pin.partition("==")[0] for pin in shipped}
    assert not {"pytest", "fastapi", "pydantic"} & {pin.partition("==")[0] for pin in shipped}


def _pinned(lock: str) -> dict[str, frozenset[str]]:
    """What is pinned, with the hashes that it may have."""
    pins: dict[str, frozenset[str]] = {}
    for block in re.split(r"\n(?=\S)", lock.strip()):
        pin, *hashes = (line.strip(" \\") for line in block.splitlines())
        pins[pin] = frozenset(hashes)
        assert hashes, pin
    return pins


def _asked_for(what: str) -> list[str]:
    asked: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][what]
    return asked


def test_nothing_committed_names_a_package_index_or_a_path_of_one_machine() -> None:
    committed = [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".")]
    committed += [path for room in ("src", "tests", "benchmarks") for path in (ROOT / room).rglob("*.*")]
    looked_at = [path for path in committed if path.suffix in _TEXTS or path.parent == ROOT]
    assert len(looked_at) > len(MODULES) + len(LOCKS)
    for path in looked_at:
        text = path.read_text(errors="replace")
        for word in ("--index-url", "--find-links", "--extra-index-url", "pypi" + ".", f"{ROOT}/", f"{Path.home()}/"):
            assert word not in text or path == Path(__file__), (path, word)
