"""Models that a command line or RERANKD_MODEL names become a registry."""

from pathlib import Path

import pytest

from rerankd.config.named_models import served_registry
from rerankd.config.settings import Settings, read_settings
from rerankd.errors import ConfigError
from tests.registry_files import write_registry


def named(*models: str, **settings: object) -> list[tuple[str, str]]:
    registry = served_registry(Settings(model=models, **settings))  # type: ignore[arg-type]
    return [(spec.name, spec.path) for spec in registry.model]


def test_folders_and_names_on_the_hub_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "here").mkdir(parents=True)
    assert named("org/here", "org/there@v1", "hub:org/elsewhere", "./no such folder") == [
        ("here", str(tmp_path / "org" / "here")),
        ("there", "hub:org/there@v1"),
        ("elsewhere", "hub:org/elsewhere"),
        ("no-such-folder", str(tmp_path / "no such folder")),
    ]


def test_models_that_end_alike_keep_their_whole_names() -> None:
    assert [name for name, _ in named("a/model", "b/model", "b/other")] == ["a/model", "b/model", "other"]


def test_a_repository_answers_to_its_whole_name_too() -> None:
    registry = served_registry(Settings(model=("BAAI/bge-reranker-base",), model_name=("bge",)))
    (spec,) = registry.model
    assert registry.aliases_of(spec) == ("BAAI/bge-reranker-base",)


def test_everything_else_is_left_open() -> None:
    (spec,) = served_registry(Settings(model=("org/a",), model_device="cuda", model_dtype="float16")).model
    assert (spec.scorer, spec.engine) == ("auto", "auto")
    assert spec.engine_options == {"device": "cuda", "precision": "float16"}


@pytest.mark.parametrize(
    ("models", "names", "reason"),
    [
        (["bge"], [], "neither a folder nor a name on the hub"),
        (["a/b", "c/d"], ["one"], "2 models and 1 names"),
        (["a/b", "a/b"], ["one", "one"], "'one'"),
    ],
)
def test_names_that_mean_no_model_are_refused(models: list[str], names: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        named(*models, model_name=tuple(names))


def test_the_environment_names_models_with_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKD_REGISTRY", str(write_registry(tmp_path, [{"name": "x", "path": "x"}])))
    monkeypatch.setenv("RERANKD_MODEL", "org/a, org/b")
    assert [spec.name for spec in served_registry(read_settings()).model] == ["a", "b"]
    assert [spec.name for spec in served_registry(read_settings(model=())).model] == ["x"]
