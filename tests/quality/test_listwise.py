"""Training on blocks: a block's scores are those of its pairs, and its lists are drawn towards the teacher's."""

import copy
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("sentence_transformers", reason="needs the extra `dev`")

import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize
from transformers import BertConfig, PreTrainedTokenizerBase

from models.recipes.minilm_qa.block_pass import encode, logits
from models.recipes.minilm_qa.blocks import DOCUMENTS, Block, blocks_of
from models.recipes.minilm_qa.data import Group
from models.recipes.minilm_qa.interpolation import unfold
from models.recipes.minilm_qa.larger import LargerVectors
from models.recipes.minilm_qa.listwise import (
    CONTINUE,
    IMITATE,
    Lists,
    ListTeacher,
    ListwiseTrainer,
    listwise_loss,
    states_loss,
)
from models.recipes.minilm_qa.next_edition import TRAINED_SHARES, best_share
from models.recipes.minilm_qa.start import cut
from models.recipes.minilm_qa.teacher import load_tokenizer, start_weights
from rerankd.tools.training.encoding import PairEncoder, token_ids
from rerankd.tools.training.lexical_tables import lexical_tables
from rerankd.tools.training.model import CrossEncoder, score_pairs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_torch_on_one_thread")]

TEXTS = (
    "The moon pulls the water of the sea, and the tides rise.",
    "Stocks rose on Monday after a week of falling markets. " * 3,
    "A worker bee lives six weeks in summer, the queen for years.",
    "Water boils at one hundred degrees at the level of the sea.",
    "x",
)
QUERIES = ("why do tides rise", "how long does a bee live in summer", "boiling water")


class OneAxisEach:
    """Stands for the larger bi-encoder: queries[n] is nearest to documents[n]."""

    def add(self, texts: Iterable[str]) -> None:
        list(texts)

    def cosines(self, texts: Sequence[str], others: Sequence[str]) -> torch.Tensor:
        left, right = (torch.stack([self._vector(text) for text in side]) for side in (texts, others))
        return left @ right.T

    def _vector(self, text: str) -> torch.Tensor:
        axis = (QUERIES if text in QUERIES else TEXTS).index(text)
        return normalize(torch.ones(8) * 0.1 + torch.eye(8)[axis], dim=0)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer()


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerBase) -> CrossEncoder:
    torch.manual_seed(3)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = BertConfig(**size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tables = lexical_tables(tokenizer, token_ids(tokenizer, TEXTS, max_tokens=64), seed=1)
    made = CrossEncoder(config, tables)
    _randomize(made)
    return made


def test_a_block_scores_its_pairs_as_the_model_does_one_by_one(
    model: CrossEncoder, tokenizer: PreTrainedTokenizerBase
) -> None:
    block = encode(model, _rows(tokenizer, QUERIES), _rows(tokenizer, TEXTS))
    expected = score_pairs(model, tokenizer, [(query, text) for query in QUERIES for text in TEXTS])
    assert expected.std() > 0.1
    torch.testing.assert_close(logits(model, block).flatten(), expected, atol=1e-5, rtol=1e-5)


def test_every_group_is_in_one_block_with_its_relevant_text_and_groups_that_share_texts_are_together() -> None:
    groups = [
        Group("one", f"q{n}", f"relevant {n}", tuple(f"negative {n % 5} {rank}" for rank in range(10)))
        for n in range(40)
    ] + [Group("two", f"other {n}", f"far {n}", (f"far {n + 1}",)) for n in range(3)]
    blocks = blocks_of([*groups, groups[0]], seed=5)
    placed = {query: block for block in blocks for query in block.queries}
    assert sum(len(block.queries) for block in blocks) == len(placed) == len(groups)
    for group in groups:
        block = placed[group.query]
        position = block.queries.index(group.query)
        assert block.source == group.source
        assert block.documents[block.relevant[position]] == group.positive
        assert {block.documents[known] for known in block.known[position]} <= set(group.negatives)
        assert len(block.documents) <= DOCUMENTS
    for block in blocks:
        if block.source == "one":
            assert len({int(query[1:]) % 5 for query in block.queries}) == 1, "these share all of their negatives"
            assert all(len(known) == DOCUMENTS - 8 for known in block.known)


def test_the_loss_is_least_where_the_lists_are_the_teachers() -> None:
    teacher = torch.tensor([[9.0, 1.0, -3.0], [0.0, 12.0, 2.0]])
    relevant, irrelevant = torch.tensor([0, 1]), torch.tensor([[False, True, True], [True, False, False]])

    def loss_of(student: torch.Tensor, irrelevant: torch.Tensor = irrelevant) -> float:
        return float(listwise_loss(Lists(student, teacher, relevant, irrelevant)))

    assert loss_of(teacher) < loss_of(teacher.flip(1)) - 1
    assert loss_of(teacher) < loss_of(torch.zeros_like(teacher)) - 0.1
    unsure = teacher.clone()
    unsure[1, 2] = 11.0
    with_third = torch.tensor([[False, True, True], [True, False, True]])
    assert loss_of(unsure) < loss_of(unsure, with_third), "what nothing takes for irrelevant is no negative"


def test_steps_move_the_lists_towards_the_teachers_and_a_stopped_run_goes_on_as_if_it_had_not(
    model: CrossEncoder, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    block = Block("squad", QUERIES, TEXTS, (0, 2, 3), (frozenset([1]), frozenset([1, 4]), frozenset()))

    def trained(out: Path, *, steps: int) -> CrossEncoder:
        teacher = ListTeacher(copy.deepcopy(model), OneAxisEach(), tokenizer)
        return ListwiseTrainer([block, block], teacher, model, CONTINUE, out=out, seed=1).run(minutes=10, steps=steps)

    whole = trained(tmp_path / "whole", steps=6)
    trained(tmp_path / "parts", steps=4)
    (tmp_path / "parts" / "checkpoint").rename(tmp_path / "parts" / "checkpoint.partial")
    (tmp_path / "parts" / "checkpoint" / "last").mkdir(parents=True)
    parts = trained(tmp_path / "parts", steps=6)
    assert torch.allclose(parts.classifier.weight, whole.classifier.weight, atol=1e-5)
    before, after = (_order(made, tokenizer) for made in (model, whole))
    assert after > before
    assert not torch.equal(
        whole.bert.encoder.layer[0].output.dense.weight, model.bert.encoder.layer[0].output.dense.weight
    )


def test_a_model_of_fewer_layers_learns_the_states_of_the_one_that_it_was_cut_from(
    model: CrossEncoder, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    block = Block("squad", QUERIES, TEXTS, (0, 2, 3), (frozenset([1]), frozenset([1, 4]), frozenset()))
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 4
    torch.manual_seed(4)
    deep = CrossEncoder(config)
    _randomize(deep)
    with torch.no_grad():
        for layer in deep.bert.encoder.layer:
            layer.output.dense.weight.mul_(20.0)
    rows = (_rows(tokenizer, QUERIES), _rows(tokenizer, TEXTS))
    wanted = encode(deep, *rows)
    assert [part.shape for part in encode(deep, *rows).states] == [
        (sum(map(len, rows[0])), 32),
        (sum(map(len, rows[1])), 32),
        (sum(map(len, rows[0])) * len(TEXTS), 32),
    ]
    assert float(states_loss(wanted, wanted).detach()) == pytest.approx(0.0, abs=1e-6)
    student = cut(deep, layers=2)
    for ours, theirs in ((0, 0), (1, 3)):
        mine, his = (made.bert.encoder.layer[n] for made, n in ((student, ours), (deep, theirs)))
        assert torch.equal(mine.intermediate.dense.weight, his.intermediate.dense.weight)
    assert torch.equal(student.classifier.weight, deep.classifier.weight)
    plan = dataclasses.replace(IMITATE, learning_rate=3e-3, states_weight=100.0)
    teacher = ListTeacher(deep, OneAxisEach(), tokenizer)
    trainer = ListwiseTrainer([block, block], teacher, student, plan, out=tmp_path, seed=1)
    before = float(states_loss(encode(student, *rows), wanted).detach())
    after = float(states_loss(encode(trainer.run(minutes=10, steps=12), *rows), wanted).detach())
    assert before > 0.01
    assert after < 0.9 * before


def test_without_its_calibration_a_model_has_the_same_order_and_the_same_zero(
    model: CrossEncoder, tokenizer: PreTrainedTokenizerBase
) -> None:
    with torch.no_grad():
        model.classifier.weight[0, 0] = 0.07
    block = encode(model, _rows(tokenizer, QUERIES), _rows(tokenizer, TEXTS))
    before = logits(model, block)
    unfold(model)
    assert float(model.classifier.weight[0, 0].detach()) == 1.0
    torch.testing.assert_close(logits(model, block), before / 0.07, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("start_weight", "trained_weight", "expected"), [(1.0, -1.0, 1.0), (-1.0, 1.0, -1.0)])
def test_as_much_of_the_training_is_kept_as_ranks_held_out_groups_best(
    model: CrossEncoder,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    start_weight: float,
    trained_weight: float,
    expected: float,
) -> None:
    def only_bm25(weight: float) -> CrossEncoder:
        made = CrossEncoder(model.config)
        made.load_state_dict(model.state_dict())
        with torch.no_grad():
            made.classifier.weight.zero_()
            made.classifier.weight[0, 1] = weight
        return made

    groups = [
        Group("one", "why do tides rise", TEXTS[0], TEXTS[1:]),
        Group("two", "a bee in summer", TEXTS[2], (TEXTS[0], TEXTS[1])),
    ]
    start, trained = only_bm25(start_weight), only_bm25(trained_weight)
    best = best_share(trained, start, tokenizer, groups, tmp_path / "shares.json")
    figures = {row["share"]: row for row in json.loads((tmp_path / "shares.json").read_text())}
    assert set(figures) == set(TRAINED_SHARES)
    assert best.classifier.weight[0, 1] > 0
    assert figures[0.0]["mean"] - figures[1.0]["mean"] == pytest.approx(
        expected * (1.0 - (1 / 5 + 1 / 3) / 2), abs=1e-6
    ), "the relevant text is first in one order and last in the other"


def test_the_larger_vectors_are_those_of_sentence_transformers_and_are_embedded_once(tmp_path: Path) -> None:
    vectors = LargerVectors(start_weights(), cache=tmp_path)
    vectors.add([*TEXTS, TEXTS[0]])
    vectors.add([*QUERIES, *TEXTS])
    bi_encoder = SentenceTransformer(str(start_weights()), device="cpu")
    left, right = (bi_encoder.encode(list(side), normalize_embeddings=True) for side in (QUERIES, TEXTS))
    cosines = vectors.cosines(QUERIES, TEXTS)
    assert cosines.numpy() == pytest.approx(left @ right.T, abs=0.02), "within bfloat16"
    of_a_second_run = LargerVectors(tmp_path / "nothing to embed with", cache=tmp_path)
    of_a_second_run.add([*TEXTS, *QUERIES])
    assert torch.equal(of_a_second_run.cosines(QUERIES, TEXTS), cosines)


def _randomize(model: CrossEncoder) -> None:
    model.eval()
    with torch.no_grad():
        model.classifier.weight.normal_(std=0.2)
        model.bert.embeddings.word_embeddings.weight.mul_(5.0)


def _order(model: CrossEncoder, tokenizer: PreTrainedTokenizerBase) -> float:
    """The mean logarithm of the probability of the relevant texts."""
    block = encode(model, _rows(tokenizer, QUERIES), _rows(tokenizer, TEXTS))
    lists = torch.log_softmax(logits(model, block) / 5.0, dim=1)
    return float(lists[torch.arange(3), torch.tensor([0, 2, 3])].mean().detach())


def _rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    encoder = PairEncoder(tokenizer)
    return [encoder.single(ids)[0] for ids in token_ids(tokenizer, texts, max_tokens=200)]
