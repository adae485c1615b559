"""What is wrong with a setting, a key or an option is said in our words, whatever it is."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from rerankd.config.api_keys import _KeyFile, _KeyTable
from rerankd.config.options import closest, explain, fields_of, read_options
from rerankd.config.registry import ModelSpec, Registry
from rerankd.config.settings import Settings
from rerankd.domain import PassagePlan
from rerankd.engines.onnx.engine import OnnxOptions
from rerankd.engines.openvino import OpenVinoOptions
from rerankd.engines.remote.endpoint import EndpointOptions
from rerankd.errors import ConfigError
from rerankd.scorers.cross_encoder import CrossEncoderOptions
from rerankd.scorers.list_prompt import ListTemplate, WindowOptions
from rerankd.scorers.yes_no import YesNoOptions
from rerankd.scorers.yes_no_template import YesNoTemplate
from rerankd.serving.profiles import Profile

_SHAPES: list[type[BaseModel]] = [
    _KeyFile,
    _KeyTable,
    CrossEncoderOptions,
    EndpointOptions,
    ListTemplate,
    ModelSpec,
    OnnxOptions,
    OpenVinoOptions,
    Profile,
    Registry,
    Settings,
    WindowOptions,
    YesNoOptions,
    YesNoTemplate,
]
_ODD: list[object] = [
    "", "s3cret", " ", "1", "http://user:s3cret@x:y", 0, -1, 2**70, 1.5, float("nan"), float("inf"), True, None,
    [], [1], ["s3cret"], [[]], {}, {"s3cret": 1}, {"a": {}}, [{}], [{"name": 1}],
]  # fmt: skip
# How pydantic says it, to programmers.
_THEIRS = (
    "Input should",
    "Value error",
    "Extra inputs",
    "Field required",
    "should have",
    "valid ",
    "type=",
    "pydantic",
)


def _refusals(shape: type[BaseModel]) -> Iterator[str]:
    """What is said of each field with each odd value."""
    for field in [*shape.model_fields, "xyzzy"]:
        for value in _ODD:
            try:
                shape.model_validate({field: value})
            except ValidationError as error:
                yield explain(error, shape, data={field: value})


@pytest.mark.parametrize("shape", _SHAPES, ids=lambda shape: shape.__name__)
def test_no_odd_value_is_told_in_another_librarys_words(shape: type[BaseModel]) -> None:
    refusals = list(_refusals(shape))
    assert len(refusals) >= len(_ODD)
    for told in refusals:
        assert told
        assert not [words for words in _THEIRS if words in told], told
        assert "  " not in told
        assert len(told) < 3000


def test_a_table_that_is_a_dataclass_is_told_in_our_words_too() -> None:
    table: dict[str, object] = {"name": "a", "path": "b"}
    for field in [*fields_of(PassagePlan), "overlp"]:
        for value in ["", " ", 1.5, [], {}, {"a": {}}]:
            with pytest.raises(ValidationError) as caught:
                ModelSpec.model_validate(table | {"passages": {field: value}})
            told = explain(caught.value, ModelSpec)
            assert told.startswith("passages"), told
            assert not [words for words in _THEIRS if words in told], told


@pytest.mark.parametrize(
    ("passages", "told"),
    [
        ({"tokens": 8}, "passages.tokens must be at least 16, not 8"),
        ({"overlp": 8}, "passages: unknown key 'overlp' (did you mean 'overlap'?)"),
        ({"tokens": 20, "overlap": 11}, "passages overlap must be at most half of tokens, here 10, not 11"),
        (3, "passages must be a table, not 3"),
    ],
)
def test_what_is_wrong_with_passages_is_told(passages: object, told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelSpec.model_validate({"name": "a", "path": "b", "passages": passages})
    assert explain(caught.value, ModelSpec) == told


@pytest.mark.parametrize("shape", [_KeyFile, _KeyTable, EndpointOptions], ids=lambda shape: shape.__name__)
def test_of_what_may_hold_a_secret_no_value_is_repeated(shape: type[BaseModel]) -> None:
    values = [told for told in _refusals(shape) if "s3cret" in told]
    assert values == []


class _Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = ""
    size: int = Field(default=1, ge=1, le=9)


class _Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inner: tuple[_Inner, ...] = ()
    either: int | bool = 0
    token: SecretStr = Field(default=SecretStr("x" * 20), min_length=16)
    word: str = Field(default="abcd", min_length=4)
    letter: str = Field(default="a", min_length=1)
    pair: tuple[int, ...] = Field(default=(1, 2), min_length=2)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"inner": [{}, {"name": "b", "size": 0}]}, "[[inner]] number 2 ('b'): size must be at least 1, not 0"),
        ({"inner": [{"siz": 1}]}, "[[inner]] number 1: unknown key 'siz' (did you mean 'size'?)"),
        ({"innner": []}, "unknown key 'innner' (did you mean 'inner'?)"),
        ({"either": "x"}, "either must be a whole number, not 'x' or must be true or false, not 'x'"),
        ({"token": "s3cret"}, "token must have at least 16 characters"),
        ({"word": "ab"}, "word must have at least 4 characters, not 'ab'"),
        ({"word": ""}, "word must have at least 4 characters"),
        ({"letter": ""}, "letter must not be empty"),
        ({"pair": [1]}, "pair must have at least 2 in it"),
        ({"pair": ["x", 1]}, "pair[0] must be a whole number, not 'x'"),
    ],
)
def test_a_problem_is_told_with_its_place_and_value(data: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_options(data, _Outer, of="a thing")
    assert str(refused.value) == f"options of a thing: {told}"


@pytest.mark.parametrize(("name", "near"), [("ENGINGE", "engine"), ("xyzzy", ""), ("", "")])
def test_the_nearest_name_is_found_where_one_is_near(name: str, near: str) -> None:
    assert closest(name, ["engine", "path"]) == near
