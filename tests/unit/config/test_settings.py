"""Settings and registry: what is read, and that every mistake is named."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel

from rerankd.config.registry import ModelSpec, Registry, read_registry
from rerankd.config.settings import SHIPPED_REGISTRY, Settings, read_settings
from rerankd.errors import ConfigError


def test_settings_come_from_the_environment_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKD_PORT", "8123")
    monkeypatch.setenv("RERANKD_HOST", "0.0.0.0")
    settings = read_settings(host="127.0.0.9", port=None)
    assert (settings.host, settings.port) == ("127.0.0.9", 8123)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("one", ["one"]), ("one, two ,", ["one", "two"])],
)
def test_api_keys_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, value: str, expected: list[str]) -> None:
    monkeypatch.setenv("RERANKD_API_KEYS", value)
    assert [key.get_secret_value() for key in read_settings().api_keys] == expected


def test_keys_and_tokens_do_not_show_when_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKD_API_KEYS", "sesame")
    monkeypatch.setenv("RERANKD_HUB_TOKEN", "hf_sesame")
    assert "sesame" not in repr(read_settings())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RERANKD_PORT", "http", "RERANKD_PORT must be a whole number, not 'http'"),
        ("RERANKD_PORT", "70000", "RERANKD_PORT must be at most 65535, not '70000'"),
        ("RERANKD_PORT", "tcp://10.0.0.1:8000", "RERANKD_PORT must be a port.*enableServiceLinks: false"),
        ("RERANKD_MAX_DOCUMENTS", "0", "RERANKD_MAX_DOCUMENTS must be at least 1, not '0'"),
        ("RERANKD_PROCESSES_CORES", "0-99999999999", "RERANKD_PROCESSES_CORES must be lists of cores such as"),
        ("RERANKD_PROCESSES_CORES", "3-1;2", "RERANKD_PROCESSES_CORES must be lists of cores such as"),
        ("RERANKD_LOG_LEVEL", "chatty", "RERANKD_LOG_LEVEL must be DEBUG, INFO, WARNING or ERROR, not 'chatty'"),
        ("RERANKD_REQUEST_TIMEOUT_S", "-1", "RERANKD_REQUEST_TIMEOUT_S must be greater than 0, not '-1'"),
        (
            "RERANKD_TRUSTED_PROXIES",
            "10.0.0.1/8",
            "RERANKD_TRUSTED_PROXIES has 10.0.0.1/8, .*: write 10.0.0.0/8, or 10.0.0.1$",
        ),
        ("RERANKD_TRUSTED_PROXIES", "proxy", "RERANKD_TRUSTED_PROXIES must be addresses .* 10.0.0.0/8, not 'proxy'$"),
        (
            "RERANKD_ROOT_PATH",
            "api/",
            "RERANKD_ROOT_PATH must be a path that begins .* such as /rerank-api, not 'api/'$",
        ),
        ("RERANKD_STRICT", "maybe", "RERANKD_STRICT must be true or false, not 'maybe'"),
    ],
)
def test_an_unusable_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{message}"):
        read_settings()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RERANKD_API_KEY", "RERANKD_API_KEYS"),
        ("RERANKD_APIKEYS", "RERANKD_API_KEYS"),
        ("RERANKD_API_KEY_FILE", "RERANKD_API_KEYS_FILE"),
        ("RERANKD_LOGLEVEL", "RERANKD_LOG_LEVEL"),
        ("rerankd_privat", "RERANKD_PRIVATE"),
        ("RERANKD_HOSTNAME", "RERANKD_HOST"),
    ],
)
def test_a_misspelled_setting_refuses_the_start_and_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "s3cret")
    with pytest.raises(ConfigError, match=rf"{name.upper()} is not a setting; did you mean {meant}\?") as refused:
        read_settings()
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RERANK_API_KEYS", "RERANKD_API_KEYS"),
        ("RERANKER_API_KEYS", "RERANKD_API_KEYS"),
        ("RRANKD_API_KEYS", "RERANKD_API_KEYS"),
        ("rerank_api_keys_file", "RERANKD_API_KEYS_FILE"),
    ],
)
def test_keys_behind_a_misspelled_prefix_do_not_leave_the_service_open(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "s3cret")
    with pytest.raises(ConfigError, match=rf"^{name.upper()} is set, but nothing reads it; did you mean {meant}\?"):
        read_settings()
    monkeypatch.setenv("RERANKD_API_KEYS", "a-key")
    assert len(read_settings().api_keys) == 1, "then the service is not open"


@pytest.mark.parametrize("name", ["RERANK_API_KEY", "COHERE_API_KEYS", "OPENAI_API_KEYS", "REDIS_API_KEYS", "API_KEYS"])
def test_keys_of_others_are_none_of_ours(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "s3cret")
    assert read_settings().api_keys == ()


def test_an_empty_host_is_refused_for_it_would_mean_every_address() -> None:
    with pytest.raises(ConfigError, match="RERANKD_HOST must not be empty"):
        read_settings(host="")


def test_a_name_like_no_setting_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKD_XYZZY", "1")
    with pytest.raises(ConfigError, match=r"^RERANKD_XYZZY is not a setting \(docs/configuration\.md"):
        read_settings()


@pytest.mark.parametrize(
    "name",
    [
        "RERANKD_BENCH_API_KEY",
        "RERANKD_EVAL_API_KEY",
        "RERANKD_TEST_DATA",
        "RERANKD_SERVICE_HOST",
        "RERANKD_SERVICE_PORT",
        "RERANKD_SERVICE_PORT_HTTP",
        "RERANKD_PORT_8000_TCP",
        "RERANKD_PORT_8000_TCP_ADDR",
    ],
)
def test_names_that_others_set_are_no_mistakes(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert read_settings().port == 8000


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RERANKD_API_KEYS", "", "RERANKD_API_KEYS is set, but empty"),
        ("RERANKD_API_KEYS", "  ", "RERANKD_API_KEYS is set, but empty"),
        ("RERANKD_API_KEYS", " , ", "RERANKD_API_KEYS is set, but has no key in it"),
        ("RERANKD_API_KEYS_FILE", "", "RERANKD_API_KEYS_FILE is set, but empty"),
        ("RERANKD_PRIVATE", "", "RERANKD_PRIVATE is set, but empty"),
        ("RERANKD_CACHE_SECRET", "", "RERANKD_CACHE_SECRET is set, but empty"),
        ("RERANKD_CACHE_SCOPE", " ", "RERANKD_CACHE_SCOPE is set, but empty"),
        ("RERANKD_CACHE_SECRET", "fifteen letters", "RERANKD_CACHE_SECRET must have at least 16 characters"),
        ("RERANKD_CACHE_SCOPE", "key", "RERANKD_CACHE_SCOPE is key, but there are no API keys to keep apart"),
        ("RERANKD_CACHE_SCOPE", "keys", "RERANKD_CACHE_SCOPE must be one of"),
        ("RERANKD_PRIVATE", "true", "RERANKD_PRIVATE is true, but there are no API keys to ask for"),
    ],
)
def test_what_would_protect_nothing_refuses_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        read_settings()


@pytest.mark.parametrize("token", ["hf_s3cret\nmore", "hf s3cret", "hf_s3crét", "  "])
def test_a_token_that_fits_no_header_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """The hub's client would put it into its message."""
    monkeypatch.setenv("RERANKD_HUB_TOKEN", token)
    with pytest.raises(ConfigError, match="RERANKD_HUB_TOKEN must be one word") as refused:
        read_settings()
    assert "s3cr" not in str(refused.value)


def test_a_line_break_at_the_end_of_a_token_is_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKD_HUB_TOKEN", "hf_sesame\n")
    token = read_settings().hub_token
    assert token is not None
    assert token.get_secret_value() == "hf_sesame"


def test_the_log_level_may_be_written_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKD_LOG_LEVEL", "debug")
    assert read_settings().log_level == "DEBUG"


def test_the_shipped_registry_is_usable() -> None:
    registry = read_registry(SHIPPED_REGISTRY)
    assert registry.default in {spec.name for spec in registry.model}


_A = "[[model]]\nname = 'a'\npath = 'p'\n"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "model is missing: the file must have at least one [[model]] table"),
        ("model = []", "model is missing: the file must have at least one [[model]] table"),
        ("[[models]]\nname = 'a'", "unknown key 'models' (did you mean 'model'?)"),
        ("[[model]]\nname = 'a'", "[[model]] number 1 ('a'): must have either path or stages, and has neither"),
        (_A + "colour = 'red'", "[[model]] number 1 ('a'): unknown key 'colour' (known keys: name, aliases, scorer"),
        (_A + "enginge = 'onnx'", "[[model]] number 1 ('a'): unknown key 'enginge' (did you mean 'engine'?)"),
        (_A + "[model.passages]\ntoken = 64", "passages: unknown key 'token' (did you mean 'tokens'?)"),
        (_A + "passages = { tokens = 1 }", "[[model]] number 1 ('a'): passages.tokens must be at least 16, not 1"),
        (_A + "aliases = ['b', 3]", "[[model]] number 1 ('a'): aliases[1] must be a text in quotes, not 3"),
        (_A + "truncation = 'cut'", "truncation must be one of 'truncate', 'chunk' or 'extract', not 'cut'"),
        ("[[model]]\nname = 'a b'\npath = 'p'", "'a b' cannot be a name"),
        (_A + _A, "'a' is there twice: two models have this name"),
        (_A + "aliases = ['a']", "'a' is there twice"),
        (_A + "aliases = ['b', 'b']", "model 'a' lists the alias 'b' twice"),
        (_A + "[[model]]\nname = 'b'\npath = 'q'\naliases = ['a']", "'a' is a name or alias of both 'a' and 'b'"),
        ("default = 'z'\n" + _A, "default = 'z': no model has the name or alias 'z'; known: a"),
        (_A + "max_length = 4", "[[model]] number 1 ('a'): max_length must be at least 16, not 4"),
        ("this is no toml", "is not valid TOML, line 1, column 6: expected '=' after a key"),
        ("[[model]]\nname = 'a", "is not valid TOML, "),
    ],
)
def test_a_mistake_in_the_registry_is_told_in_plain_english(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "registry.toml"
    path.write_text(content)
    with pytest.raises(ConfigError) as raised:
        read_registry(path)
    assert complaint in str(raised.value)
    assert "; model" not in str(raised.value), "what follows from a mistake is not told as another one"


def test_a_registry_may_begin_with_the_mark_of_windows_editors(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    path.write_text(_A, encoding="utf-8-sig")
    assert read_registry(path).model[0].name == "a"


def test_a_missing_registry_names_the_variable_that_sets_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="RERANKD_REGISTRY"):
        read_registry(tmp_path / "nowhere.toml")


def test_a_registry_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not a text file in UTF-8: byte 1 is wrong"):
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
        ('[[model]]\nname = "a"', "must have either path or stages, and has neither"),
        ('[[model]]\nname = "a"\npath = "."\nstages = ["a"]', "must have either path or stages, not both"),
        ('[[model]]\nname = "a"\npath = "."\n[[model]]\nname = "b"\nstages = ["a:0"]', "a depth must be at least 1"),
        ('[[model]]\nname = "b"\nstages = ["a"]', "no model has the name or alias 'a'"),
        ('[[model]]\nname = "b"\nstages = ["b"]', "'b' is itself a cascade"),
        ('[[model]]\nname = "b"\nstages = ["a"]\nanchors = { file = "f" }', "anchors: a cascade scores no pairs"),
        ('[[model]]\nname = "a"\npath = "."\nanchors = { depth = 40 }', "anchors: file is missing; rerankd anchors"),
        ('[[model]]\nname = "a"\npath = "."\nanchors = { file = "f", depth = 9 }', "at least 20, not 9"),
        ('[[model]]\nname = "a"\npath = "."\nanchors = { file = "f", cutoff = 1 }', "cutoff"),
        ('[[model]]\nname = "a"\npath = "."\nanchors = { file = "f", anchors = 0 }', "anchors"),
        (
            '[[model]]\nname = "a"\npath = "."\nanchors = { file = "f" }\n[[model]]\nname = "b"\nstages = ["a:5"]',
            "'a' has anchors and would leave out documents",
        ),
        ('[[model]]\nname = "a"\npath = "."\nengine = "remote"', "a remote model has no folder here"),
        ('[[model]]\nname = "a"\npath = "."\nfallback = "b"', "fallback of 'a': no model has the name or alias 'b'"),
        ('[[model]]\nname = "a"\npath = "."\nfallback = "a"', "its fallbacks lead back to 'a'"),
        (
            '[[model]]\nname="a"\naliases=["x"]\npath="."\nfallback="b"\n[[model]]\nname="b"\npath="."\nfallback="x"',
            "fallback of 'a': its fallbacks lead back to 'a'",
        ),
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


def test_a_table_where_a_list_of_tables_belongs_is_told_how_to_write_it(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    path.write_text('[model]\nname = "a"\npath = "b"\n')
    with pytest.raises(ConfigError, match=r"model must be a list of tables: write \[\[model\]\]$"):
        read_registry(path)


def test_no_value_is_explained_by_a_regular_expression() -> None:
    for module in (
        "engines.onnx.engine",
        "engines.openvino",
        "engines.remote.endpoint",
        "scorers",
        "api.dialects",
    ):
        import_module(f"rerankd.{module}")
    shapes = list(_all_shapes(BaseModel))
    assert Settings in shapes
    assert len(shapes) > 30
    patterns = [
        f"{shape.__name__}.{name}"
        for shape in shapes
        for name, field in shape.model_fields.items()
        if shape.__module__.startswith("rerankd.") and any(getattr(limit, "pattern", None) for limit in field.metadata)
    ]
    assert patterns == []


def _all_shapes(shape: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for one in shape.__subclasses__():
        yield one
        yield from _all_shapes(one)


def test_passages_overlap_by_at_most_half(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    entry = '[[model]]\nname = "a"\npath = "b"\npassages = {{ tokens = 64, overlap = {} }}\n'
    path.write_text(entry.format(32))
    assert read_registry(path).model[0].passages.overlap == 32
    path.write_text(entry.format(33))
    with pytest.raises(ConfigError, match="overlap must be at most half of tokens, here 32, not 33"):
        read_registry(path)
