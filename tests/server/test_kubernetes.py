"""The manifests of `deploy/kubernetes`: their form, names that lead to each other, and what Atoll needs of them."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from atoll import settings
from atoll.server.ray import options as ray_options

DIRECTORY = Path(__file__).parents[2] / "deploy" / "kubernetes"
RAY_CONTAINER = 0
"""The container of a pod that KubeRay has run Ray."""


def documents() -> list[dict[str, Any]]:
    found = [list(yaml.safe_load_all(path.read_text())) for path in sorted(DIRECTORY.glob("*.yaml"))]
    return [document for documents in found for document in documents]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [one for one in documents() if one["kind"] == kind]


def closed(required: str = "", **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
LIST = {"type": "array", "items": TEXT}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[0-9.]+(m|[KMGT]i?)?$"}}
RESOURCES = closed(requests=QUANTITIES, limits=QUANTITIES)
ENV = {
    "type": "array",
    "items": {
        **closed(
            "name",
            name=TEXT,
            value=TEXT,
            valueFrom=closed("secretKeyRef", secretKeyRef=closed("name key", name=TEXT, key=TEXT)),
        ),
        "oneOf": [{"required": ["value"]}, {"required": ["valueFrom"]}],
    },
}
PROBE = {
    **closed(
        exec=closed("command", command=LIST),
        httpGet=closed("path port", path=TEXT, port=COUNT),
        initialDelaySeconds=COUNT,
        periodSeconds=COUNT,
        timeoutSeconds=COUNT,
        failureThreshold=COUNT,
    ),
    "oneOf": [{"required": ["exec"]}, {"required": ["httpGet"]}],
}
CONTAINER = closed(
    "name image resources volumeMounts",
    name={"type": "string", "pattern": "^[a-z0-9-]{1,63}$"},
    image=TEXT,
    command=LIST,
    args=LIST,
    env=ENV,
    ports={"type": "array", "items": closed("containerPort", name=TEXT, containerPort=COUNT)},
    resources=RESOURCES,
    volumeMounts={"type": "array", "items": closed("name mountPath", name=TEXT, mountPath=TEXT, subPath=TEXT)},
    readinessProbe=PROBE,
    livenessProbe=PROBE,
    securityContext=closed(privileged=FLAG),
)
VOLUME = {
    **closed(
        "name",
        name=TEXT,
        emptyDir=closed(medium={"const": "Memory"}, sizeLimit=TEXT),
        persistentVolumeClaim=closed("claimName", claimName=TEXT),
        configMap=closed("name", name=TEXT),
    ),
    "minProperties": 2,
    "maxProperties": 2,
}
TEMPLATE = closed(
    "spec",
    spec=closed(
        "containers volumes",
        containers={"type": "array", "minItems": 1, "items": CONTAINER},
        volumes={"type": "array", "items": VOLUME},
        shareProcessNamespace=FLAG,
        terminationGracePeriodSeconds=COUNT,
        tolerations={"type": "array", "items": closed("key operator", key=TEXT, operator=TEXT, effect=TEXT)},
    ),
)
RAY_CLUSTER = closed(
    "rayVersion headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=closed(
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        env=ENV,
        resources=RESOURCES,
    ),
    headGroupSpec=closed("rayStartParams template", rayStartParams=TEXTS, template=TEMPLATE),
    workerGroupSpecs={
        "type": "array",
        "items": closed(
            "groupName replicas minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=TEMPLATE,
        ),
    },
)
"""The fields of `ray.io/v1` that the manifest uses, of KubeRay's reference; all others are refused."""


def templates() -> list[tuple[str, dict[str, Any]]]:
    spec = of_kind("RayCluster")[0]["spec"]
    groups = [("head", spec["headGroupSpec"]), *((one["groupName"], one) for one in spec["workerGroupSpecs"])]
    return [(name, group["template"]["spec"]) for name, group in groups]


def test_objects_are_whole() -> None:
    """Each document has version, kind and name, and is in the namespace that the files make."""
    (namespace,) = of_kind("Namespace")
    for one in documents():
        assert one["apiVersion"]
        assert one["metadata"]["name"]
        if one is not namespace and one["kind"] != "Namespace":
            assert one["metadata"]["namespace"] == namespace["metadata"]["name"], one["kind"]


def test_the_cluster_has_known_fields() -> None:
    """The fields of the cluster are those of KubeRay's CRD, with values of their types."""
    (cluster,) = of_kind("RayCluster")
    assert cluster["apiVersion"] == "ray.io/v1"
    jsonschema.validate(cluster["spec"], RAY_CLUSTER)
    for group in cluster["spec"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize(("name", "pod"), templates(), ids=[name for name, _ in templates()])
def test_pods(name: str, pod: dict[str, Any]) -> None:
    """Volumes are those of the pod, claims and maps exist, every process has the token, and workers may make sandboxes."""
    claims = {one["metadata"]["name"] for one in of_kind("PersistentVolumeClaim")}
    maps = {one["metadata"]["name"]: one["data"] for one in of_kind("ConfigMap")}
    volumes = {one["name"]: one for one in pod["volumes"]}
    used = set()
    for container in pod["containers"]:
        for mount in container["volumeMounts"]:
            used.add(mount["name"])
            volume = volumes[mount["name"]]
            if "subPath" in mount:
                assert mount["subPath"] in maps[volume["configMap"]["name"]]
        variables = {one["name"]: one for one in container["env"]}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        assert (
            variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == of_kind("Secret")[0]["metadata"]["name"]
        )
    assert used == set(volumes)
    assert {
        one["persistentVolumeClaim"]["claimName"] for one in volumes.values() if "persistentVolumeClaim" in one
    } <= claims
    mounts = {one["mountPath"] for one in pod["containers"][RAY_CONTAINER]["volumeMounts"]}
    if name == "head":
        server = pod["containers"][1]
        assert {"/tmp/ray", "/dev/shm"} <= mounts & {one["mountPath"] for one in server["volumeMounts"]}
        assert pod["shareProcessNamespace"]
    else:
        assert pod["containers"][RAY_CONTAINER]["securityContext"]["privileged"]
        assert "/var/lib/atoll-volumes" in mounts


def test_the_servers_options_are_atolls_own() -> None:
    """The command line of the server is one, its settings can be read, and workers keep `/data` where the server does."""
    server = dict(templates())["head"]["containers"][1]
    from atoll.cli.main import run

    assert server["command"][:2] == ["/opt/atoll/bin/atoll", "server"]
    assert (
        run([*server["command"][1:], *server["args"], "--demo"]) == 2
    )  # all are known; `--demo` refuses their company
    assert run(["server", "--unknown"]) == 2
    texts = of_kind("ConfigMap")[0]["data"]
    for text in texts.values():
        tomllib.loads(text)


def test_settings_can_be_read(tmp_path: Path) -> None:
    """Server and nodes read their settings; machines that the autoscaler adds are as large as the groups' limits."""
    texts = of_kind("ConfigMap")[0]["data"]
    found = {}
    for name, text in texts.items():
        (tmp_path / name).mkdir(mode=0o700)
        (tmp_path / name / "settings.toml").write_text(text)
        found[name] = settings.load(tmp_path / name)
    assert found["server.toml"].storage == found["node.toml"].storage
    options = ray_options.read(found["server.toml"].ray)
    limits = [pod["containers"][RAY_CONTAINER]["resources"]["limits"] for name, pod in templates() if name != "head"]
    expected = {
        (int(one["cpu"]), int(one["memory"].removesuffix("Gi")), int(one.get("nvidia.com/gpu", 0))) for one in limits
    }
    assert {
        (one.total.millicores // 1000, one.total.memory_bytes >> 30, one.total.gpus) for one in options.types
    } == expected
    shutil.rmtree(tmp_path / "server.toml")


def test_services_lead_to_ports() -> None:
    """The Service, the Ingress and the policy name the port on which the server listens."""
    server = dict(templates())["head"]["containers"][1]
    (port,) = server["ports"]
    service = of_kind("Service")[0]["spec"]["ports"][0]
    assert service["targetPort"] == port["name"]
    assert f"0.0.0.0:{port['containerPort']}" in server["args"]
    backend = of_kind("Ingress")[0]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": of_kind("Service")[0]["metadata"]["name"], "port": {"name": service["name"]}}
    policy = of_kind("NetworkPolicy")[0]["spec"]["ingress"]
    assert policy[-1] == {"ports": [{"protocol": "TCP", "port": port["containerPort"]}]}
