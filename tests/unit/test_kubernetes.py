"""The manifests of deploy/kubernetes: what they render to is committed, valid, restricted, and fits the service."""

import difflib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from rerankd.config.settings import Settings

_FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
_RENDERED = sorted((_FOLDER / "rendered").glob("*.yaml"))
_OVERLAYS = sorted(path.name for path in (_FOLDER / "overlays").iterdir())
_VERSION = "1.30"
# Their schemas belong to operators, and are not Kubernetes' own.
_OF_OPERATORS = {"ScaledObject", "ServiceMonitor"}


def _objects(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]


def _all() -> list[Any]:
    return [
        pytest.param(one, id=f"{path.stem}-{one['kind']}-{one['metadata']['name']}")
        for path in _RENDERED
        for one in _objects(path)
    ]


def _pods() -> list[Any]:
    return [one for one in _all() if one.values[0]["kind"] == "Deployment"]


@pytest.mark.parametrize("overlay", _OVERLAYS)
def test_what_is_rendered_is_what_is_committed(overlay: str) -> None:
    """`kubectl kustomize deploy/kubernetes/overlays/X >deploy/kubernetes/rendered/X.yaml` writes it again."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed; Debian has none that is new enough")
    command = ["kubectl", "kustomize", str(_FOLDER / "overlays" / overlay)]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    committed = (_FOLDER / "rendered" / f"{overlay}.yaml").read_text(encoding="utf-8")
    difference = difflib.unified_diff(
        committed.splitlines(), rendered.splitlines(), "committed", "rendered", lineterm=""
    )
    assert "\n".join(difference) == ""


def test_every_overlay_is_committed() -> None:
    assert [path.stem for path in _RENDERED] == _OVERLAYS


@pytest.mark.parametrize("manifest", _all())
def test_a_manifest_fits_the_schema_of_kubernetes(manifest: dict[str, Any]) -> None:
    if manifest["kind"] in _OF_OPERATORS:
        assert {"apiVersion", "kind", "metadata", "spec"} == manifest.keys()
        return
    kubernetes_validate.validate(manifest, _VERSION, strict=True)


@pytest.mark.parametrize("manifest", _pods())
def test_pods_are_allowed_where_the_restricted_standard_is_enforced(manifest: dict[str, Any]) -> None:
    """Kubernetes' Pod Security Standards, level `restricted`."""
    pod = manifest["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert all(volume.keys() & {"emptyDir", "secret", "configMap"} for volume in pod["volumes"])
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        assert ":" in container["image"], "an image has a version"


@pytest.mark.parametrize("path", _RENDERED, ids=lambda path: path.stem)
def test_the_service_is_configured_by_settings_that_exist_and_stops_within_its_grace(path: Path) -> None:
    deployment = next(
        one for one in _objects(path) if one["kind"] == "Deployment" and one["metadata"]["name"] == "rerankd"
    )
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    names = {name.removeprefix("RERANKD_").lower() for name in environment}
    assert names <= set(Settings.model_fields)
    stopping_s = sum(float(environment[f"RERANKD_SHUTDOWN_{name}_S"] or 0) for name in ("DELAY", "TIMEOUT"))
    assert pod["terminationGracePeriodSeconds"] > stopping_s
    probe = container["readinessProbe"]
    assert float(environment["RERANKD_SHUTDOWN_DELAY_S"] or 0) > probe["periodSeconds"] + probe["timeoutSeconds"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("path", _RENDERED, ids=lambda path: path.stem)
def test_selectors_find_the_pods_and_secrets_and_maps_have_names(path: Path) -> None:
    objects = _objects(path)
    labels = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in objects
        if one["kind"] == "Deployment"
    }
    for one in objects:
        selector = one.get("spec", {}).get("selector") or one.get("spec", {}).get("podSelector")
        if selector is not None:
            wanted = selector.get("matchLabels", selector)
            assert wanted.items() <= labels[one["metadata"]["name"]].items()
    maps = {one["metadata"]["name"] for one in objects if one["kind"] == "ConfigMap"}
    asked = {
        volume["configMap"]["name"]
        for one in objects
        if one["kind"] == "Deployment"
        for volume in one["spec"]["template"]["spec"]["volumes"]
        if "configMap" in volume
    }
    assert asked == maps


def test_autoscaling_asks_for_what_the_rules_record() -> None:
    rules = _FOLDER.parent / "prometheus" / "rules" / "recording.yml"
    recorded = {
        rule["record"]
        for group in yaml.safe_load(rules.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    }
    scaled = next(one for one in _objects(_FOLDER / "rendered" / "production.yaml") if one["kind"] == "ScaledObject")
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    assert {query.removeprefix("sum(").removesuffix(")") for query in queries} <= recorded
    monitor = next(one for one in _objects(_FOLDER / "rendered" / "production.yaml") if one["kind"] == "ServiceMonitor")
    assert monitor["spec"]["endpoints"][0]["path"] == "/metrics"
