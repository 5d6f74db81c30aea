"""deploy/: what Kubernetes and Compose are told, held to their schemas and to the service."""

import asyncio
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import asyncpg
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from deploy.prometheus import operator_rules
from recparams_server.app import App
from recparams_server.cli import main
from recparams_server.cli.connection import Exit
from recparams_server.settings import Settings
from recparams_server.settings.callers import key_hash
from tests import processes
from tests.faults import SMALL
from tests.support import ADMIN_KEY, ROOT, Client, in_process
from tests.test_cli import Outcome, hold_runs, let_go, run, until_running
from tests.trust import likes_high_energy, live

DEPLOY = ROOT / "deploy"
BINARIES = Path(sys.executable).parent
OVERLAYS = ("dev", "production")
KUBERNETES = ("1.29", "1.37")
PEOPLE = [f"user-{n}" for n in range(300)]
SECRET = {
    "database-url": "postgresql://recparams@postgres/recparams",
    "admin-key": ADMIN_KEY,
    "admin-key-hashes": key_hash(ADMIN_KEY),
    "token-key": "a-key-of-thirty-two-characters-or-more",
}
VARIABLES = {f"RECPARAMS_{name.upper()}" for name in Settings.model_fields}
VARIABLES |= {"RECPARAMS_ADDRESS", "RECPARAMS_CA"}

Object = dict[str, Any]


def build(folder: str) -> list[Object]:
    """What kustomize makes of a folder."""
    done = processes.run(BINARIES / "kubectl", "kustomize", DEPLOY / folder)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Object]:
    return build(f"overlays/{request.param}")


@pytest.fixture(scope="module")
def production() -> list[Object]:
    return build("overlays/production")


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The object of a kind with a name."""
    (found,) = [
        one
        for one in objects
        if one["kind"] == kind
        and re.fullmatch(f"{name}(-[a-z0-9]{{10}})?", one["metadata"]["name"])
    ]
    return found


def pods(objects: list[Object]) -> dict[str, Object]:
    """Pod templates by the name of what makes them."""
    found = {}
    for one in objects:
        spec = one.get("spec", {})
        if one["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if "template" in spec:
            found[one["metadata"]["name"]] = spec["template"]
    return found


def variables(objects: list[Object], pod: Object) -> dict[str, str]:
    """What a pod's process finds in its environment."""
    (container,) = pod["spec"]["containers"]
    found = {}
    for source in container.get("envFrom", ()):
        (config,) = [
            one["data"]
            for one in objects
            if one["kind"] == "ConfigMap"
            and one["metadata"]["name"] == source["configMapRef"]["name"]
        ]
        found |= config
    for variable in container.get("env", ()):
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            assert source["secretKeyRef"]["name"] == "recparams"
            found[variable["name"]] = SECRET[source["secretKeyRef"]["key"]]
        elif "fieldRef" in source:
            assert source["fieldRef"]["fieldPath"] == "metadata.labels['job-name']"
            found[variable["name"]] = "the-job"
        elif "resourceFieldRef" in source:
            assert source["resourceFieldRef"]["resource"] == "limits.cpu"
            found[variable["name"]] = container["resources"]["limits"]["cpu"]
        else:
            found[variable["name"]] = variable["value"]
    return found


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(
        database_url,
        tmp_path,
        **{**SMALL, "gates": "enforce", "exploration": 0.9, "watch_seconds": 3600},
    )


def test_every_object_is_valid(overlay: list[Object]) -> None:
    for one in overlay:
        for version in KUBERNETES:
            kubernetes_validate.validate(one, version, strict=True)


def test_the_schema_is_migrated_before_a_server_starts(overlay: list[Object]) -> None:
    for name in ("recparams", "recparams-trainer"):
        (first,) = pods(overlay)[name]["spec"]["initContainers"]
        assert first["args"] == ["migrate"]
        source = first["env"][0]["valueFrom"]["secretKeyRef"]
        assert source == {"name": "recparams", "key": "database-url"}
    assert not [one for one in overlay if one["kind"] == "Job"], "it would have to be deleted"


def with_component(tmp_path: Path, name: str) -> list[Object]:
    """What kustomize makes of the production overlay with a component."""
    deploy = tmp_path / "deploy"
    shutil.copytree(DEPLOY, deploy)
    file = deploy / "overlays/production/kustomization.yaml"
    file.write_text(f"{file.read_text()}components:\n  - ../../components/{name}\n")
    return build(str(file.parent))


def test_the_component_for_monitoring(tmp_path: Path) -> None:
    objects = with_component(tmp_path, "monitoring")
    monitor = named(objects, "PodMonitor", "recparams")["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    (wanted,) = monitor["selector"]["matchExpressions"]
    scraped = {
        name
        for name, pod in pods(objects).items()
        if pod["metadata"]["labels"][wanted["key"]] in wanted["values"]
    }
    assert scraped == {"recparams", "recparams-trainer"}
    for name in scraped:
        (container,) = pods(objects)[name]["spec"]["containers"]
        assert endpoint["port"] in {port["name"] for port in container["ports"]}
        assert pods(objects)[name]["metadata"]["labels"][monitor["jobLabel"]] == "recparams"
    rules = named(objects, "PrometheusRule", "recparams")["spec"]
    assert rules == yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())
    assert operator_rules.FILE.read_text() == operator_rules.text()
    elsewhere = operator_rules.prometheus_rule("https://wiki.example.com/operations")
    runbooks = re.findall(r"'runbook_url': '([^']*)'", str(elsewhere))
    assert len(runbooks) == str(rules).count("runbook_url") > 10
    assert all(one.startswith("https://wiki.example.com/operations#recparams") for one in runbooks)


def test_the_component_for_another_port_of_the_database(tmp_path: Path) -> None:
    objects = with_component(tmp_path, "database-port")
    (way_out,) = named(objects, "NetworkPolicy", "recparams-database")["spec"]["egress"]
    assert way_out["ports"] == [{"port": 6432}]


def test_the_component_for_tls(tmp_path: Path) -> None:
    objects = with_component(tmp_path, "tls")
    certificate = named(objects, "Certificate", "recparams")["spec"]
    made = pods(objects)
    for name in ("recparams", "recparams-trainer"):
        (container,) = made[name]["spec"]["containers"]
        given = {one["name"]: one.get("value") for one in container["env"]}
        assert given["RECPARAMS_TLS_CERTIFICATE"] == "/tls/tls.crt"
        assert given["RECPARAMS_TLS_KEY"] == "/tls/tls.key"
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert "grpc" not in container[probe], "it does not speak TLS"
            program, *arguments = container[probe]["exec"]["command"]
            assert program == "recparams"
            host, _ = arguments[arguments.index("--address") + 1].split(":")
            assert host in certificate["dnsNames"]
            known = CliRunner().invoke(main, ["health", "--help"]).output
            assert all(one in known for one in arguments if one.startswith("--"))
        assert name in certificate["dnsNames"]
    (trains,) = made["recparams-training"]["spec"]["containers"]
    assert {"name": "RECPARAMS_CA", "value": "/tls/ca.crt"} in trains["env"]
    for pod in made.values():
        secrets = {one["secret"]["secretName"] for one in pod["spec"]["volumes"] if "secret" in one}
        assert secrets == {certificate["secretName"]}
    for one in objects:
        if one["kind"] != "Certificate":
            kubernetes_validate.validate(one, KUBERNETES[-1], strict=True)


def test_what_network_policies_let_out(production: list[Object]) -> None:
    (dns,) = named(production, "NetworkPolicy", "recparams-dns")["spec"]["egress"]
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in dns["to"]
    (traces,) = named(production, "NetworkPolicy", "recparams-traces")["spec"]["egress"]
    assert [one["port"] for one in traces["ports"]] == [4317, 4318]
    ports = named(production, "Service", "recparams")["spec"]["ports"]
    assert {one["name"]: one["port"] for one in ports} == {"grpc": 50051, "metrics": 9464}


def test_a_wrong_object_is_noticed(production: list[Object]) -> None:
    wrong = json.loads(json.dumps(named(production, "CronJob", "recparams-training")))
    wrong["spec"]["concurencyPolicy"] = "Forbid"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES[-1], strict=True)


def test_every_object_is_in_the_overlays_namespace(overlay: list[Object]) -> None:
    (namespace,) = [one["metadata"]["name"] for one in overlay if one["kind"] == "Namespace"]
    assert {one["metadata"].get("namespace") for one in overlay if one["kind"] != "Namespace"} == {
        namespace
    }
    assert not [one for one in overlay if one["kind"] == "Secret"], "secrets are by reference"


def test_pods_are_restricted(overlay: list[Object]) -> None:
    assert len(pods(overlay)) == 3
    for pod in pods(overlay).values():
        spec = pod["spec"]
        (container,) = spec["containers"]
        for first in spec.get("initContainers", ()):
            assert first["securityContext"] == container["securityContext"]
            assert first["image"] == container["image"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["serviceAccountName"] == "recparams"
        # Or RECPARAMS_PORT would be tcp://..., as of links to a Service called recparams.
        assert spec["enableServiceLinks"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        (mount,) = container["volumeMounts"]
        assert mount["mountPath"] == "/tmp"
        (volume,) = spec["volumes"]
        assert (volume["name"], "emptyDir" in volume) == (mount["name"], True)
        assert {"cpu", "memory"} == set(container["resources"]["requests"])
        assert "command" not in container, "it would bypass the image's entry point"


def test_selectors_select_what_they_are_for(overlay: list[Object]) -> None:
    templates = {name: pod["metadata"]["labels"] for name, pod in pods(overlay).items()}

    def selected(labels: dict[str, str]) -> set[str]:
        return {name for name, has in templates.items() if labels.items() <= has.items()}

    for name in ("recparams", "recparams-trainer"):
        assert selected(named(overlay, "Service", name)["spec"]["selector"]) == {name}
        deployment = named(overlay, "Deployment", name)
        assert selected(deployment["spec"]["selector"]["matchLabels"]) == {name}
    budget = named(overlay, "PodDisruptionBudget", "recparams")
    assert selected(budget["spec"]["selector"]["matchLabels"]) == {"recparams"}
    assert named(overlay, "Service", "recparams")["spec"]["clusterIP"] == "None"
    scaler = named(overlay, "HorizontalPodAutoscaler", "recparams")
    assert scaler["spec"]["scaleTargetRef"]["name"] == "recparams"
    assert "replicas" not in named(overlay, "Deployment", "recparams")["spec"]
    everything = named(overlay, "NetworkPolicy", "recparams")["spec"]
    assert selected(everything["podSelector"]["matchLabels"]) == set(templates)
    assert everything["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(everything)
    way_out = named(overlay, "NetworkPolicy", "recparams-training")["spec"]
    assert selected(way_out["podSelector"]["matchLabels"]) == {"recparams-training"}
    (to,) = way_out["egress"][0]["to"]
    assert selected(to["podSelector"]["matchLabels"]) == {"recparams-trainer"}
    way_in = named(overlay, "NetworkPolicy", "recparams-operators")["spec"]
    cron_job, _ = way_in["ingress"][0]["from"]
    assert selected(cron_job["podSelector"]["matchLabels"]) == {"recparams-training"}


@pytest.mark.parametrize("name", ["recparams", "recparams-trainer"])
def test_servers_start_with_what_they_are_given(
    overlay: list[Object], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = pods(overlay)[name]
    for variable, value in {**image_variables(), **variables(overlay, pod)}.items():
        monkeypatch.setenv(variable, value)
    settings = Settings()
    (container,) = pod["spec"]["containers"]
    assert container["args"] == ["serve"]
    assert settings.environment == "production"
    assert settings.host == "0.0.0.0"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": settings.port, "metrics": settings.metrics_port}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": settings.port}
    longest = settings.lame_duck_seconds + settings.drain_seconds
    assert pod["spec"]["terminationGracePeriodSeconds"] > longest + 5
    if name == "recparams-trainer":
        assert settings.training_threads == int(container["resources"]["limits"]["cpu"])


def image_variables() -> dict[str, str]:
    """Settings that the Dockerfile makes."""
    return dict(re.findall(r"(RECPARAMS_\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))


def test_every_variable_is_a_setting(overlay: list[Object]) -> None:
    for pod in pods(overlay).values():
        assert set(variables(overlay, pod)) <= {*VARIABLES, "JOB"}
    assert set(image_variables()) <= VARIABLES
    for file in DEPLOY.rglob("*.y*ml"):
        assert set(re.findall(r"RECPARAMS_\w+", file.read_text())) <= VARIABLES, file


def test_the_overlay_for_ray(production: list[Object], monkeypatch: pytest.MonkeyPatch) -> None:
    objects = build("overlays/ray")
    (cluster,) = [one for one in objects if one["kind"] == "RayCluster"]
    for one in production:
        named(objects, one["kind"], re.sub(r"-[a-z0-9]{10}$", "", one["metadata"]["name"]))
    trainer = pods(objects)["recparams-trainer"]
    images = {trainer["spec"]["containers"][0]["image"]}
    spec = cluster["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        # What only KubeRay's own schema describes is at least a valid pod.
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, **group["template"]}
        pod["metadata"] = {"name": "any", **group["template"]["metadata"]}
        for version in KUBERNETES:
            kubernetes_validate.validate(pod, version, strict=True)
        (container,) = pod["spec"]["containers"]
        (theirs,) = trainer["spec"]["containers"]
        assert container["securityContext"] == theirs["securityContext"]
        assert pod["spec"]["securityContext"] == trainer["spec"]["securityContext"]
        names = [one["name"] for one in container["env"]]
        assert names == ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN"]
        images.add(container["image"])
    assert images == {"registry.example.com/recparams-ray:0.1.0"}
    monkeypatch.setitem(SECRET, "ray-token", "a-token")
    given = variables(objects, trainer)
    assert given["RAY_AUTH_TOKEN"] == "a-token"
    for variable, value in {**image_variables(), **given}.items():
        monkeypatch.setenv(variable, value)
    settings = Settings()
    assert settings.training_engine == "ray"
    assert settings.ray_address == "ray://recparams-ray-head-svc:10001"
    for one in objects:
        if one["kind"] == "NetworkPolicy":
            kubernetes_validate.validate(one, KUBERNETES[-1], strict=True)


def test_the_cron_job(production: list[Object]) -> None:
    spec = named(production, "CronJob", "recparams-training")["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("0 1 * * 1", "Etc/UTC")
    assert spec["concurrencyPolicy"] == "Forbid"
    job = spec["jobTemplate"]["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    (rule,) = job["podFailurePolicy"]["rules"]
    final = {int(code) for code in Exit} - {Exit.OK, Exit.UNREACHABLE}
    assert (rule["action"], set(rule["onExitCodes"]["values"])) == ("FailJob", final)
    service, port = variables(production, job["template"])["RECPARAMS_ADDRESS"].split(":")
    served = named(production, "Service", service)["spec"]["ports"]
    assert [one["port"] for one in served] == [int(port)]


async def test_exit_codes_of_the_cron_job(
    production: list[Object], app: App, client: Client, db: asyncpg.Connection
) -> None:
    """Its own arguments and variables; only the address is the test's."""
    pod = pods(production)["recparams-training"]
    given = variables(production, pod)
    assert set(given) == {"JOB", "RECPARAMS_ADDRESS", "RECPARAMS_ADMIN_KEY"}
    (container,) = pod["spec"]["containers"]

    async def cron_job(job: str, address: str = f"127.0.0.1:{app.port}") -> Outcome:
        ours = {"JOB": job, "RECPARAMS_ADDRESS": address}
        arguments = [argument.replace("$(JOB)", job) for argument in container["args"]]
        return await run(*arguments, **{**given, **ours})

    assert (await cron_job("nothing-new")).code == Exit.OK
    await live(client, PEOPLE, likes_high_energy)
    refused = await cron_job("too-few")
    assert refused.code == Exit.GATED
    assert "outcome              refused: trained on " in refused.out
    await hold_runs(db)
    pods_of_one_job = [asyncio.create_task(cron_job("evicted"))]
    await until_running(db)
    assert (await cron_job("another")).code == Exit.ALREADY_RUNNING
    pods_of_one_job.append(asyncio.create_task(cron_job("evicted")))
    await let_go(db)
    outcomes = await asyncio.gather(*pods_of_one_job)
    assert [outcome.code for outcome in outcomes] == [Exit.OK, Exit.OK]
    for outcome in outcomes:
        assert ["run", "3"] in [line.split() for line in outcome.out.splitlines()]
    assert (await cron_job("away", "127.0.0.1:1")).code == Exit.UNREACHABLE
