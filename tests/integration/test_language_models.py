"""Language models as rerankers: ours against plain transcriptions of the methods, on tiny models of every family."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankd.config.settings import SHIPPED_REGISTRY
from rerankd.domain import FloatArray
from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec, LogitsEngine
from rerankd.errors import ConfigError
from rerankd.scorers import load_list_scorer, load_scorer
from rerankd.scorers.base import AnyListScorer, AnyPairScorer, ScorerSpec
from rerankd.tasks.encoding import Encoding
from rerankd.tasks.generate import Prompt
from tests.tiny_causal import FIRST_TEMPLATES, build_rank1
from tests.tiny_models import CORPUS
from tests.transcriptions import (
    bge_gemma_logits,
    first_logits,
    greedy_ids,
    greedy_text,
    list_prompt,
    mxbai_rerank_logits,
    qwen3_reranker_grades,
    qwen3_reranker_logits,
    rank1_logits,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Folder = Callable[[str], Path]

TEMPLATES = (SHIPPED_REGISTRY.parent / "templates",)
QUERIES = ("what is the capital of France?", "who wrote [12] Hamlet")
DOCUMENTS = (*CORPUS, "one", "a text that says [B] > [A] and [3], {query} too", " white \n\n space\tof   all kinds ")
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

SHARING = pytest.mark.parametrize("share_prefixes", [True, False], ids=["shared", "unshared"])
FAMILY = pytest.mark.parametrize("family", list(FIRST_TEMPLATES))


def first_scorer(folder: Path, family: str, **options: Any) -> AnyListScorer:
    template = {"template": FIRST_TEMPLATES[family]}
    return load_list_scorer("first", ScorerSpec(folder=folder, templates=TEMPLATES, options={**template, **options}))


def yes_no_scorer(folder: Path, template: str = "qwen3-reranker", *, ratings: Any = None, **spec: Any) -> AnyPairScorer:
    options = {"template": template, **({"ratings": ratings} if ratings else {})}
    return load_scorer("yes-no", ScorerSpec(folder=folder, templates=TEMPLATES, options=options, **spec))


def torch_engine(folder: Path, scorer: AnyListScorer | AnyPairScorer, **options: Any) -> LogitsEngine:
    return load_engine(
        "torch-causal",
        EngineSpec(
            folder=folder,
            pad_id=scorer.pad_id,
            task=scorer.task,
            options={"device": "cpu", **options},
        ),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, causal_folder: Folder) -> Callable[[str, str], Path]:
    """Gives the folder that our own export makes of a family's tiny model for a method, in float32 and int8."""

    @cache
    def folder(method: str, family: str) -> Path:
        from rerankd.tools.exporting import export_language_model  # noqa: PLC0415 - imports torch

        source, target = causal_folder(family), tmp_path_factory.mktemp(f"{method}-{family}")
        template = FIRST_TEMPLATES[family] if method == "first" else "qwen3-reranker"
        export_language_model(
            source,
            target,
            method=method,
            spec=ScorerSpec(folder=source, templates=TEMPLATES, options={"template": template}),
            precisions=["float32"] if method == "first" else ["float32", "int8"],
        )
        return target

    return folder


def onnx_engine(folder: Path, scorer: AnyListScorer | AnyPairScorer, file: str = "model.onnx") -> LogitsEngine:
    return load_engine(
        "onnx",
        EngineSpec(folder=folder, pad_id=scorer.pad_id, task=scorer.task, options={"file": file}),
    )


def in_batches(engine: LogitsEngine, encodings: Sequence[Encoding]) -> list[FloatArray]:
    """Logits by encoding, of every mix: alone, in pairs, in threes in another order, and all at once, twice."""
    rounds = []
    for size, seed in ((1, None), (2, 1), (3, 2), (len(encodings), None), (len(encodings), 3)):
        order = list(range(len(encodings)))
        if seed is not None:
            np.random.default_rng(seed).shuffle(order)
        logits = np.empty((len(encodings), 0), dtype=np.float32)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            rows = engine.run([encodings[index] for index in batch])
            logits = logits if logits.shape[1] else np.empty((len(encodings), rows.shape[1]), dtype=np.float32)
            logits[batch] = rows
        rounds.append(logits)
    return rounds


def windows() -> list[tuple[str, Sequence[str]]]:
    return [(query, DOCUMENTS[start : start + size]) for query in QUERIES for start, size in ((0, 1), (1, 3), (3, 10))]


@FAMILY
@SHARING
def test_first_gives_the_logits_of_a_plain_transcription(
    causal_folder: Folder, family: str, share_prefixes: bool
) -> None:
    folder = causal_folder(family)
    scorer = first_scorer(folder, family)
    engine = torch_engine(folder, scorer, share_prefixes=share_prefixes)
    encodings = [
        scorer.encode_window(query, documents, max_document_tokens=None).encoding for query, documents in windows()
    ]
    expected = [first_logits(family, folder, query, documents) for query, documents in windows()]
    for logits in in_batches(engine, encodings):
        for row, wanted in zip(logits, expected, strict=True):
            ours = scorer.interpret_window(row, candidates=len(wanted))
            np.testing.assert_allclose(ours, wanted, atol=1e-5)
    assert np.std(np.concatenate(expected)) > 0.5


@SHARING
@pytest.mark.parametrize("instruction", [None, "Find the capital"])
def test_yes_no_gives_the_scores_of_the_model_card(
    causal_folder: Folder, share_prefixes: bool, instruction: str | None
) -> None:
    folder = causal_folder("qwen3")
    scorer = yes_no_scorer(folder)
    engine = torch_engine(folder, scorer, share_prefixes=share_prefixes)
    encodings: list[Encoding] = []
    for query in QUERIES:
        pairs = scorer.encode(query, DOCUMENTS, max_document_tokens=None, instruction=instruction)
        assert not pairs.dropped.any()
        encodings += pairs.encodings
    expected = np.concatenate(
        [qwen3_reranker_logits(folder, query, DOCUMENTS, instruction=instruction or INSTRUCTION) for query in QUERIES]
    )
    for logits in in_batches(engine, encodings):
        np.testing.assert_allclose(scorer.interpret(logits), expected, atol=1e-5)
    assert expected.std() > 0.1


def test_ratings_give_the_expected_grade(causal_folder: Folder) -> None:
    folder = causal_folder("qwen3")
    ratings = {"yes": 2.0, "1": 1.0, "0": -0.5, "no": -1.0}
    scorer = yes_no_scorer(folder, ratings=ratings)
    encodings: list[Encoding] = []
    for query in QUERIES:
        encodings += scorer.encode(query, DOCUMENTS, max_document_tokens=None).encodings
    expected = np.concatenate(
        [qwen3_reranker_grades(folder, query, DOCUMENTS, instruction=INSTRUCTION, ratings=ratings) for query in QUERIES]
    )
    for logits in in_batches(torch_engine(folder, scorer), encodings):
        np.testing.assert_allclose(scorer.interpret(logits), expected, atol=1e-5)
    assert expected.std() > 0.05


@SHARING
@pytest.mark.parametrize("instruction", [None, "Find the capital"])
def test_yes_no_gives_the_scores_of_mxbai_rerank_v2(
    causal_folder: Folder, share_prefixes: bool, instruction: str | None
) -> None:
    folder = causal_folder("qwen3")
    scorer = yes_no_scorer(folder, "mxbai-rerank-v2")
    engine = torch_engine(folder, scorer, share_prefixes=share_prefixes)
    encodings: list[Encoding] = []
    for query in QUERIES:
        encodings += scorer.encode(query, DOCUMENTS, max_document_tokens=None, instruction=instruction).encodings
    expected = np.concatenate(
        [mxbai_rerank_logits(folder, query, DOCUMENTS, instruction=instruction) for query in QUERIES]
    )
    for logits in in_batches(engine, encodings):
        np.testing.assert_allclose(scorer.interpret(logits), expected, atol=1e-5)
    assert expected.std() > 0.1


@SHARING
def test_yes_no_gives_the_scores_of_bge_reranker_v2_gemma(causal_folder: Folder, share_prefixes: bool) -> None:
    folder = causal_folder("gemma2")
    scorer = yes_no_scorer(folder, "bge-reranker-gemma")
    engine = torch_engine(folder, scorer, share_prefixes=share_prefixes)
    encodings: list[Encoding] = []
    for query in QUERIES:
        encodings += scorer.encode(query, DOCUMENTS, max_document_tokens=None).encodings
    expected = np.concatenate([bge_gemma_logits(folder, query, DOCUMENTS) for query in QUERIES])
    for logits in in_batches(engine, encodings):
        np.testing.assert_allclose(scorer.interpret(logits), expected, atol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.uncovered
@FAMILY
def test_first_over_onnx_gives_the_logits_of_a_plain_transcription(
    causal_folder: Folder, exported: Callable[[str, str], Path], family: str
) -> None:
    folder = exported("first", family)
    scorer = first_scorer(folder, family)
    engine = onnx_engine(folder, scorer)
    encodings = [
        scorer.encode_window(query, documents, max_document_tokens=None).encoding for query, documents in windows()
    ]
    expected = [first_logits(family, causal_folder(family), query, documents) for query, documents in windows()]
    for logits in in_batches(engine, encodings):
        for row, wanted in zip(logits, expected, strict=True):
            ours = scorer.interpret_window(row, candidates=len(wanted))
            np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_yes_no_over_onnx_gives_the_scores_of_the_model_card(
    causal_folder: Folder, exported: Callable[[str, str], Path]
) -> None:
    folder = exported("yes-no", "qwen3")
    scorer = yes_no_scorer(folder)
    encodings = scorer.encode(QUERIES[0], DOCUMENTS, max_document_tokens=None).encodings
    expected = qwen3_reranker_logits(causal_folder("qwen3"), QUERIES[0], DOCUMENTS, instruction=INSTRUCTION)
    for logits in in_batches(onnx_engine(folder, scorer), encodings):
        np.testing.assert_allclose(scorer.interpret(logits), expected, atol=1e-5)
    int8 = scorer.interpret(onnx_engine(folder, scorer, "model.int8.onnx").run(encodings))
    assert 0 < np.abs(int8 - expected).max() < 0.5
    assert (folder / "golden.json").is_file()


def test_a_graph_of_other_tokens_is_refused(exported: Callable[[str, str], Path]) -> None:
    folder = exported("first", "qwen3")
    letters = first_scorer(folder, "qwen3")
    smaller = first_scorer(folder, "qwen3", window=7, stride=3)
    assert onnx_engine(folder, smaller).run([Encoding(np.arange(9, 20), 0)]).shape == (1, 7)
    digits = first_scorer(folder, "qwen3", identifiers="numeric", window=9, stride=3)
    with pytest.raises(ConfigError, match=r"gives the logits of tokens .* `rerankd export --method`"):
        onnx_engine(folder, digits)
    with pytest.raises(ConfigError, match="language model's; name the scorer"):
        load_engine("onnx", EngineSpec(folder=folder, pad_id=letters.pad_id))


def test_the_command_exports_for_a_method(causal_folder: Folder, tmp_path: Path) -> None:
    source = str(causal_folder("qwen3"))
    command = [
        sys.executable,
        "-m",
        "rerankd",
        "export",
        source,
        str(tmp_path),
        "--precision",
        "float32",
        "--method",
    ]
    refused = subprocess.run([*command, "yes-no"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "no template recognises it" in refused.stderr
    template = ["--template", "first-qwen3", "--window", "5"]
    done = subprocess.run([*command, "first", *template], capture_output=True, text=True, check=True)
    assert "model.onnx" in done.stdout
    assert done.stderr == ""
    scorer = first_scorer(tmp_path, "qwen3", window=5, stride=2)
    encoding = scorer.encode_window(QUERIES[0], DOCUMENTS[:5], max_document_tokens=None).encoding
    expected = first_logits("qwen3", causal_folder("qwen3"), QUERIES[0], DOCUMENTS[:5])
    np.testing.assert_allclose(onnx_engine(tmp_path, scorer).run([encoding])[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("template", "family"), [("rank-vicuna", "mistral"), ("reasonrank", "qwen3"), ("rank-k", "qwen3")]
)
def test_a_list_is_asked_for_and_written_as_its_authors_do(template: str, family: str, causal_folder: Folder) -> None:
    folder = causal_folder(family)
    options = {"template": template, "answer_tokens": 6}
    scorer = load_list_scorer("generative", ScorerSpec(folder=folder, templates=TEMPLATES, options=options))
    spec = EngineSpec(folder=folder, pad_id=scorer.pad_id, task=scorer.task, options={"device": "cpu"})
    asked = [(query, DOCUMENTS[start : start + 3]) for query in QUERIES for start in (0, 2)]
    payloads = [scorer.encode_window(*window, max_document_tokens=None).encoding for window in asked]
    expected = [list_prompt(template, folder, *window) for window in asked]
    assert [payload.ids.tolist() for payload in payloads] == expected
    written = load_engine("torch-generate", spec).run(payloads)
    assert [one.text for one in written] == [greedy_text(folder, ids, tokens=6) for ids in expected]


def test_a_thought_that_ends_is_read_where_its_answer_is_written(tmp_path: Path) -> None:
    folder = build_rank1(tmp_path / "model")
    texts = CORPUS[:6]
    # What the tiny model writes after a while about one of them, it does not write about all of them.
    closing, positive = _an_ending(folder, QUERIES[0], texts[1])
    shipped = (TEMPLATES[0] / "rank1.toml").read_text()
    ours = shipped.replace('"</think>"', json.dumps(closing)).replace('" true"', json.dumps(positive))
    (tmp_path / "ours.toml").write_text(ours)
    spec = ScorerSpec(folder=folder, templates=[tmp_path], options={"template": "ours", "answer_tokens": 9})
    scorer = load_scorer("reasoning", spec)
    prompts = scorer.encode(QUERIES[0], texts, max_document_tokens=None).encodings
    engine = load_engine(
        "torch-generate", EngineSpec(folder=folder, pad_id=scorer.pad_id, task=scorer.task, options={"device": "cpu"})
    )
    answers = (positive, " false")
    expected = rank1_logits(folder, QUERIES[0], texts, tokens=9, answers=answers, closing=closing)
    np.testing.assert_allclose(scorer.interpret(engine.run(prompts)), expected, atol=1e-4)
    for prompt, value in zip(prompts, expected, strict=True):
        np.testing.assert_allclose(scorer.interpret(engine.run([prompt])), [value], atol=1e-4)
    # It ended: with room for more the same was read, and cut before it something else.
    ended, cut = (
        float(scorer.interpret(engine.run([Prompt(prompts[1].ids, max_tokens=tokens)]))[0]) for tokens in (12, 2)
    )
    assert ended == pytest.approx(float(expected[1]), abs=1e-4)
    assert abs(cut - ended) > 1e-2


def _an_ending(folder: Path, query: str, text: str) -> tuple[str, str]:
    """Two tokens that the tiny model writes one behind the other, each the one token of its text."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - imports torch

    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = (TEMPLATES[0] / "rank1.toml").read_text()
    prompt = "".join(tomllib.loads(template)["prompt"])
    filled = prompt.replace("{query}", query).replace("{document}", text).replace("{instruction}", "")
    words = [
        tokenizer.decode(ids)
        for ids in greedy_ids(folder, tokenizer(filled, add_special_tokens=False).input_ids, tokens=9)
    ]
    for place in range(2, 8):
        one = [tokenizer(word, add_special_tokens=False).input_ids for word in words[place : place + 2]]
        if all(len(ids) == 1 for ids in one) and words[place + 1] not in words[: place + 1]:
            return words[place], words[place + 1]
    raise AssertionError(words)
