"""Generates the stub and the rule data of the client distribution from their sources.

`python proto/generate.py [TARGET]` writes into TARGET, by default clients/python/src.
"""

import os
import pprint
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "rl"))

from toolchain import ToolchainError, run_protoc  # noqa: E402

from recparams_rl.action import ACTIONS  # noqa: E402
from recparams_rl.rules import HIGH_TRAIT, LOW_TRAIT, RULES  # noqa: E402


def generate_stub(target: Path) -> None:
    """Runs protoc with mypy-protobuf over proto/recparams/v1."""
    package = target / "recparams" / "v1"
    package.mkdir(parents=True, exist_ok=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("")
        (folder / "py.typed").write_text("")
    sources = sorted(ROOT.glob("proto/recparams/v1/*.proto"))
    services = [source for source in sources if "\nservice " in source.read_text()]
    for outputs, inputs in (
        (["--python_out", "--mypy_out"], sources),
        (["--grpc_python_out", "--mypy_grpc_out"], services),
    ):
        options = [
            f"{output}=quiet:{target}" if "mypy" in output else f"{output}={target}"
            for output in outputs
        ]
        run_protoc(f"-I{ROOT / 'proto'}", *options, *map(str, inputs))


def generate_rules(target: Path) -> None:
    """Writes the data of recparams_rl/rules.py and action.py as a plain Python module."""
    data = {
        "LOW_TRAIT": LOW_TRAIT,
        "HIGH_TRAIT": HIGH_TRAIT,
        "RULES": {name: asdict(rule) for name, rule in RULES.items()},
        "PARAMS": [asdict(action.to_params()) for action in ACTIONS],
    }
    lines = [
        '"""The rule-based policy as data. Generated from recparams_rl/rules.py: do not edit."""',
        "",
    ]
    lines += ["from typing import Any, Final", ""]
    for name, value in data.items():
        kind = {"RULES": "dict[str, dict[str, Any]]", "PARAMS": "list[dict[str, float]]"}
        annotation = f"Final[{kind.get(name, 'float')}]"
        lines.append(f"{name}: {annotation} = {pprint.pformat(value, width=96, sort_dicts=False)}")
    package = target / "recparams_client"
    package.mkdir(parents=True, exist_ok=True)
    (package / "_rules.py").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    destination = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "clients/python/src"
    try:
        generate_stub(destination)
    except ToolchainError as failure:
        print(failure, file=sys.stderr)
        raise SystemExit(os.EX_TEMPFAIL) from None
    generate_rules(destination)
