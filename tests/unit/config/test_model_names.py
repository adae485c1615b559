"""Names that clients of other services bring find the model that they mean, and nothing is guessed beyond that."""

from pathlib import Path

import pytest

from rerankd.config.model_names import ModelNames
from rerankd.config.registry import ModelSpec, Registry, read_registry
from rerankd.config.settings import read_settings
from rerankd.errors import ConfigError
from rerankd.serving.assembly import running_service
from rerankd.telemetry.observer import Silent
from tests.registry_files import write_registry

_NAMES = {"minilm": "a", "rerank-v3.5": "b", "BAAI/bge-reranker-v2-m3": "c", "x/minilm": "d"}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("minilm", "a"),
        ("mixedbread-ai/minilm", "a"),
        ("azure/cohere/rerank-v3.5", "b"),
        ("huggingface/BAAI/bge-reranker-v2-m3", "c"),
        ("x/minilm", "d"),
        ("y/x/minilm", "d"),
        ("bge-reranker-v2-m3", None),
        ("minilm/", None),
        ("minilm/x", None),
        ("Minilm", None),
        ("xminilm", None),
        ("a/b/c/d/minilm", None),
        ("/" * 10_000_000, None),
        ("a/" * 5_000_000 + "minilm", None),
        ("", None),
    ],
)
def test_a_vendor_before_a_name_means_nothing(name: str, model: str | None) -> None:
    assert ModelNames(_NAMES).find(name) == model


def test_what_is_nobodys_goes_to_the_fallback() -> None:
    names = ModelNames(_NAMES, fallback="z")
    assert [names.find(name) for name in ("minilm", "cohere/minilm", "rerank-v9", "")] == ["a", "a", "z", "z"]


def _registry(*models: tuple[str, str, tuple[str, ...]]) -> Registry:
    return Registry(model=tuple(ModelSpec(name=name, path=path, aliases=aliases) for name, path, aliases in models))


@pytest.mark.parametrize(
    ("models", "aliases"),
    [
        ([("bge", "hub:BAAI/bge", ())], [("BAAI/bge",)]),
        ([("bge", "hub:BAAI/bge@main", ("x",))], [("x", "BAAI/bge")]),
        ([("bge", "hub:BAAI/bge", ("BAAI/bge",))], [("BAAI/bge",)]),
        ([("BAAI/bge", "hub:BAAI/bge", ())], [()]),
        ([("bge", "./models/BAAI/bge", ())], [()]),
        # two revisions of one repository, or another model that is called so
        ([("one", "hub:BAAI/bge@1", ()), ("two", "hub:BAAI/bge@2", ())], [(), ()]),
        ([("one", "hub:BAAI/bge", ()), ("two", "./two", ("BAAI/bge",))], [(), ("BAAI/bge",)]),
        ([("one", "hub:BAAI/bge", ()), ("BAAI/bge", "./two", ())], [(), ()]),
    ],
)
def test_a_repository_is_a_name_of_the_one_model_from_there(
    models: list[tuple[str, str, tuple[str, ...]]], aliases: list[tuple[str, ...]]
) -> None:
    registry = _registry(*models)
    assert [registry.aliases_of(spec) for spec in registry.model] == aliases


async def test_a_fallback_that_is_not_served_stops_the_start(tmp_path: Path, tiny_model: Path) -> None:
    registry = write_registry(tmp_path, [{"name": "tiny", "path": tiny_model}])
    settings = read_settings(registry=registry, model_fallback="tinny", cache_url="none://")
    with pytest.raises(ConfigError, match=r"RERANKD_MODEL_FALLBACK = 'tinny': no model has .* did you mean 'tiny'"):
        async with running_service(settings, Silent()):
            pass


_TWO = (("minilm", "./minilm", ("small",)), ("bge", "hub:BAAI/bge", ()))


def test_one_table_gives_models_further_names() -> None:
    registry = _registry(*_TWO).model_copy(update={"aliases": {"rerank-v3.5": "small", "BAAI/bge": "minilm"}})
    assert [registry.aliases_of(spec) for spec in registry.model] == [("small", "rerank-v3.5", "BAAI/bge"), ()]
    assert [spec.name for name in ("cohere/rerank-v3.5", "BAAI/bge", None) if (spec := registry.find(name))] == [
        "minilm",
        "minilm",
        "minilm",
    ]
    assert registry.only(["bge"]).aliases == {}
    assert registry.only(["rerank-v3.5"]).aliases == registry.aliases


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ({"rerank-v3.5": "minilmm"}, "aliases: 'rerank-v3.5': no model has the name or alias 'minilmm'; did you mean"),
        ({"bge": "minilm"}, "aliases: 'bge' is already a name or alias of 'bge'; leave it out"),
        ({"small": "bge"}, "aliases: 'small' is already a name or alias of 'minilm'"),
        ({"a": "minilm", "b": "a"}, "aliases: 'b': no model has the name or alias 'a'"),
        ({"a b": "minilm"}, "cannot be a name"),
    ],
)
def test_a_table_of_names_that_leads_nowhere_is_refused(tmp_path: Path, aliases: dict[str, str], message: str) -> None:
    lines = ["[aliases]", *(f'"{name}" = "{model}"' for name, model in aliases.items())]
    for name, path, more in _TWO:
        lines += ["[[model]]", f'name = "{name}"', f'path = "{path}"', f"aliases = {list(more)}"]
    (tmp_path / "registry.toml").write_text("\n".join(lines))
    with pytest.raises(ConfigError) as refused:
        read_registry(tmp_path / "registry.toml")
    assert message in str(refused.value)
