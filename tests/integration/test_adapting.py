"""`rerankd adapt` from its command line to a served folder, with the shipped model and a corpus of a few sentences."""

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch

from rerankd.cli import cli
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest
from rerankd.errors import ConfigError, RerankError
from rerankd.serving.assembly import running_service
from rerankd.telemetry.observer import Silent
from tests.endpoint_server import Script, completion, serving_endpoint

pytestmark = pytest.mark.slow

_TOPICS = ("bees", "tides", "wings", "honey", "stocks", "vaccines", "rivers", "planes", "stars", "bread")
_FACTS = ("are found in many places", "were first described in a book", "change slowly over a year")
_QUICK = ("--steps", "2", "--depth", "6", "--queries", "6", "--held-out-queries", "3", "--loss", "softmax")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty documents, and a judged query for each topic."""
    folder = tmp_path_factory.mktemp("data")
    documents = [(f"{topic}{n}", f"{topic} {fact}") for topic in _TOPICS for n, fact in enumerate(_FACTS)]
    corpus = [{"id": name, "title": text, "text": f"It is said of them: {text}."} for name, text in documents]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(one) + "\n" for one in corpus))
    queries = [{"id": topic, "text": f"where are {topic} found"} for topic in _TOPICS]
    (folder / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in queries))
    (folder / "qrels.tsv").write_text("".join(f"{topic}\t{topic}0\t1\n" for topic in _TOPICS))
    run = (f"{topic}\t{topic}{n}\t{n + 1}\t{3 - n}\n" for topic in _TOPICS for n in (2, 1, 0))
    (folder / "run.bm25.tsv").write_text("".join(run))
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


async def _served(folder: Path, request: RerankRequest) -> float:
    async with running_service(Settings(model=(str(folder),), request_timeout_s=600), Silent()) as service:
        return (await service.rerank(request)).results[0].value


def _adapt(*words: object) -> Result:
    return CliRunner().invoke(cli, ["adapt", *map(str, words)])


def test_an_adapted_folder_is_served_with_its_card(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "ours"
    result = _adapt(data, output, "--held-out", data, *_QUICK, "--keep")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "ours.state").exists()
    golden = json.loads((output / "golden.json").read_text())
    [pair] = [one for one in golden["pairs"] if one["query"] == "symptoms of dehydration"]
    request = RerankRequest(query=pair["query"], documents=[pair["document"]])
    assert asyncio.run(_served(output, request)) == pytest.approx(pair["logit"], abs=golden["tolerance"])
    card = (output / "README.md").read_text()
    for said in (
        "minilm-qa",
        "made of the documents by templates",
        "--steps 2",
        "nDCG@10",
        "model.int8.onnx",
        "int8 weights that changed",
    ):
        assert said in card


def test_a_model_that_is_not_better_is_not_written_until_it_is_kept(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "ours"
    result = _adapt(data, output, "--learn-from", "judgements", *_QUICK)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert not output.exists()
    weights = (tmp_path / "ours.state" / "model" / "model.int8.onnx").read_bytes()
    assert _adapt(data, output, "--learn-from", "judgements", *_QUICK, "--keep").exit_code == 0
    assert (output / "model.int8.onnx").read_bytes() == weights, (
        "the checkpoint was taken up, and nothing trained again"
    )


def test_queries_of_an_endpoint_are_learnt(data: Path, tmp_path: Path) -> None:
    def reply(messages: list[dict[str, str]]) -> str:
        return f'Query: "{" ".join(re.findall("[a-z]+", messages[-1]["content"])[:4])}"'

    script = Script([], reply=reply)
    with serving_endpoint(script) as url:
        words = ("--learn-from", "endpoint", "--endpoint", url, "--endpoint-model", "m", "--held-out", data, *_QUICK)
        result = _adapt(data / "corpus.jsonl", tmp_path / "ours", *words)
    assert isinstance(result.exception, SystemExit), result.exception
    assert {path for path, _, _ in script.asked} == {"/v1/chat/completions"}
    written = [json.loads(line) for line in (tmp_path / "ours.state" / "written.jsonl").read_text().splitlines()]
    assert len(written) == len(script.asked) == 6
    learnt = [json.loads(line) for line in (tmp_path / "ours.state" / "queries.jsonl").read_text().splitlines()]
    assert {one["query"] for one in learnt} <= {query for _, query in written}


def test_an_endpoint_that_fails_midway_is_continued(data: Path, tmp_path: Path) -> None:
    words = ("--learn-from", "endpoint", "--endpoint-model", "m", "--held-out", data, *_QUICK)
    answers = [(200, completion("how do wings lift planes"))] * 4 + [(400, {})]
    with serving_endpoint(Script(answers)) as url:
        result = _adapt(data / "corpus.jsonl", tmp_path / "ours", *words, "--endpoint", url)
    assert isinstance(result.exception, ConfigError)
    assert "the same command continues from there" in str(result.exception)
    assert len((tmp_path / "ours.state" / "written.jsonl").read_text().splitlines()) == 4


def test_clicks_and_a_teacher_are_learnt_from(data: Path, tmp_path: Path) -> None:
    clicks = tmp_path / "clicks.jsonl"
    lines = [
        {"query": f"news of {topic}", "results": [f"{topic}1", f"{topic}0"], "clicked": [f"{topic}0"]}
        for topic in _TOPICS
    ]
    clicks.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = _adapt(
        data, tmp_path / "ours", "--learn-from", "clicks", "--clicks", clicks, "--teacher", "minilm-qa",
        "--held-out", data, *_QUICK, "--keep",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "weighted by inverse propensity" in (tmp_path / "ours" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learn-from", "endpoint"], "needs --endpoint URL"),
        (["--learn-from", "clicks"], "needs --clicks FILE"),
        (["--endpoint", "http://127.0.0.1:1"], "belong together"),
        (["--loss", "margin-mse"], "name one with --teacher"),
        (["--learn-from", "clicks", "--clicks", "c", "--loss", "ranknet"], "`softmax` alone"),
        (["--model", "unknown"], "unknown"),
        (["--teacher", "unknown"], "unknown"),
        (["--held-out", "away"], "no data folder away"),
    ],
)
def test_options_that_cannot_be_used_are_named(data: Path, tmp_path: Path, words: list[str], message: str) -> None:
    result = _adapt(data, tmp_path / "ours", *words)
    assert isinstance(result.exception, ConfigError | RerankError), result.output
    assert message in str(result.exception)
    assert not (tmp_path / "ours").exists()


def test_without_what_training_needs_its_extra_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("rerankd.tools.adapting")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    result = _adapt(data, tmp_path / "ours")
    assert isinstance(result.exception, ConfigError)
    assert "`rerankd adapt` needs peft" in str(result.exception)
    assert "rerankd[train]" in str(result.exception)


def test_an_output_that_exists_and_a_state_of_others_are_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "file").touch()
    assert "exists already" in str(_adapt(data, tmp_path / "ours").exception)
    (tmp_path / "new.state").mkdir()
    (tmp_path / "new.state" / "plan.json").write_text('{"digest": "of others"}')
    assert "--fresh" in str(_adapt(data, tmp_path / "new").exception)
    assert "no data folder" in str(_adapt(tmp_path / "away", tmp_path / "new").exception)
