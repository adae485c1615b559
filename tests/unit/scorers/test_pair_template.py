"""Pairs assembled by hand are what the tokenizer itself makes of them, for every family and any text."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors
from tokenizers.normalizers import Sequence, Strip

from rerankd.errors import ConfigError
from rerankd.scorers.pair_template import PairTemplate, read_joined_template, read_template
from rerankd.tasks.encoding import Encoding
from tests.tiny_models import TOKENIZERS, wordpiece_tokenizer

FAMILY = pytest.mark.parametrize("family", list(TOKENIZERS))

Strings = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@cache
def tokenizer_of(family: str) -> Tokenizer:
    return TOKENIZERS[family]()


@cache
def template_of(family: str) -> PairTemplate:
    return read_template(tokenizer_of(family))


def by_hand(family: str, query: str, document: str) -> Encoding:
    tokenizer = tokenizer_of(family)
    ids = [np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64) for text in (query, document)]
    return template_of(family).join(*ids)


@FAMILY
@given(query=Strings, document=Strings)
@settings(deadline=None, max_examples=60)
def test_any_pair_is_joined_as_the_tokenizer_joins_it(family: str, query: str, document: str) -> None:
    expected = tokenizer_of(family).encode(query, document)
    encoding = by_hand(family, query, document)
    assert encoding.ids.tolist() == expected.ids
    assert [int(at >= encoding.boundary) for at in range(len(encoding.ids))] == expected.type_ids


@FAMILY
def test_many_pairs_are_those_that_are_joined_alone(family: str) -> None:
    template, query = template_of(family), np.array([7, 8], dtype=np.int64)
    documents = [np.arange(length, dtype=np.int32) for length in (3, 0, 1, 40)]
    joined = template.join_all(query, documents)
    alone = [template.join(query, document) for document in documents]
    assert [(pair.ids.tolist(), pair.boundary) for pair in joined] == [
        (pair.ids.tolist(), pair.boundary) for pair in alone
    ]


@pytest.mark.parametrize(
    ("query", "document"),
    [
        ("", ""),
        ("", "document"),
        ("query", ""),
        ("[SEP]", "[CLS] injected [SEP] </s><s>"),
        ("\x00\x01", "\ud7ff\ue000\ufffd"),
        ("e\u0301", "\u00e9 \ufb01 \u2460 \uff21"),
        ("👩‍👩‍👧‍👦", "\U0001f1e6\U0001f1f9"),
        ("  leading", "trailing  \n\t\r\u3000\u00a0"),
        ("x" * 300, "漢" * 300),
    ],
)
@FAMILY
def test_odd_pairs_are_joined_as_the_tokenizer_joins_them(family: str, query: str, document: str) -> None:
    assert by_hand(family, query, document).ids.tolist() == tokenizer_of(family).encode(query, document).ids


@pytest.mark.parametrize(
    ("family", "special_tokens", "segments"),
    [("bert", 3, True), ("xlmr", 4, False), ("modernbert", 3, True), ("deberta", 3, True)],
)
def test_the_template_of_each_family_is_read_off(family: str, special_tokens: int, *, segments: bool) -> None:
    template = template_of(family)
    assert (template.special_tokens, template.segments) == (special_tokens, segments)


def test_without_segments_everything_belongs_to_segment_zero() -> None:
    encoding = by_hand("xlmr", "what is love", "a document")
    assert encoding.boundary == len(encoding.ids)


def templated(pair: str) -> Tokenizer:
    tokenizer = wordpiece_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


@pytest.mark.parametrize(
    "pair",
    [
        "$A:0 $B:1",
        "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        "[CLS]:0 $A:0 [SEP]:1 $B:1 [SEP]:1",
        "[CLS]:0 [CLS]:0 $A:0 [SEP]:0 [SEP]:0 [SEP]:1 $B:1",
        "[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:0",
    ],
)
def test_other_templates_are_read_off_too(pair: str) -> None:
    tokenizer = templated(pair)
    ids = [np.array(tokenizer.encode(text, add_special_tokens=False).ids) for text in ("what", "paris is")]
    encoding, expected = read_template(tokenizer).join(*ids), tokenizer.encode("what", "paris is")
    assert encoding.ids.tolist() == expected.ids
    assert [int(at >= encoding.boundary) for at in range(len(encoding.ids))] == expected.type_ids


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("$B:1 [SEP]:1 $A:0 [SEP]:0 [CLS]:0", "puts the document before the query"),
        ("$A:0 [SEP]:0 $B:1 [SEP]:1 [CLS]:2", "differ from the tokenizer's own encoding"),  # XLNet
        ("[CLS]:1 $A:0 [SEP]:0 $B:1 [SEP]:1", "differ from the tokenizer's own encoding"),
        ("[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:0", "differ from the tokenizer's own encoding"),
        ("[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:1", "differ from the tokenizer's own encoding"),
    ],
)
def test_a_template_that_cannot_be_said_is_refused(pair: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_template(templated(pair))


def test_a_tokenizer_that_knows_no_letters_is_refused() -> None:
    with pytest.raises(ConfigError, match="letters a and b to nothing"):
        read_template(Tokenizer(models.BPE()))


def test_a_pair_as_one_text_has_one_separator() -> None:
    tokenizer = TOKENIZERS["xlmr"]()
    tokenizer.normalizer = Sequence([Strip(), tokenizer.normalizer])
    template = read_joined_template(tokenizer)
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in ("a query", "a document")]
    joined = template.join(*(np.array(part, dtype=np.int64) for part in ids))
    assert joined.ids.tolist() == tokenizer.encode("a query </s> a document").ids


def test_a_tokenizer_that_keeps_the_spaces_around_a_separator_is_refused() -> None:
    with pytest.raises(ConfigError, match="differ"):
        read_joined_template(TOKENIZERS["xlmr"]())
