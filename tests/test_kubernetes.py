"""The Kubernetes manifests: existing fields, names and options, pods without privileges, no secrets."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from adafuse_core import EnsembleConfig
from adafuse_core.backends import BACKENDS
from adafuse_integrations.cli.main import parser
from adafuse_integrations.server.config import ServerConfig

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples/kubernetes"
OBJECTS = {
    f"{path.name}:{each['kind']}/{each['metadata']['name']}": each
    for path in sorted(FOLDER.glob("*.yaml"))
    for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))
}
(RAY,) = (each for each in OBJECTS.values() if each["kind"] == "RayService")
CORE = {name: each for name, each in OBJECTS.items() if each is not RAY}
GROUPS = {"head": RAY["spec"]["rayClusterConfig"]["headGroupSpec"]} | {
    each["groupName"]: each for each in RAY["spec"]["rayClusterConfig"]["workerGroupSpecs"]
}
PODS = {name: each["spec"]["template"] for name, each in CORE.items() if each["kind"] == "Deployment"} | {
    f"RayService {name}": group["template"] for name, group in GROUPS.items()
}
KUBERNETES = "1.35"

# Fields of KubeRay's RayService, as far as the manifest may use them: their types, and which ones are required.
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_POD = {"type": "object", "required": ["spec"]}  # checked as a pod template
_NUMBER = {"type": "integer", "minimum": 0}


def _closed(required, **fields):
    return {"type": "object", "additionalProperties": False, "required": required, "properties": fields}


_WORKERS = _closed(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName={"type": "string"},
    rayStartParams=_TEXTS,
    template=_POD,
    **dict.fromkeys(("replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds"), _NUMBER),
)
_HEAD = _closed(["rayStartParams", "template"], rayStartParams=_TEXTS, template=_POD, serviceType={"type": "string"})
_CLUSTER = _closed(
    ["headGroupSpec"],
    rayVersion={"type": "string"},
    enableInTreeAutoscaling={"type": "boolean"},
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
)
_SPEC = _closed(
    ["serveConfigV2", "rayClusterConfig"],
    serveConfigV2={"type": "string"},
    excludeHeadPodFromServeSvc={"type": "boolean"},
    rayClusterConfig=_CLUSTER,
)
RAY_SERVICE = _closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=_closed(["name"], name={"type": "string"}, labels=_TEXTS),
    spec=_SPEC,
)


def serve_config():
    return yaml.safe_load(RAY["spec"]["serveConfigV2"])


def container(pod):
    (only,) = pod["spec"]["containers"]
    return only


def pod_object(template):
    metadata = {"name": "pod", **template["metadata"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


@pytest.mark.parametrize("name", CORE)
def test_core_objects_have_only_fields_of_kubernetes(name):
    kubernetes_validate.validate(CORE[name], KUBERNETES, strict=True)


@pytest.mark.parametrize("name", GROUPS)
def test_pods_of_the_ray_cluster_have_only_fields_of_kubernetes(name):
    kubernetes_validate.validate(pod_object(GROUPS[name]["template"]), KUBERNETES, strict=True)


def test_the_ray_service_has_only_fields_of_kuberay():
    jsonschema.validate(RAY, RAY_SERVICE)
    for wrong in ({"replicas": 2}, {"serveConfigV2": {}}, {"rayClusterConfig": {}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(RAY | {"spec": RAY["spec"] | wrong}, RAY_SERVICE)


def test_a_wrong_field_of_a_pod_is_found():
    pod = pod_object(GROUPS["head"]["template"])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod | {"spec": pod["spec"] | {"container": []}}, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_pods_run_without_privileges(name):
    spec, own = PODS[name]["spec"], container(PODS[name])
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["securityContext"]["allowPrivilegeEscalation"] is False
    assert own["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", PODS)
def test_pods_have_probes_resources_and_a_fixed_image(name):
    own = container(PODS[name])
    assert {"livenessProbe", "readinessProbe"} <= set(own)
    assert {"cpu", "memory"} <= set(own["resources"]["requests"])
    assert "memory" in own["resources"]["limits"]
    assert re.search(r":v?\d", own["image"])
    gpus = "nvidia.com/gpu"
    assert own["resources"]["requests"].get(gpus) == own["resources"]["limits"].get(gpus)


@pytest.mark.parametrize("name", PODS)
def test_volumes_and_ports_that_pods_use_are_declared(name):
    spec, own = PODS[name]["spec"], container(PODS[name])
    assert {each["name"] for each in own["volumeMounts"]} == {each["name"] for each in spec["volumes"]}
    ports = {each["name"] for each in own["ports"]}
    probes = [own[key]["httpGet"] for key in own if key.endswith("Probe") and "httpGet" in own[key]]
    assert {probe["port"] for probe in probes} <= ports


def test_probe_commands_are_python():
    codes = [
        container(group["template"])[probe]["exec"]["command"]
        for group in GROUPS.values()
        for probe in ("livenessProbe", "readinessProbe")
    ]
    assert len(codes) == 6
    for program, option, code in codes:
        assert (program, option) == ("python", "-c")
        compile(code, "probe", "exec")


def test_services_select_pods_that_have_the_port():
    services = [each["spec"] for each in CORE.values() if each["kind"] == "Service"]
    assert len(services) == 3
    for service in services:
        (pod,) = (p for p in PODS.values() if service["selector"].items() <= p["metadata"]["labels"].items())
        assert service["ports"][0]["targetPort"] in {each["name"] for each in container(pod)["ports"]}


def test_selectors_of_policies_and_deployments_match_pods():
    labels = [each["metadata"]["labels"] for each in PODS.values()]
    selectors = [
        (each["spec"].get("selector") or each["spec"]["podSelector"])["matchLabels"]
        for each in CORE.values()
        if each["kind"] in ("Deployment", "NetworkPolicy", "PodDisruptionBudget")
    ]
    assert len(selectors) == 6
    for selector in selectors:
        assert any(selector.items() <= each.items() for each in labels)


def test_secrets_are_references_only():
    assert not [each for each in OBJECTS.values() if each["kind"] == "Secret"]
    for pod in PODS.values():
        for variable in container(pod)["env"]:
            assert not re.search("token|key|secret", variable["name"], re.IGNORECASE) or "valueFrom" in variable
    assert "api_keys" not in RAY["spec"]["serveConfigV2"]


def test_the_server_starts_with_existing_options():
    (pod,) = (each for name, each in PODS.items() if name.endswith("Deployment/adafuse"))
    args, unknown = parser().parse_known_args(container(pod)["args"])
    assert not unknown
    mounts = {each["mountPath"]: each["name"] for each in container(pod)["volumeMounts"]}
    assert mounts[str(Path(args.server_config).parent)] == "keys"
    assert mounts[str(Path(args.config).parent)] == "ensemble"


def test_members_on_vllm_call_existing_services():
    (config,) = (each["data"] for each in CORE.values() if each["kind"] == "ConfigMap")
    members = yaml.safe_load(config["ensemble.yaml"])["members"]
    services = {each["metadata"]["name"] for each in CORE.values() if each["kind"] == "Service"}
    models = [arg.partition("=")[2] for p in PODS.values() for arg in container(p).get("args", []) if "--model=" in arg]
    assert [each["model"] for each in members] == models
    for member in members:
        host = re.fullmatch(r"http://([\w-]+):8000/v1", member["backend_options"]["base_url"])[1]
        assert host in services
    if "vllm" in BACKENDS:
        EnsembleConfig.from_any({"members": members})


def test_the_application_has_options_that_the_server_honours():
    (application,) = serve_config()["applications"]
    options = dict(application["args"])
    mounted = [container(group["template"])["volumeMounts"] for group in GROUPS.values()]
    folder = str(Path(options.pop("server_config")).parent)
    assert all(folder in {each["mountPath"] for each in mounts} for mounts in mounted)
    (ensemble,) = ServerConfig.from_any(options).ensembles.values()
    names = [member.backend_options["actor_name"] for member in ensemble.members]
    assert len(set(names)) == len(names) == 2


def test_groups_have_the_resources_that_actors_and_replicas_ask_for():
    (application,) = serve_config()["applications"]
    (deployment,) = application["deployments"]
    given = {name: group["rayStartParams"].get("resources", "") for name, group in GROUPS.items()}
    assert given["servers"] == '"{\\"servers\\": 1}"'
    assert deployment["ray_actor_options"]["resources"] == {"servers": 1}
    assert GROUPS["servers"]["replicas"] == deployment["num_replicas"]
    members = application["args"]["ensembles"]["adafuse"]["members"]
    assert given["members"] == '"{\\"members\\": 1}"'
    assert all(each["backend_options"]["resources"] == {"members": 1} for each in members)
    assert GROUPS["members"]["replicas"] == len(members)
    assert RAY["spec"]["rayClusterConfig"]["rayVersion"] in (ROOT / "constraints.txt").read_text(encoding="utf-8")
