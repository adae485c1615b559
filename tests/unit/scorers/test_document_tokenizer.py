"""Tokens of documents, beside those of the tokenizer itself."""

import gzip
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from time import process_time

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.normalizers import BertNormalizer

from rerankd.scorers.document_tokenizer import DocumentTokenizer
from rerankd.tools.benchmark.workload import Shape, Workload
from tests.requirements import require_data
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


def with_added(*tokens: AddedToken) -> Tokenizer:
    tokenizer = shipped()
    tokenizer.add_tokens(list(tokens))
    return tokenizer


_TOKENIZERS |= {
    "added words": with_added(AddedToken("qu", normalized=True), AddedToken("U.S.", single_word=True)),
    "added accents": with_added(AddedToken("caf\u00e9", normalized=True), AddedToken("\u2019", normalized=False)),
    "added phrase": with_added(AddedToken("the quick", normalized=True)),
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
    assert_same(name, texts)


def assert_same(name: str, texts: Sequence[str]) -> None:
    expected = [_TOKENIZERS[name].encode(text, add_special_tokens=False).ids for text in texts]
    found = _DOCUMENT_TOKENIZERS[name].tokenize(texts)
    assert all(ids.dtype == np.int32 for ids in found)
    assert [ids.tolist() for ids in found] == expected


# Words at every limit, characters whose case or accents change with their neighbours, and what joins or splits words.
_ADVERSARIAL = (
    *("", " ", "\n\t\r ", "a", "-", "a-b", "##a", "#", "a#b", "it's", "x" * 99, "x" * 100, "x" * 101, "a" * 10_000),
    *("[SEP]", "x[SEP]y", "[sEp]", "[SEP", "[[SEP]]", "[SEP] [CLS][MASK]", "[PAD]" * 50, "[" * 300),
    *(
        "caf\u00e9 cafe\u0301 CAF\u00c9",
        "\u0301a",
        "a \u0301 b",
        "\u1e9e\u00df",
        "\u0130I\u0131i",
        "\u03a3\u03c3\u03c2 \u03a3",
    ),
    *("\ufb01nd", "\u212b", "\uac00\u1100\u1161", "e\u0323\u0301", "\u0344", "\u0958"),
    *("a\u00a0b", "a\u2003b", "a\u200bb", "a\u00adb", "a\u2028b", "a\u3000b", "a\x0bb", "a\x0cb", "a\x1cb", "a\x85b"),
    *("a\x00b", "\ufffd", "a\x7fb", "\u6771\u4eac tower", "x\u6771y", "\uff21\uff22", "\U0001f468\u200d\U0001f469"),
    *("\U0002f800 a", "\U00010400\U00010428", "\u2019s \u201cquoted\u201d \u2014 dash", "\u0e01\u0e33", "\u202eabc"),
    *("plain words, and one \u00e9 in a long text of plain words " * 9, "\u00e9 " * 40 + "plain " * 9),
)


@pytest.mark.parametrize("name", _TOKENIZERS)
def test_adversarial_texts_have_the_same_tokens(name: str) -> None:
    assert_same(name, _ADVERSARIAL)
    assert_same(name, [f"Before {text} after." for text in _ADVERSARIAL])


def test_all_of_unicode_has_the_same_tokens() -> None:
    """A character in a word each, some thousands in a text, and one by one between plain words."""
    characters = [chr(point) for point in range(0x3400) if not 0xD800 <= point < 0xE000]
    assert_same("shipped", [" ".join(f"a{one}b" for one in characters[at : at + 500]) for at in range(0, 0x3400, 500)])
    assert_same("shipped", [f"some plain words before a{one}b and a few behind it" for one in characters[::3]])


@pytest.mark.data
@pytest.mark.parametrize("name", ["scifact", "dl19", "xquad_de", "xquad_ru", "xquad_zh"])
def test_real_corpora_have_the_same_tokens(name: str) -> None:
    assert_same("shipped", texts_of(require_data(f"eval/{name}"), most=300))


def texts_of(folder: Path, *, most: int) -> list[str]:
    packed = folder / "corpus.jsonl.gz"
    with gzip.open(packed) if packed.exists() else (folder / "corpus.jsonl").open("rb") as lines:
        return [orjson.loads(line)["text"] for line in islice(lines, most)]


def test_what_is_not_compiled_is_left_to_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerankd.scorers.wordpiece._compiled", None)
    tokenizer = shipped()
    texts = ["Plain text", "plain text", "Caf\u00e9", ""]
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in DocumentTokenizer(tokenizer).tokenize(texts)] == expected


def test_another_kind_of_tokenizer_is_used_as_it_is() -> None:
    tokenizer = shipped()
    tokenizer.normalizer = None
    texts = ["Plain text", "plain text", "Caf\u00e9"]
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in DocumentTokenizer(tokenizer).tokenize(texts)] == expected


@pytest.mark.timed
def test_plain_documents_take_less_time() -> None:
    (body,) = islice(Workload(Shape((60,)), seed=1), 1)
    documents = orjson.loads(body.content)["documents"]
    tokenizer = shipped()
    ways = {
        "all": lambda: tokenizer.encode_batch_fast(documents, add_special_tokens=False),
        "plain": lambda: _DOCUMENT_TOKENIZERS["shipped"].tokenize(documents),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(8):
        for name, way in ways.items():
            started = process_time()
            way()
            taken[name].append(process_time() - started)
    assert min(taken["plain"]) < 0.5 * min(taken["all"])
