"""Weighing the shipped model's signals again: nDCG@10 from the head's inputs is that of whole passes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra `torch`")

import torch
import typer

from models.recipes.minilm_qa.evaluate import EvaluationSet, read_candidates
from models.recipes.minilm_qa.interpolation import scale_of, weigh_signals
from models.recipes.minilm_qa.teacher import load_tokenizer
from models.recipes.minilm_qa.weigh import sets_of, weights_of
from rerankd.tools.training.model import CrossEncoder, score_pairs
from rerankd.tools.training.shipped import SHIPPED, read_shipped

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).resolve().parents[2]
_DOCUMENTS = {
    "moon": "The moon pulls the water of the sea, and it rises.",
    "words": "Why do tides rise? Why do prices rise? Why do tides of fashion rise? Nobody knows why.",
    "stocks": "Stocks rose on Monday after a week of falling markets.",
    "bees": "A worker bee lives six weeks in summer, the queen for years.",
    "hive": "How long does the hive live? As long as its bees bring honey.",
}
_QUERIES = {"tides": "why do tides rise", "bees": "how long does a bee live"}
_GRADES = {"tides": {"moon": 2, "words": 1}, "bees": {"bees": 2, "hive": 1}}
_CHOICES = ("1,0.36,4,0", "1,0,0,0", "1,-3,0,0", "-1,0,0,0.5")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "eval" / "vaswani"
    folder.mkdir(parents=True)
    for name, texts in (("corpus", _DOCUMENTS), ("queries", _QUERIES)):
        lines = [json.dumps({"id": key, "text": text}) for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    grades = [f"{query}\t{text}\t{grade}" for query, graded in _GRADES.items() for text, grade in graded.items()]
    (folder / "qrels.tsv").write_text("\n".join(grades))
    run = [f"{query}\t{text}\t{rank}\t{-rank}" for query in _QUERIES for rank, text in enumerate(_DOCUMENTS, start=1)]
    (folder / "run.bm25.tsv").write_text("\n".join(run))
    return tmp_path / "data"


def test_every_choice_of_weights_ranks_as_a_model_with_these_weights(data: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "models.recipes.minilm_qa.weigh",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--only", "vaswani", *(part for choice in _CHOICES for part in ("--weights", choice))]
    first, again = (
        subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True, timeout=100).stdout for _ in "ab"
    )
    assert first == again, "the second run reads what the first has computed"
    candidates = read_candidates(data, EvaluationSet("vaswani"))
    expected = []
    for choice in _CHOICES:
        model = read_shipped(SHIPPED)
        weigh_signals(model, weights_of(choice), scale=scale_of(model))
        expected.append(candidates.ndcg(candidates.run_of(_scores(model, candidates.pairs))))
    assert len(set(expected)) > 1
    [row] = [line for line in first.splitlines() if "vaswani" in line]
    assert re.findall(r"[.\d]+", row) == [f"{value:.4f}" for value in expected]


def _scores(model: CrossEncoder, pairs: list[tuple[str, str]]) -> list[float]:
    with torch.inference_mode():
        scores: list[float] = score_pairs(model.eval(), load_tokenizer(), pairs).tolist()
    return scores


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "1,2,3,x"])
def test_weights_are_one_number_for_each_signal(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not 4 numbers"):
        weights_of(text)


def test_a_set_that_does_not_exist_is_named_beside_those_that_do() -> None:
    assert [chosen.name for chosen in sets_of(["trecqa", "dl19"])] == ["trecqa", "dl19"]
    with pytest.raises(typer.BadParameter, match=r"no set dl20; there are dl19, .*squad_dev"):
        sets_of(["dl19", "dl20"])
