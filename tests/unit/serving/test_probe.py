"""What is tried before a model serves: outputs counted, scores finite, and a pair's score its own."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from rerankd.domain import FloatArray
from rerankd.engines.base import BatchLimits
from rerankd.errors import ConfigError
from rerankd.scorers import load_list_scorer, load_scorer
from rerankd.scorers.base import AnyPairScorer, ScorerSpec
from rerankd.serving.probe import probe, tolerance_of
from rerankd.tasks.encoding import Encoding
from tests.fakes import logit_of
from tests.tokenizer_folders import SHIPPED_TEMPLATES, tokenizer_folder

Compute = Callable[[Sequence[Encoding]], FloatArray]


class Computed:
    """An engine that computes what it is told to."""

    workers = 1
    preferred_batch = BatchLimits(tokens=512, pairs=64)

    def __init__(self, compute: Compute, *, name: str = "computed") -> None:
        self.run = compute
        self.name = name
        self.fingerprint = name


def own(encodings: Sequence[Encoding], outputs: int = 1) -> FloatArray:
    rows = [[logit_of(encoding.ids.tolist()) + place for place in range(outputs)] for encoding in encodings]
    return np.array(rows, dtype=np.float32)


def moved(by: float) -> Compute:
    """Scores that company moves."""
    return lambda encodings: own(encodings) + np.float32(by * (len(encodings) > 1))


@pytest.fixture
def scorer(tiny_model: Path) -> AnyPairScorer:
    return load_scorer("cross-encoder", ScorerSpec(folder=tiny_model))


def test_scores_of_their_own_are_found_to_be_so(scorer: AnyPairScorer) -> None:
    found = probe(Computed(own), scorer)
    assert found.independent
    assert found.largest_difference == 0


@pytest.mark.parametrize(
    ("name", "by", "independent"),
    [
        ("computed", 1e-4, True),
        ("computed", 0.05, False),
        ("onnx/cpu/model.int8.onnx", 1e-3, True),
        ("onnx/cpu/model.int8.onnx", 0.06, False),
        ("torch/cuda/bfloat16", 0.05, True),
        ("torch/cuda/bfloat16", 0.6, False),
        ("torch/cuda/float16", 0.005, True),
    ],
)
def test_company_may_move_a_score_by_rounding_and_no_more(
    scorer: AnyPairScorer, name: str, by: float, independent: bool
) -> None:
    found = probe(Computed(moved(by), name=name), scorer)
    assert found.independent is independent
    assert found.largest_difference == pytest.approx(by, rel=0.1)


def test_a_text_of_many_roundings_may_move_more_in_coarse_numbers() -> None:
    assert tolerance_of("torch/cpu/float32") < tolerance_of("torch/cpu/float16") < tolerance_of("torch/cpu/bfloat16")


def test_more_outputs_than_the_scorer_reads_are_refused(scorer: AnyPairScorer) -> None:
    with pytest.raises(ConfigError, match=r"32 outputs .* 1: is this an embedding model"):
        probe(Computed(lambda encodings: own(encodings, 32)), scorer)


def test_rows_for_tokens_instead_of_pairs_are_refused(scorer: AnyPairScorer) -> None:
    with pytest.raises(ConfigError, match=r"shape \[1, 7, 3\] for 1 texts"):
        probe(Computed(lambda encodings: np.zeros((len(encodings), 7, 3), dtype=np.float32)), scorer)


def test_a_score_that_is_no_number_is_refused(scorer: AnyPairScorer) -> None:
    with pytest.raises(ConfigError, match="not a finite number"):
        probe(Computed(lambda encodings: own(encodings) * np.float32(np.inf)), scorer)


def test_a_batch_that_fails_where_single_pairs_do_not_is_a_failure_to_load(scorer: AnyPairScorer) -> None:
    def alone_only(encodings: Sequence[Encoding]) -> FloatArray:
        if len(encodings) > 1:
            raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")
        return own(encodings)

    with pytest.raises(ConfigError, match=r"a batch of 3 texts \(each alone did not fail\).*padding token"):
        probe(Computed(alone_only), scorer)


def test_a_listwise_models_prompts_are_tried_beside_a_longer_one(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path, "qwen3")
    spec = ScorerSpec(folder=folder, templates=[SHIPPED_TEMPLATES], options={"template": "first-qwen3", "window": 4})
    scorer = load_list_scorer("first", spec)
    lengths: list[list[int]] = []

    def recorded(encodings: Sequence[Encoding]) -> FloatArray:
        lengths.append([len(encoding.ids) for encoding in encodings])
        return own(encodings, 4)

    assert probe(Computed(recorded), scorer).independent
    assert len(lengths[-1]) > 1
    assert max(lengths[-1]) > 1.5 * min(lengths[-1])
