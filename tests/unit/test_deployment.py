"""The Dockerfile and the compose files name only files, settings and build targets that exist."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from rerankd.config.registry import read_registry
from rerankd.config.settings import Settings

_ROOT = Path(__file__).resolve().parents[2]
_COMPOSE_FILES = sorted(_ROOT.glob("docker-compose*.yml"))
_DOCKERFILE = (_ROOT / "Dockerfile").read_text(encoding="utf-8")
_SETTINGS = {f"RERANKD_{name.upper()}" for name in Settings.model_fields}


def _services(path: Path) -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["services"]
    return services


_SERVICES = [(path.name, name, service) for path in _COMPOSE_FILES for name, service in _services(path).items()]
_each_service = pytest.mark.parametrize(
    ("file", "name", "service"), _SERVICES, ids=[f"{file}:{name}" for file, name, _ in _SERVICES]
)


def _copied() -> list[str]:
    """What the Dockerfile takes from the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", _DOCKERFILE, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


_STACK = _services(_ROOT / "docker-compose.yml")
_each_of_the_stack = pytest.mark.parametrize("name", list(_STACK))


def test_compose_starts_the_service_with_a_load_balancer_its_cache_metrics_and_dashboard() -> None:
    assert list(_STACK) == ["rerankd", "haproxy", "redis", "prometheus", "grafana"]


@_each_of_the_stack
def test_what_compose_publishes_other_machines_do_not_reach(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in _STACK[name].get("ports", []))


def test_other_machines_reach_the_service_only_with_keys_from_a_secret_file() -> None:
    public = yaml.safe_load((_ROOT / "docker-compose.public.yml").read_text(encoding="utf-8"))
    assert public["services"]["haproxy"]["ports"] == ["${RERANKD_PUBLIC_PORT:-8080}:8000"]
    assert public["services"]["rerankd"]["environment"]["RERANKD_API_KEYS_FILE"] == "/run/secrets/keys"
    assert public["services"]["rerankd"]["secrets"] == ["keys"]
    assert public["secrets"]["keys"]["file"].startswith("${RERANKD_KEYS:?"), "without a file nothing starts"
    assert not any("KEY" in name for name in _STACK["rerankd"]["environment"]), "none lies in the environment"


def test_the_service_can_be_scaled() -> None:
    """A published port or a name of its own would be there only once."""
    assert not {"ports", "container_name", "hostname"} & _STACK["rerankd"].keys()
    balancer = (_ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text(encoding="utf-8")
    assert "server-template rerankd- 8 rerankd:8000 check" in balancer
    assert ":8000" in _STACK["haproxy"]["ports"][0]


@_each_of_the_stack
def test_each_service_is_bounded_checked_and_hardened(name: str) -> None:
    service = _STACK[name]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["healthcheck"]["test"]
    assert service["read_only"] is True
    assert service["restart"] == "unless-stopped"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def _images() -> list[str]:
    """Of other makers."""
    (python,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", _DOCKERFILE, re.MULTILINE)
    return [python, *(service["image"] for service in _STACK.values() if not service["image"].startswith("rerankd:"))]


@pytest.mark.parametrize("image", _images())
def test_images_have_versions(image: str) -> None:
    assert re.fullmatch(r"[a-z/]+:v?\d+(\.\d+)*(-[a-z-]+)?(@sha256:[0-9a-f]{64})?", image)


def test_every_stage_of_the_image_is_built_on_that_python() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", _DOCKERFILE, re.MULTILINE)
    own = {name for _, name in stages}
    assert {base for base, _ in stages} <= own | {"${PYTHON_IMAGE}"}


def test_digests_are_written_behind_the_tags_of_images(tmp_path: Path) -> None:
    digest, program = f"sha256:{'0123456789abcdef' * 4}", tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho {digest}\n")
    program.chmod(0o755)
    for name in ("Dockerfile", "docker-compose.yml"):
        shutil.copy(_ROOT / name, tmp_path)
    environment = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(
            [_ROOT / "scripts" / "pin_images.sh", tmp_path], env=environment, check=True, capture_output=True
        )
    pinned = _services(tmp_path / "docker-compose.yml")
    for name, service in _STACK.items():
        bare = service["image"].partition("@")[0]
        assert pinned[name]["image"] == (bare if bare.startswith("rerankd:") else f"{bare}@{digest}")
    (python,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", (tmp_path / "Dockerfile").read_text(), re.MULTILINE)
    assert python == f"{_images()[0].partition('@')[0]}@{digest}"


@_each_service
def test_mounted_files_exist(file: str, name: str, service: dict[str, Any]) -> None:
    sources = [volume.split(":")[0] for volume in service.get("volumes", [])]
    for source in (source for source in sources if source.startswith(".")):
        assert (_ROOT / source).exists(), source


@_each_service
def test_built_targets_are_stages_of_the_dockerfile(file: str, name: str, service: dict[str, Any]) -> None:
    if "build" in service:
        assert f" AS {service['build']['target']}\n" in _DOCKERFILE


@_each_service
def test_compose_sets_only_settings_that_exist(file: str, name: str, service: dict[str, Any]) -> None:
    assert {key for key in service.get("environment", {}) if key.startswith("RERANKD_")} <= _SETTINGS


def test_dockerfile_copies_only_files_that_exist_and_reach_the_build() -> None:
    let_through = (_ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for source in _copied():
        assert (_ROOT / source).exists(), source
        assert f"!{source}" in let_through, source


def test_dockerfile_sets_only_settings_that_exist() -> None:
    assert set(re.findall(r"^\s*(RERANKD_\w+)=", _DOCKERFILE, re.MULTILINE)) <= _SETTINGS


def test_the_default_image_is_the_one_for_the_cpu_and_runs_as_an_ordinary_user() -> None:
    assert re.findall(r"^FROM \S+ AS (\S+)", _DOCKERFILE, re.MULTILINE)[-1] == "cpu"
    users = re.findall(r"^USER (\S+)", _DOCKERFILE, re.MULTILINE)
    assert users[-1] == "10001:10001"


def test_the_image_reports_nothing_to_the_makers_of_its_libraries() -> None:
    for switch in ("ORT_DISABLE_TELEMETRY=1", "HF_HUB_DISABLE_TELEMETRY=1"):
        assert switch in _DOCKERFILE


def test_the_image_holds_every_model_of_the_shipped_registry() -> None:
    registry = read_registry(_ROOT / "models" / "registry.toml")
    assert {f"models/{spec.path}" for spec in registry.model} <= set(_copied())


def test_the_gpu_registry_serves_the_shipped_models_on_cuda() -> None:
    shipped = read_registry(_ROOT / "models" / "registry.toml")
    gpu = read_registry(_ROOT / "deploy" / "gpu" / "registry.toml")
    assert [spec.name for spec in gpu.model] == [spec.name for spec in shipped.model]
    assert {spec.engine_options["device"] for spec in gpu.model} == {"cuda"}


def test_compose_waits_longer_for_the_service_than_it_drains() -> None:
    service = _STACK["rerankd"]
    drain_s = (
        int(service["environment"]["RERANKD_SHUTDOWN_DELAY_S"]) + Settings.model_fields["shutdown_timeout_s"].default
    )
    assert int(service["stop_grace_period"].removesuffix("s")) > drain_s


def test_the_image_is_the_command_and_serves_by_default() -> None:
    assert re.findall(r"^(ENTRYPOINT|CMD) (.+)$", _DOCKERFILE, re.MULTILINE) == [
        ("ENTRYPOINT", '["rerankd"]'),
        ("CMD", '["serve"]'),
    ]


def test_images_without_kernels_are_not_built() -> None:
    stages = re.split(r"^FROM ", _DOCKERFILE, flags=re.MULTILINE)
    checked = [
        stage.split()[2] for stage in stages if 'RUN ["python", "-m", "rerankd.engines.onnx.kernel_support"]' in stage
    ]
    assert checked == ["cpu-torch", "cpu"]


def test_what_the_image_installs_has_hashes() -> None:
    installs = re.findall(r"^ +pip .*install (.+)$|^RUN pip .*install (.+)$", _DOCKERFILE, re.MULTILINE)
    unhashed = [one or other for one, other in installs if "--require-hashes" not in (one or other)]
    assert unhashed == [
        '${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} -c constraints.txt torch',
        "--no-deps --no-build-isolation --prefix /opt/code .",
    ]


def test_every_file_of_the_package_is_installed_with_it() -> None:
    """The image and a wheel hold what pyproject.toml names; a checkout would not show that something is missing."""
    declared = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    installed = {
        path
        for package, patterns in declared["package-data"].items()
        for pattern in patterns
        for path in _ROOT.joinpath("app", *package.split(".")).glob(pattern)
    }
    made = {".py", ".pyc", ".so"}  # by Python, and by the build
    others = {path for path in (_ROOT / "app" / "rerankd").rglob("*.*") if path.is_file() and path.suffix not in made}
    assert others == {path for path in installed if not path.is_relative_to(_ROOT / "app" / "rerankd" / "models")}


def test_the_workflow_runs_with_every_python_that_the_package_names() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    job = yaml.safe_load((_ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == named
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert project["requires-python"] == f">={named[0]}"


@pytest.mark.parametrize(
    "form", sorted((_ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_forms_ask_for_something(form: Path) -> None:
    read = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert read["name"]
    assert read["description"]
    fields = [part for part in read["body"] if part["type"] != "markdown"]
    assert all(field["id"] and field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)
