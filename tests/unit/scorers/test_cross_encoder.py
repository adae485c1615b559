"""The scorer `cross-encoder`: what the model is given to read, and what its numbers mean."""

import json
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import FloatArray, PassagePlan, PassageWishes, ScoreOptions, Truncation
from rerankd.errors import ConfigError, InvalidRequest
from rerankd.pipeline.passages import PassageStage
from rerankd.scorers import load_scorer
from rerankd.scorers.base import AnyPairScorer, ScorerSpec
from rerankd.scorers.ranking import identity, sigmoid
from rerankd.scorers.visible import LOOKED_AT
from tests.fakes import RecordingStage, idle_batcher
from tests.tiny_models import CORPUS, MAX_LENGTH, TOKENIZERS

MakeFolder = Callable[..., Path]

QUERY = "what is the capital of france"
LONG = " ".join(CORPUS * 3)
# The class that takes tokenizer.json as it is, whatever the model.
GENERIC = {"tokenizer_class": "PreTrainedTokenizerFast"}


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Writes what a scorer reads of a model: a tokenizer, its config, the model's config, and what lies beside."""

    def make(family: str = "bert", config: Mapping[str, Any] | None = None, **beside: Mapping[str, Any] | None) -> Path:
        TOKENIZERS[family]().save(str(tmp_path / "tokenizer.json"))
        model = {"id2label": {"0": "LABEL_0"}, "pad_token_id": 0, "max_position_embeddings": MAX_LENGTH}
        files: dict[str, Mapping[str, Any] | None] = {
            "config": {**model, **(config or {})},
            "tokenizer_config": {"model_max_length": MAX_LENGTH},
            **beside,
        }
        for name, content in files.items():
            if content is not None:
                (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return make


def load(folder: Path, *, max_length: int | None = None, **options: object) -> AnyPairScorer:
    return load_scorer("cross-encoder", ScorerSpec(folder=folder, max_length=max_length, options=options))


@cache
def loaded(folder: Path, max_length: int) -> AnyPairScorer:
    return load(folder, max_length=max_length)


def read(scorer: AnyPairScorer, query: str, document: str, *, tokens: int | None = None) -> tuple[list[int], int]:
    """The ids of a pair, and how many tokens were dropped."""
    pairs = scorer.encode(query, [document], max_document_tokens=tokens)
    return pairs.encodings[0].ids.tolist(), int(pairs.dropped[0])


@cache
def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def truncated(folder: Path, query: str, document: str, *, max_length: int) -> list[int]:
    """What transformers' `truncation="only_second"` gives: the tokenizer's own truncation."""
    tokenizer = tokenizer_of(folder)
    tokenizer.enable_truncation(max_length, strategy="only_second")
    ids: list[int] = tokenizer.encode(query, document).ids
    return ids


# --- what the model reads


@pytest.mark.parametrize("family", list(TOKENIZERS))
@pytest.mark.parametrize("max_length", [None, 48, 64, 127])
def test_a_long_document_is_cut_where_transformers_cuts_it(
    make_folder: MakeFolder, family: str, max_length: int | None
) -> None:
    folder = make_folder(family)
    scorer = load(folder, max_length=max_length)
    for query, document in ((QUERY, LONG), ("x", LONG), (QUERY, "short"), ("Wien?", CORPUS[7])):
        ids, dropped = read(scorer, query, document)
        assert ids == truncated(folder, query, document, max_length=max_length or MAX_LENGTH)
        assert len(ids) + dropped == len(truncated(folder, query, document, max_length=100_000))


@given(
    query=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    document=st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    max_length=st.sampled_from([64, 65, 100, MAX_LENGTH]),
)
@settings(deadline=None, max_examples=80)
def test_any_pair_is_cut_where_transformers_cuts_it(
    tiny_model: Path, query: str, document: str, max_length: int
) -> None:
    ids, dropped = read(loaded(tiny_model, max_length), query, document)
    assert ids == truncated(tiny_model, query, document, max_length=max_length)
    assert len(ids) + dropped == len(truncated(tiny_model, query, document, max_length=100_000))


@pytest.mark.parametrize("family", list(TOKENIZERS))
def test_the_cut_is_that_of_transformers_itself(family: str, torch_folder: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415 - only slow tests have it

    folder = torch_folder(family)
    tokenizer, scorer = AutoTokenizer.from_pretrained(folder), load(folder)
    for document in (LONG, *CORPUS):
        expected = tokenizer(QUERY, document, truncation="only_second", max_length=MAX_LENGTH)
        encoding = scorer.encode(QUERY, [document], max_document_tokens=None).encodings[0]
        assert encoding.ids.tolist() == expected["input_ids"]
        segments = [int(at >= encoding.boundary) for at in range(len(encoding.ids))]
        assert segments == expected.get("token_type_ids", [0] * len(segments))


def test_documents_of_one_call_are_read_as_if_alone(tiny_model: Path) -> None:
    scorer = load(tiny_model)
    documents = [*CORPUS, LONG, "x", CORPUS[0]]
    pairs = scorer.encode(QUERY, documents, max_document_tokens=None)
    assert [
        (encoding.ids.tolist(), dropped) for encoding, dropped in zip(pairs.encodings, pairs.dropped, strict=True)
    ] == [read(scorer, QUERY, document) for document in documents]


@pytest.mark.parametrize(("tokens", "read_tokens"), [(1, 1), (5, 5), (10_000, None), (None, None)])
def test_max_document_tokens_counts_the_documents_own_tokens(
    tiny_model: Path, tokens: int | None, read_tokens: int | None
) -> None:
    scorer = load(tiny_model)
    whole, _ = read(scorer, QUERY, CORPUS[0])
    ids, dropped = read(scorer, QUERY, CORPUS[0], tokens=tokens)
    own = len(whole) - len(read(scorer, QUERY, "")[0])
    assert dropped == (own - read_tokens if read_tokens else 0)
    assert len(ids) == len(whole) - dropped
    assert ids[:-1] == whole[: len(ids) - 1]
    assert ids[-1] == whole[-1]


@pytest.mark.parametrize(
    ("words", "fits"), [(0, True), (1, True), (MAX_LENGTH - 3 - 16, True), (MAX_LENGTH - 3 - 15, False), (500, False)]
)
def test_a_query_is_kept_whole_or_refused(tiny_model: Path, words: int, *, fits: bool) -> None:
    scorer = load(tiny_model)
    query = "paris " * words
    if fits:
        ids, _ = read(scorer, query, LONG)
        assert len(ids) == MAX_LENGTH
        assert ids == truncated(tiny_model, query, LONG, max_length=MAX_LENGTH)
    else:
        with pytest.raises(InvalidRequest, match=rf"query has {words} tokens; .* at most {MAX_LENGTH - 3 - 16} tokens"):
            read(scorer, query, "x")


@pytest.mark.parametrize(
    ("unit", "times"),
    [("paris is the capital ", 50_000), ("x", 1_000_000), ("漢字", 500_000), ("\n", 1_000_000)],
)
@pytest.mark.parametrize("family", ["bert", "xlmr"])
def test_the_time_for_a_document_of_a_million_characters_grows_no_faster_than_its_length(
    make_folder: MakeFolder, family: str, unit: str, times: int
) -> None:
    folder = make_folder(family)
    scorer = load(folder)
    started = time.process_time()
    read(scorer, QUERY, unit * (times // 10))
    between = time.process_time()
    ids, dropped = read(scorer, QUERY, unit * times)
    # Ten times the text; a cost that grew with the square would be a hundred times as much.
    assert time.process_time() - between < 40 * max(0.005, between - started)
    assert len(ids) <= MAX_LENGTH
    assert (dropped > 0) == (len(ids) == MAX_LENGTH or len(unit) * times > LOOKED_AT)


@pytest.mark.parametrize("document", [" " * 50_000 + "paris is the capital", "\n\t" * 9_000 + LONG])
def test_a_document_behind_much_white_space_is_still_read(tiny_model: Path, document: str) -> None:
    ids, _ = read(load(tiny_model), QUERY, document)
    assert ids == truncated(tiny_model, QUERY, document, max_length=MAX_LENGTH)


def test_what_was_dropped_of_a_huge_document_is_estimated(tiny_model: Path) -> None:
    document = LONG * 40
    scorer = load(tiny_model)
    ids, dropped = read(scorer, QUERY, document)
    whole = len(truncated(tiny_model, QUERY, document, max_length=10_000_000))
    assert ids == truncated(tiny_model, QUERY, document, max_length=MAX_LENGTH)
    assert dropped == pytest.approx(whole - MAX_LENGTH, rel=0.05)


def test_segments_that_the_model_is_not_given_are_left_out(make_folder: MakeFolder) -> None:
    folder = make_folder("modernbert", tokenizer_config={"model_input_names": ["input_ids", "attention_mask"]})
    encoding = load(folder).encode(QUERY, ["x"], max_document_tokens=None).encodings[0]
    assert encoding.boundary == len(encoding.ids)


# --- lengths and padding


@pytest.mark.parametrize(
    ("config", "tokenizer_config", "expected"),
    [
        ({"max_position_embeddings": 512}, None, 512),
        ({"max_position_embeddings": 512}, {"model_max_length": 256}, 256),
        ({"max_position_embeddings": 512}, {"model_max_length": 1024}, 512),
        ({"max_position_embeddings": 512}, {"model_max_length": 1e30}, 512),
        ({"max_position_embeddings": None}, {"model_max_length": 8192}, 8192),
        ({"max_position_embeddings": -1}, {}, 512),
        ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 4096}}, None, 4096),
        ({"max_position_embeddings": 514, "model_type": "xlm-roberta", "pad_token_id": 1}, {}, 512),
        ({"max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": None}, GENERIC, 512),
        ({"max_position_embeddings": 513, "model_type": "xlm-roberta", "pad_token_id": 0}, {}, 512),
        ({"max_position_embeddings": 8194, "model_type": "xlm-roberta", "pad_token_id": 1}, {}, 8192),
        ({"max_position_embeddings": 514, "model_type": "mpnet", "pad_token_id": 1}, GENERIC, 512),
        ({"max_position_embeddings": 514, "model_type": "bert", "pad_token_id": 1}, {}, 514),
    ],
)
def test_a_model_reads_as_much_as_its_positions_and_its_tokenizer_allow(
    make_folder: MakeFolder, config: dict[str, Any], tokenizer_config: dict[str, Any] | None, expected: int
) -> None:
    assert load(make_folder(config=config, tokenizer_config=tokenizer_config)).max_length == expected


@pytest.mark.parametrize(
    ("max_length", "message"),
    [(MAX_LENGTH + 1, "max_length = 129, but the model in .* reads 128 tokens"), (20, "leaves no room")],
)
def test_a_max_length_that_cannot_be_is_refused(make_folder: MakeFolder, max_length: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(make_folder(), max_length=max_length)


@pytest.mark.parametrize(
    ("family", "config", "tokenizer_config", "expected"),
    [
        ("bert", {"pad_token_id": 0}, {}, 0),
        ("xlmr", {"pad_token_id": 1}, {}, 1),
        ("modernbert", {"pad_token_id": 3}, {"pad_token": "[UNK]"}, 3),
        ("modernbert", {"pad_token_id": None}, {"pad_token": "[PAD]"}, 3),
        ("modernbert", {"pad_token_id": None}, {"pad_token": {"content": "[PAD]"}}, 3),
        ("modernbert", {"pad_token_id": None}, {"pad_token": "<not there>"}, 0),
        ("modernbert", {"pad_token_id": None}, {}, 0),
    ],
)
def test_the_padding_id_is_the_models_own(
    make_folder: MakeFolder, family: str, config: dict[str, Any], tokenizer_config: dict[str, Any], expected: int
) -> None:
    assert load(make_folder(family, config=config, tokenizer_config=tokenizer_config)).pad_id == expected


# --- what the numbers mean

SIGMOID, IDENTITY, TANH = (f"torch.nn.modules.activation.{name}" for name in ("Sigmoid", "Identity", "Tanh"))
IDENTITY = "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("config", "beside", "expected"),
    [
        ({}, None, sigmoid),
        ({"sbert_ce_default_activation_function": IDENTITY}, None, identity),
        ({"sbert_ce_default_activation_function": SIGMOID}, None, sigmoid),
        ({"sbert_ce_default_activation_function": None}, None, sigmoid),
        ({"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.1.0"}}, None, identity),
        ({"sentence_transformers": {"version": "4.1.0"}}, None, sigmoid),
        ({}, {"activation_fn": IDENTITY, "model_type": "CrossEncoder"}, identity),
        ({}, {"activation_fn": None}, sigmoid),
        ({"sentence_transformers": {"activation_fn": SIGMOID}}, {"activation_fn": IDENTITY}, identity),
        (
            {"sentence_transformers": {"activation_fn": IDENTITY}, "sbert_ce_default_activation_function": SIGMOID},
            None,
            identity,
        ),
    ],
)
def test_the_activation_is_the_one_that_the_model_names(
    make_folder: MakeFolder, config: dict[str, Any], beside: dict[str, Any] | None, expected: object
) -> None:
    assert load(make_folder(config=config, config_sentence_transformers=beside)).activation is expected


def test_the_registrys_activation_wins(make_folder: MakeFolder) -> None:
    folder = make_folder(config={"sbert_ce_default_activation_function": TANH})
    assert load(folder, activation="identity").activation is identity


@pytest.mark.parametrize(
    ("options", "config", "message"),
    [
        ({}, {"sbert_ce_default_activation_function": TANH}, r"names the activation 'torch.*Tanh'.*sigmoid, identity"),
        ({"activation": "relu"}, {}, "activation must be one of 'sigmoid' or 'identity', not 'relu'"),
        ({"labels": 1}, {}, "scorer 'cross-encoder': unknown key 'labels'.*did you mean 'label'"),
        ({"label": 1}, {}, "label = 1, but this model's head has one output"),
        (
            {},
            {"id2label": {"0": "bad", "1": "good"}},
            r"2 outputs \(bad, good\); say which .*label = N }, with N from 0 to 1",
        ),
        ({"label": 2}, {"id2label": {"0": "bad", "1": "good"}}, "2 outputs"),
        ({}, {"id2label": None}, r"2 outputs \(unnamed\)"),
    ],
)
def test_a_head_whose_meaning_is_not_clear_is_refused(
    make_folder: MakeFolder, options: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(make_folder(config=config), **options)


def test_a_head_of_one_output_gives_its_logit(tiny_model: Path) -> None:
    logits = np.array([[1.5], [-3.0]], dtype=np.float32)
    assert load(tiny_model).interpret(logits).tolist() == [1.5, -3.0]


@pytest.mark.parametrize("outputs", [2, 3, 5])
def test_the_relevance_of_a_label_is_its_softmax_probability(make_folder: MakeFolder, outputs: int) -> None:
    names = {str(index): f"LABEL_{index}" for index in range(outputs)}
    folder = make_folder(config={"id2label": names, "sentence_transformers": {"activation_fn": IDENTITY}})
    logits = np.random.default_rng(0).normal(size=(50, outputs), scale=4).astype(np.float32)
    for label in range(outputs):
        scorer = load(folder, label=label)
        relevance = scorer.activation(scorer.interpret(logits))
        np.testing.assert_allclose(relevance, softmax(logits)[:, label], atol=1e-6)


def test_extreme_logits_of_a_label_stay_finite(make_folder: MakeFolder) -> None:
    scorer = load(make_folder(config={"id2label": {"0": "bad", "1": "good"}}), label=1)
    logits = np.array([[1e4, -1e4], [-1e4, 1e4], [0, 0], [3e38, 3e38]], dtype=np.float32)
    assert scorer.interpret(logits).tolist() == [-2e4, 2e4, 0, 0]


def test_everything_that_changes_a_score_is_in_the_fingerprint(make_folder: MakeFolder) -> None:
    folder = make_folder(config={"id2label": {"0": "bad", "1": "good"}})
    scorers = [load(folder, label=0), load(folder, label=1), load(folder, label=1, max_length=64)]
    assert len({scorer.fingerprint for scorer in scorers}) == 3
    assert load(folder, label=1).fingerprint == scorers[1].fingerprint


# --- files that are missing or broken


def test_a_default_prompt_is_refused(make_folder: MakeFolder) -> None:
    beside: dict[str, Any] = {"prompts": {"query": "Represent: "}, "default_prompt_name": "query"}
    with pytest.raises(ConfigError, match="default prompt 'query'"):
        load(make_folder(config_sentence_transformers=beside))


@pytest.mark.parametrize(
    "beside", [{"prompts": {}, "default_prompt_name": None}, {"prompts": {"a": "b"}}, {"default_prompt_name": "a"}]
)
def test_prompts_that_are_not_used_do_no_harm(make_folder: MakeFolder, beside: dict[str, Any]) -> None:
    assert load(make_folder(config_sentence_transformers=beside)).max_length == MAX_LENGTH


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"cannot read .*config\.json: No such file.*Hugging Face model folder"),
        ("config.json", "{", r"config\.json is not valid JSON"),
        ("config.json", "[]", r"config\.json is not a JSON object"),
        ("tokenizer.json", None, r"no tokenizer\.json in .*save_pretrained"),
        ("tokenizer.json", "{}", r"cannot read .*tokenizer\.json"),
        ("tokenizer_config.json", "null", r"tokenizer_config\.json is not a JSON object"),
    ],
)
def test_a_folder_that_is_not_complete_names_the_file(
    make_folder: MakeFolder, name: str, content: str | None, message: str
) -> None:
    file = make_folder() / name
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load(file.parent)


def test_a_tokenizers_own_truncation_and_padding_are_off(make_folder: MakeFolder) -> None:
    folder = make_folder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = tokenizer.encode(QUERY, CORPUS[0]).ids
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert read(load(folder), QUERY, CORPUS[0]) == (expected, 0)


def test_an_unknown_scorer_names_the_known_ones(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="unknown scorer 'crossencoder'; known: cross-encoder"):
        load_scorer("crossencoder", ScorerSpec(folder=tiny_model))


def softmax(logits: FloatArray) -> FloatArray:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: FloatArray = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


# --- where tokens lie

_STRANGE = "\n\n  ünïcödé\t東京は日本の首都です。東京は日本の首都です。 👩‍👩‍👧 e\u0301   "


@pytest.mark.parametrize("family", list(TOKENIZERS))
@pytest.mark.parametrize("text", ["", " ", "a", LONG, _STRANGE, _STRANGE * 20, LONG + _STRANGE])
def test_edges_are_those_of_the_tokens_and_cover_the_text(make_folder: MakeFolder, family: str, text: str) -> None:
    scorer = load(make_folder(family))
    (edges,) = scorer.edges([text])
    ids, dropped = read(scorer, "x", text)
    special = len(read(scorer, "x", "")[0])
    assert edges.tokens == len(ids) - special + dropped
    assert edges.characters[-1] == len(text)
    assert (np.diff(edges.characters) >= 0).all()
    assert len(edges.words) == len(edges.characters)


@pytest.mark.parametrize("family", list(TOKENIZERS))
@pytest.mark.parametrize(("tokens", "overlap"), [(None, None), (40, 0), (64, 16)])
async def test_passages_of_a_document_are_read_whole(
    make_folder: MakeFolder, family: str, tokens: int | None, overlap: int | None
) -> None:
    scorer = load(make_folder(family))
    stage = RecordingStage()
    document = "\n".join(f"{number} {_STRANGE if number % 9 == 5 else CORPUS[number % 10]}" for number in range(40))
    options = ScoreOptions(truncation=Truncation.CHUNK, passages=PassageWishes(tokens=tokens, overlap=overlap))
    with SharedWorker.open(name="tokenize", threads=1) as worker:
        plan = PassagePlan(max_passages=1000)
        scores = await PassageStage(stage, scorer, idle_batcher(), worker, plan=plan).score(QUERY, [document], options)
    ((_, passages, _),) = stage.asked
    assert len(passages) > 2
    assert scorer.encode(QUERY, passages, max_document_tokens=None).dropped.sum() == 0
    at = 0
    for passage in passages:
        start = document.index(passage, max(0, at - len(passage)))
        assert start <= at, "nothing is left out"
        at = start + len(passage)
    assert at == len(document)
    assert scores.passages is not None
    assert scores.passages.counts.tolist() == [len(passages)]


def test_room_is_what_the_query_leaves(tiny_model: Path) -> None:
    scorer = load(tiny_model)
    ids, dropped = read(scorer, QUERY, LONG)
    assert dropped > 0
    assert scorer.room(QUERY) == len(ids) - len(read(scorer, QUERY, "")[0])
    with pytest.raises(InvalidRequest, match="shorten the query"):
        scorer.room("paris " * MAX_LENGTH)
    with pytest.raises(InvalidRequest, match="does not take an instruction"):
        scorer.room(QUERY, "find facts")
