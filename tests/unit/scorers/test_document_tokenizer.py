"""Tokens of plain documents, beside those of the tokenizer that normalises everything."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from time import process_time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer

from rerankd.scorers.document_tokenizer import DocumentTokenizer
from rerankd.tools.benchmark.workload import Shape, Workload
from tests.tiny_models import wordpiece_tokenizer

_SHIPPED = Path(__file__).parents[3] / "models" / "minilm-qa" / "tokenizer.json"


def shipped(**normalizer: bool) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(_SHIPPED))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if normalizer:
        tokenizer.normalizer = BertNormalizer(**normalizer)
    return tokenizer


_TOKENIZERS = {
    "shipped": shipped(),
    "cased": shipped(lowercase=False),
    "accents kept": shipped(strip_accents=False),
    "control characters kept": shipped(clean_text=False),
    "tiny": wordpiece_tokenizer(),
}
_DOCUMENT_TOKENIZERS = {name: DocumentTokenizer(tokenizer) for name, tokenizer in _TOKENIZERS.items()}

_PIECES = st.sampled_from(
    [
        *(
            "[SEP]",
            "[sep]",
            "[CLS]",
            "[MASK]",
            "The Quick",
            " fox",
            "don't",
            "U.S.A.",
            "x_y",
            "3.14",
            "##ing",
            "a" * 120,
        ),
        *("\t", "\r\n", "\x0b", "\x1c", "\x7f", "\x00", ""),
        *("\u00e9", "e\u0301", "\u0130", "\u00df", "\u6771\u4eac", "\u200b", "\ufffd", "\U0001f600", "\u2019"),
    ]
)
_TEXTS = st.one_of(
    st.text(st.characters(max_codepoint=127), max_size=60),
    st.text(max_size=40),
    st.lists(_PIECES, max_size=8).map("".join),
)


@pytest.mark.parametrize("name", _TOKENIZERS)
@given(st.lists(_TEXTS, max_size=6))
def test_tokens_are_those_of_the_tokenizer(name: str, texts: Sequence[str]) -> None:
    expected = [_TOKENIZERS[name].encode(text, add_special_tokens=False).ids for text in texts]
    assert _DOCUMENT_TOKENIZERS[name].tokenize(texts) == expected


def test_another_kind_of_tokenizer_is_used_as_it_is() -> None:
    tokenizer = shipped()
    tokenizer.normalizer = None
    texts = ["Plain text", "plain text", "Café"]
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert DocumentTokenizer(tokenizer).tokenize(texts) == expected


@pytest.mark.timed
def test_plain_documents_take_less_time() -> None:
    (body,) = islice(Workload(Shape((60,)), seed=1), 1)
    documents = orjson.loads(body.content)["documents"]
    tokenizer = shipped()
    ways = {
        "all": lambda: tokenizer.encode_batch_fast(documents, add_special_tokens=False),
        "plain": lambda: DocumentTokenizer.tokenize(_DOCUMENT_TOKENIZERS["shipped"], documents),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(8):
        for name, way in ways.items():
            started = process_time()
            way()
            taken[name].append(process_time() - started)
    assert min(taken["plain"]) < 0.85 * min(taken["all"])
