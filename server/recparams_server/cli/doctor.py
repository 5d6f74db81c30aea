"""`recparams doctor`: what is wrong with a service, and what mends it."""

import asyncio
import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import click
import grpc

from recparams.v1 import system_pb2 as pb
from recparams.v1 import system_pb2_grpc as grpc_pb
from recparams_server.cli.connection import Exit, json_option, open_channel, server_options
from recparams_server.cli.given_settings import read_settings
from recparams_server.cli.output import print_facts, version_name
from recparams_server.diagnosis.database import skew
from recparams_server.diagnosis.examination import examine
from recparams_server.diagnosis.findings import Finding, is_healthy
from recparams_server.observability.logs import describe
from recparams_server.settings import Settings
from recparams_server.store.database import database_url as url_of
from recparams_server.store.errors import DATABASE_ERRORS

SECONDS = 5.0
_SHOWN = {"ok": "ok", "warning": "WARNING", "problem": "PROBLEM"}


@click.command()
@click.option(
    "--database-url",
    help="As of `recparams serve`. [RECPARAMS_DATABASE_URL or DATABASE_URL]",
)
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings too.")
@server_options
@json_option
def doctor(
    database_url: str | None,
    strict: bool,
    address: str,
    admin_key: str | None,  # noqa: ARG001 - health needs no key
    as_json: bool,
) -> None:
    """Say what is wrong with the service, and the command that mends it.

    It asks the server how it does, and looks into the database itself, which works when no server
    comes up: run it where a server runs, with the same RECPARAMS_* variables. It changes nothing.

    \b
    It looks at
      the server, and whether its clock and this machine's agree
      poolers, the version of Postgres, its clock, migrations, what is stored
      data volume, decision tokens, profiles, reward sparsity, exploration, coverage
      training runs, Q-values that diverge, damaged versions, a stale active one
      the sample ratio of a rollout, and what learning is worth

    \b
    recparams doctor
    recparams doctor --strict --json
    kubectl exec deploy/recparams -- recparams doctor

    \b
    Exit codes:
      0  nothing does not work; there may be warnings
      1  a problem, or with --strict a warning
      2  bad settings
      4  the database cannot be reached
    """
    settings = read_settings(database_url=database_url or None)
    findings = _of_server(address)
    code = Exit.OK
    try:
        asyncio.run(_collect(settings, findings))
    except DATABASE_ERRORS as failure:
        findings.append(_away(settings, failure))
        code = Exit.UNREACHABLE
    if code == Exit.OK and not is_healthy(findings, strict=strict):
        code = Exit.FAILED
    if as_json:
        healthy = is_healthy(findings)
        document = {"healthy": healthy, "findings": [asdict(one) for one in findings]}
        click.echo(json.dumps(document, indent=2))
    else:
        _print(findings)
    raise SystemExit(code)


async def _collect(settings: Settings, findings: list[Finding]) -> None:
    if settings.database_url is None and not (settings.data_dir / "postgres").exists():
        said = f"{settings.data_dir} has no database, and no --database-url is given"
        findings.append(Finding("database", "problem", said, "recparams serve"))
        return
    url = await asyncio.to_thread(url_of, settings)
    async for finding in examine(settings, url):
        findings += [finding]  # one by one: those before a failure are told


def _away(settings: Settings, failure: Exception) -> Finding:
    mend = "pg_isready, and the host, port and password in RECPARAMS_DATABASE_URL"
    if settings.database_url is None:
        mend = f"recparams serve, which starts the one in {settings.data_dir}"
    return Finding("database", "problem", f"cannot be used: {describe(failure)}", mend)


def _of_server(address: str) -> list[Finding]:
    asked = datetime.now(UTC)
    with open_channel(grpc, address) as channel:
        try:
            health = grpc_pb.SystemServiceStub(channel).GetSystemHealth(
                pb.GetSystemHealthRequest(), timeout=SECONDS
            )
        except grpc.RpcError as raised:
            said = f"{address}: {raised.details()}"
            return [Finding("server", "problem", said, "recparams serve, or --address of one")]
    # Its answer may be a look of a quarter of a second ago.
    started = health.server.started_at.ToDatetime(UTC)
    told = started + timedelta(seconds=health.server.uptime_seconds)
    clock = skew(told, asked, datetime.now(UTC), "server")
    return [_state_of(health, address), clock]


def _state_of(health: pb.GetSystemHealthResponse, address: str) -> Finding:
    served = health.served
    serves = version_name(served.serving_version)
    said = f"{address} runs {health.server.version} and serves {serves}"
    if not health.database.answers:
        said = f"{said}; its database {health.database.problem}"
        return Finding("server", "problem", said, "see what is said of the database")
    if served.refused_reason:
        said = f"{said}; it refuses what is active: {served.refused_reason}"
        return Finding("server", "problem", said, "recparams models rollback")
    if served.serving_version != served.active_version:
        said = f"{said}, not {version_name(served.active_version)}, which is active"
        return Finding("server", "warning", said, "its log, under 'policy' and 'model refused'")
    if health.server.version != version("recparams"):
        said = f"{said}; this command is of {version('recparams')}"
        return Finding("server", "warning", said, "install the same release on both")
    return Finding("server", "ok", said)


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    facts: list[tuple[str, object]] = []
    for finding in findings:
        facts.append((f"{_SHOWN[finding.level]:<7}  {finding.check:<{width}}", finding.said))
        if finding.mend and finding.level != "ok":
            facts.append(("", f"-> {finding.mend}"))
    print_facts(facts)
    counts = {level: sum(one.level == level for one in findings) for level in _SHOWN}
    click.echo(
        f"\n{counts['problem']} problems, {counts['warning']} warnings, "
        f"{counts['ok']} checks passed"
    )
