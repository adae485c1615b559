"""The recipe of minilm-first: its objective, its lists, what its model computes at the start, how that is served."""

import math
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.registry_files import write_registry
from tests.requirements import require_data
from tests.servers import rerankd_server, wait_until_ready

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"template": "minilm-first", "window": 8, "stride": 4, "depth": 24}
QUERY = "What causes the tides of the sea?"
ANSWER = "Tides of the sea are caused by the pull of the Moon."
OTHERS = (
    "The stock market closed higher on Tuesday after a volatile session.",
    "Honey is stored in the comb and sealed with wax by the workers of the hive. " * 12,
    "Paris is the capital of France.",
    "A sonnet has fourteen lines.",
    "The library opens at nine and closes at six, except on Sundays and on holidays.",
    "Basalt is a dark volcanic rock.",
    "He scored twice in the second half of the match.",
)


def _pairs_of_a_list(scores: Sequence[float], ranks: Sequence[int]) -> float:
    """The paper's sum over pairs i above j, written out for one list, and divided by their number."""
    terms = [
        math.log(1 + math.exp(scores[j] - scores[i])) / (ranks[i] + ranks[j])
        for i in range(len(ranks))
        for j in range(len(ranks))
        if ranks[i] < ranks[j]
    ]
    return sum(terms) / len(terms)


def test_the_objective_is_firsts() -> None:
    torch = pytest.importorskip("torch")
    from models.recipes.minilm_first.losses import first_loss  # noqa: PLC0415 - needs torch

    draw = random.Random(3)
    orders = [draw.sample(range(8), 8), draw.sample(range(3), 3)]
    logits = torch.tensor([[[draw.gauss(0, 2) for _ in range(8)] for _ in range(8)] for _ in orders])
    targets, ranks = torch.full((2, 8), -1), torch.zeros(2, 8, dtype=torch.long)
    ranking, language = [], []
    for row, order in enumerate(orders):
        targets[row, : len(order)] = torch.tensor(order)
        rank_of = [order.index(place) + 1 for place in range(len(order))]
        ranks[row, : len(order)] = torch.tensor(rank_of)
        ranking.append(_pairs_of_a_list(logits[row, 0, : len(order)].tolist(), rank_of))
        for step, name in enumerate(order):
            values = logits[row, step].tolist()
            language.append(math.log(sum(map(math.exp, values))) - values[name])
    wanted = sum(language) / len(language) + 10 * sum(ranking) / len(ranking)
    assert float(first_loss(logits, targets, ranks)) == pytest.approx(wanted, rel=1e-5)


class WordTeacher:
    """Fits `Teacher`: both of its opinions count the query's words in a text."""

    def cosines(self, query: str, texts: Sequence[str]) -> list[float]:
        return [sum(word in text.split() for word in query.split()) / 10 for text in texts]

    def bm25(self, source: str, query: str, texts: Sequence[str]) -> list[float]:
        return self.cosines(query, texts)


def test_lists_are_windows_in_the_first_stages_order_with_the_relevant_text_as_the_best() -> None:
    pytest.importorskip("torch")
    from models.recipes.minilm_first.lists import ranked_list  # noqa: PLC0415 - as above
    from models.recipes.minilm_qa.data import Group  # noqa: PLC0415

    negatives = tuple(" ".join("abcde"[:count]) + f" {number}" for number, count in enumerate([3, 2, 1, 0] * 3))
    group = Group("squad", "a b c d e", "a b relevant", negatives)
    teacher: Any = WordTeacher()
    lists = [ranked_list(group, teacher, random.Random(seed)) for seed in range(200)]
    assert {len(ranked.texts) for ranked in lists} == set(range(2, 9))
    for ranked in lists:
        assert sorted(ranked.order) == list(range(len(ranked.texts)))
        assert [ranked.order[rank - 1] for rank in ranked.ranks] == list(range(len(ranked.texts)))
        best = ranked.texts[ranked.order[0]]
        assert (best == "a b relevant") is ranked.has_relevant
        rest = [ranked.texts[place] for place in ranked.order[ranked.has_relevant :]]
        assert rest == sorted(rest, key=lambda text: -teacher.cosines(group.query, [text])[0])
    in_order = [
        list(ranked.texts) == sorted(ranked.texts, key=lambda text: -teacher.cosines(group.query, [text])[0])
        for ranked in lists
    ]
    assert 0.75 < np.mean(in_order) < 1
    assert 0.02 < np.mean([not ranked.has_relevant for ranked in lists]) < 0.2


@pytest.fixture(scope="module")
def start_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[float]], Path]:
    """Writes the model that training starts from, with a trust in places that a test chooses; needs no data."""

    def folder(trust: Sequence[float]) -> Path:
        from transformers import AutoModel  # noqa: PLC0415 - as above

        from models.recipes.minilm_first.prompts import PromptWriter  # noqa: PLC0415
        from models.recipes.minilm_first.start import Start, starting_model  # noqa: PLC0415
        from models.recipes.minilm_first.steps import write_tokenizer  # noqa: PLC0415
        from models.recipes.minilm_first.teacher import load_tokenizer, start_weights  # noqa: PLC0415

        target = tmp_path_factory.mktemp("start")
        encoder, tokenizer = AutoModel.from_pretrained(start_weights()).eval(), load_tokenizer()
        write_tokenizer(target, encoder, tokenizer)
        prompts = [PromptWriter(target).write(QUERY, [ANSWER, *OTHERS])]
        starting_model(encoder, tokenizer, Start(20.0, trust), prompts).save_pretrained(target)
        return target

    return folder


@pytest.fixture(scope="module")
def start(start_folder: Callable[[Sequence[float]], Path]) -> Path:
    return start_folder([0.0] * 8)


def logits_of(folder: Path, documents: Sequence[str]) -> np.ndarray:
    from models.recipes.minilm_first.prompts import scorer_spec  # noqa: PLC0415
    from rerankd.engines import load_engine  # noqa: PLC0415 - as above
    from rerankd.engines.base import EngineSpec  # noqa: PLC0415
    from rerankd.scorers import load_list_scorer  # noqa: PLC0415

    scorer = load_list_scorer("first", scorer_spec(folder))
    spec = EngineSpec(
        folder=folder, pad_id=scorer.pad_id, output_tokens=scorer.output_tokens, options={"device": "cpu"}
    )
    encoding = scorer.encode_window(QUERY, documents, max_document_tokens=None).encoding
    logits = load_engine("torch-causal", spec).run([encoding])[0]
    return scorer.interpret_window(logits, candidates=len(documents))


@pytest.mark.parametrize("place", [0, 3, 7])
def test_the_start_finds_the_answer_wherever_it_stands(start: Path, place: int) -> None:
    documents = [*OTHERS[:place], ANSWER, *OTHERS[place:]]
    assert int(logits_of(start, documents).argmax()) == place


def test_the_start_trusts_the_first_stage_as_it_was_told(
    start: Path, start_folder: Callable[[Sequence[float]], Path]
) -> None:
    trusting = start_folder([3.5, 2.5, 1.5, 0.5, -0.5, -1.5, -2.5, -3.5])
    documents = [*OTHERS, ANSWER]
    gain = logits_of(trusting, documents) - logits_of(start, documents)
    assert gain[0] > gain[7], "a place that is trusted more"
    assert np.corrcoef(gain, -np.arange(8))[0, 1] > 0.6


def test_a_served_model_answers_alike_from_torch_and_onnx(tmp_path: Path, start: Path) -> None:
    from models.recipes.minilm_first.steps import write_graph  # noqa: PLC0415 - as above

    (parity,) = write_graph(start, tmp_path / "graph", precision="float32")
    assert parity.largest_difference < 1e-3
    models = [
        {"name": "torch", "scorer": "first", "engine": "torch-causal", "path": start, "options": OPTIONS},
        {"name": "onnx", "scorer": "first", "engine": "onnx", "path": tmp_path / "graph", "options": OPTIONS},
    ]
    documents = [f"{OTHERS[number % 7]} {number}" for number in range(19)] + [ANSWER]
    orders = {}
    with rerankd_server(tmp_path, write_registry(tmp_path, models)) as server:
        wait_until_ready(server)
        for model in ("torch", "onnx"):
            body = {"model": model, "query": QUERY, "documents": documents}
            answer = httpx.post(f"{server.url}/v2/rerank", json=body, timeout=120)
            assert answer.status_code == 200, answer.text
            orders[model] = [result["index"] for result in answer.json()["results"]]
    assert orders["torch"] == orders["onnx"]
    assert sorted(orders["onnx"]) == list(range(20))
    assert orders["onnx"][0] == 19, "from the last window up to the top"


@pytest.mark.data
@pytest.mark.timeout(900)
def test_a_smoke_run_gives_a_folder_that_serves_and_a_card(tmp_path: Path) -> None:
    data, out = require_data("train").parent, tmp_path / "out"
    command = [sys.executable, "-m", "models.recipes.minilm_first", "--data", str(data), "--out", str(out), "--smoke"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=800)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "$" not in card
    assert "| scifact | 1 |" in card
    model = {"name": "smoke", "scorer": "first", "engine": "onnx", "path": out / "minilm-first", "options": OPTIONS}
    with rerankd_server(tmp_path, write_registry(tmp_path, [model])) as server:
        wait_until_ready(server)
        body = {"query": QUERY, "documents": [ANSWER, *OTHERS]}
        answer = httpx.post(f"{server.url}/v2/rerank", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert sorted(result["index"] for result in answer.json()["results"]) == list(range(8))
