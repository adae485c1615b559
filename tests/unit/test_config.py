"""Settings and registry: what is read, and that every mistake is named."""

from pathlib import Path

import pytest

from app.config import SHIPPED_REGISTRY, ModelSpec, Registry, read_registry, read_settings
from app.errors import ConfigError


def test_settings_come_from_the_environment_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKD_PORT", "8123")
    monkeypatch.setenv("RERANKD_HOST", "0.0.0.0")
    settings = read_settings(host="127.0.0.9", port=None)
    assert (settings.host, settings.port) == ("127.0.0.9", 8123)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", []), ("one", ["one"]), ("one, two ,", ["one", "two"]), (" , ", [])],
)
def test_api_keys_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, value: str, expected: list[str]) -> None:
    monkeypatch.setenv("RERANKD_API_KEYS", value)
    assert [key.get_secret_value() for key in read_settings().api_keys] == expected


def test_keys_and_tokens_do_not_show_when_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKD_API_KEYS", "sesame")
    monkeypatch.setenv("RERANKD_HUB_TOKEN", "hf_sesame")
    assert "sesame" not in repr(read_settings())


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("RERANKD_PORT", "http", "port"),
        ("RERANKD_PORT", "70000", "port"),
        ("RERANKD_MAX_DOCUMENTS", "0", "max_documents"),
        ("RERANKD_LOG_LEVEL", "chatty", "log_level"),
        ("RERANKD_REQUEST_TIMEOUT_S", "-1", "request_timeout_s"),
    ],
)
def test_an_unusable_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, named: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=named):
        read_settings()


def test_the_log_level_may_be_written_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKD_LOG_LEVEL", "debug")
    assert read_settings().log_level == "DEBUG"


def test_the_shipped_registry_is_usable() -> None:
    registry = read_registry(SHIPPED_REGISTRY)
    assert registry.default in {spec.name for spec in registry.model}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "model: Field required"),
        ("model = []", "at least 1"),
        ("[[model]]\nname = 'a'", "a model needs either path or stages"),
        ("[[model]]\nname = 'a'\npath = 'p'\ncolour = 'red'", "model.0.colour"),
        ("[[model]]\nname = 'a b'\npath = 'p'", "no model name"),
        ("[[model]]\nname = 'a'\npath = 'p'\n[[model]]\nname = 'a'\npath = 'q'", "'a' is named by"),
        ("[[model]]\nname = 'a'\npath = 'p'\n[[model]]\nname = 'b'\npath = 'q'\naliases = ['a']", "'a' is named by"),
        ("default = 'z'\n[[model]]\nname = 'a'\npath = 'p'", "default = 'z'"),
        ("[[model]]\nname = 'a'\npath = 'p'\nmax_length = 4", "max_length"),
        ("this is no toml", "no valid TOML"),
    ],
)
def test_a_mistake_in_the_registry_is_named(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "registry.toml"
    path.write_text(content)
    with pytest.raises(ConfigError) as raised:
        read_registry(path)
    assert complaint in str(raised.value)


def test_a_missing_registry_names_the_variable_that_sets_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="RERANKD_REGISTRY"):
        read_registry(tmp_path / "nowhere.toml")


def test_a_registry_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no valid TOML"):
        read_registry(path)


_THREE = Registry(
    default="b",
    model=tuple(ModelSpec(name=name, path=name, aliases=(f"{name}-alias",)) for name in ("a", "b", "c")),
)


@pytest.mark.parametrize(
    ("names", "kept", "default"),
    [
        ([None], ["b"], "b"),
        (["c"], ["c"], "c"),
        (["a-alias", None], ["a", "b"], "b"),
        (["c", "a"], ["a", "c"], "a"),
    ],
)
def test_only_the_named_models_are_kept(names: list[str | None], kept: list[str], default: str) -> None:
    selected = _THREE.only(names)
    assert [spec.name for spec in selected.model] == kept
    assert selected.default == default


def test_keeping_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown model nix; known: a, b, c"):
        _THREE.only(["a", "nix"])


@pytest.mark.parametrize(
    ("stages", "steps"),
    [
        (["a"], [("a", None)]),
        (["a:50", "b:20"], [("a", 50), ("b", 20)]),
        (["org/a:v1", "b:1"], [("org/a:v1", None), ("b", 1)]),
    ],
)
def test_a_cascade_names_models_and_depths(stages: list[str], steps: list[tuple[str, int | None]]) -> None:
    spec = ModelSpec(name="both", stages=tuple(stages))
    assert [(step.model, step.depth) for step in spec.cascade] == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[model]]\nname = "a"', "a model needs either path or stages"),
        ('[[model]]\nname = "a"\npath = "."\nstages = ["a"]', "a model needs either path or stages"),
        ('[[model]]\nname = "a"\npath = "."\n[[model]]\nname = "b"\nstages = ["a:0"]', "a depth is at least 1"),
        ('[[model]]\nname = "b"\nstages = ["a"]', "'a' is no served model"),
        ('[[model]]\nname = "b"\nstages = ["b"]', "'b' is itself a cascade"),
    ],
)
def test_a_cascade_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "registry.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_registry(path)


def test_a_cascade_brings_its_members_along(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    path.write_text(
        '[[model]]\nname = "a"\npath = "."\n[[model]]\nname = "b"\naliases = ["bee"]\npath = "."\n'
        '[[model]]\nname = "c"\npath = "."\n[[model]]\nname = "both"\nstages = ["a:9", "bee"]\n'
    )
    kept = read_registry(path).only(["both"])
    assert [spec.name for spec in kept.model] == ["a", "b", "both"]
    assert kept.default == "both"
