"""The Dockerfile and the compose files name only files, settings and build targets that exist."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config import Settings, read_registry

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


def test_compose_starts_the_service_with_its_cache_metrics_and_dashboard() -> None:
    assert list(_services(_ROOT / "docker-compose.yml")) == ["rerankd", "redis", "prometheus", "grafana"]


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


@_each_service
def test_nothing_in_compose_can_gain_privileges(file: str, name: str, service: dict[str, Any]) -> None:
    if file == "docker-compose.yml":
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


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
    defaults = Settings.model_fields
    drain_s = defaults["shutdown_delay_s"].default + defaults["shutdown_timeout_s"].default
    grace = _services(_ROOT / "docker-compose.yml")["rerankd"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > drain_s


def test_every_file_of_the_package_is_installed_with_it() -> None:
    """The image and a wheel hold what pyproject.toml names; a checkout would not show that something is missing."""
    declared = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    installed = {
        path
        for package, patterns in declared["package-data"].items()
        for pattern in patterns
        for path in _ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    made = {".py", ".pyc", ".so"}  # by Python, and by the build
    others = {path for path in (_ROOT / "app").rglob("*.*") if path.is_file() and path.suffix not in made}
    assert others == installed
