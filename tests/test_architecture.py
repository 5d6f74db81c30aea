"""The contracts between packages in pyproject.toml, as import-linter sees them."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run
from tests.sources import parsed

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def contracts() -> list[dict[str, Any]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: list[dict[str, Any]] = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    return found


def lint_imports(config: Path) -> subprocess.CompletedProcess[str]:
    lint = "from importlinter.cli import lint_imports_command as lint; lint()"
    return run(sys.executable, "-c", lint, "--config", config, "--no-cache", cwd=ROOT)


def test_imports_keep_to_the_contracts(contracts: list[dict[str, Any]]) -> None:
    result = lint_imports(ROOT / "pyproject.toml")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"Contracts: {len(contracts)} kept, 0 broken." in result.stdout
    for contract in contracts:
        assert f"{contract['name']} KEPT" in result.stdout


def test_a_broken_contract_is_noticed(tmp_path: Path) -> None:
    """The linter sees the packages: what the server surely does can be forbidden to it."""
    config = tmp_path / "importlinter.toml"
    config.write_text(
        """
        [tool.importlinter]
        root_packages = ["recparams_rl", "recparams_server"]

        [[tool.importlinter.contracts]]
        name = "No server"
        type = "forbidden"
        source_modules = ["recparams_server"]
        forbidden_modules = ["recparams_rl"]
        """
    )
    result = lint_imports(config)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "No server BROKEN" in result.stdout


def test_the_core_and_the_client_are_under_contract(contracts: list[dict[str, Any]]) -> None:
    forbidden = {
        source: set(contract["forbidden_modules"])
        for contract in contracts
        if contract["type"] == "forbidden"
        for source in contract["source_modules"]
    }
    assert {"recparams_server", "grpc", "asyncpg", "time", "datetime"} <= forbidden["recparams_rl"]
    assert {"recparams_rl", "recparams_server", "numpy"} <= forbidden["recparams_client"]


def test_the_client_imports_grpcio_protobuf_and_the_standard_library() -> None:
    """A contract can only forbid; this is the whole list."""
    library = {"grpc", "google", "recparams", "recparams_client", *sys.stdlib_module_names}
    # Both are there where these are used: by pytest, and after a look whether it was imported.
    besides = {"testing/fixtures.py": {"pytest"}, "tracing.py": {"opentelemetry"}}
    source = ROOT / "clients/python/src"
    for path in sorted(source.rglob("*.py")):
        name_of_file = path.relative_to(source).as_posix().removeprefix("recparams_client/")
        allowed = library | besides.get(name_of_file, set())
        for node in ast.walk(parsed(path)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] in allowed, f"{path}:{node.lineno} imports {name}"


OPENS_FILES = ROOT / "rl/recparams_rl/log_files.py"


def test_the_core_opens_nothing_and_prints_nothing() -> None:
    """What no import shows; one module reads files."""
    for path in sorted((ROOT / "rl").rglob("*.py")):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"open", "print", "input"}, f"{path}:{node.lineno}"
            if isinstance(node, ast.Attribute) and path != OPENS_FILES:
                assert node.attr not in {"open", "read_text", "read_bytes"}, f"{path}:{node.lineno}"
            assert not isinstance(node, ast.Global), f"{path}:{node.lineno}"
