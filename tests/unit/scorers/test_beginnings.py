"""What is read of a text is bounded, and the same as if all of it had been."""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rerankd.domain import Side
from rerankd.scorers.beginnings import Reach, read_parts
from rerankd.scorers.visible import LOOKED_AT
from tests import tokenizer_folders
from tests.tiny_models import CORPUS, TOKENIZERS

_FAMILIES = {**TOKENIZERS, **tokenizer_folders.TOKENIZERS}
_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz     ",
    "abcdefghijklmnopqrstuvwxyz0123456789.,;-()\n\t   ",
    "абвгдежзийклмнопрстуфхцчшщ  ",
    "東京は日本の首都です。漢字、",
    "القاهرة هي عاصمة مصر  ",
    "e\u0301a\u0308 👩‍👩‍👧🎻\u200b\u00ad  ",
    "<|[]>SEPCLSunk  ",
)
_REACH = Reach(first=4096, most=LOOKED_AT)


@cache
def _tokenizer(family: str) -> Tokenizer:
    return _FAMILIES[family]()


def _ids(family: str, texts: Sequence[str]) -> list[list[int]]:
    return [one.ids for one in _tokenizer(family).encode_batch(list(texts), add_special_tokens=False)]


@st.composite
def _long_texts(draw: st.DrawFn) -> str:
    """Texts of some thousands of characters: words of an alphabet, or of real sentences, with runs of white space."""
    alphabet = draw(st.sampled_from(_ALPHABETS))
    words = draw(st.lists(st.text(st.sampled_from(alphabet), min_size=1, max_size=30), min_size=3, max_size=12))
    words += draw(st.lists(st.sampled_from(CORPUS), max_size=3))
    space = draw(st.sampled_from([" ", "  ", "\n", " \n\t", ""]))
    chosen = np.random.default_rng(draw(st.integers(0, 99))).choice(words, size=draw(st.integers(200, 1500)))
    return space.join(chosen.tolist())


@pytest.mark.parametrize("family", list(_FAMILIES))
@given(text=_long_texts(), tokens=st.integers(1, 64))
@settings(deadline=None, max_examples=25)
def test_the_first_tokens_are_those_of_the_whole_text(family: str, text: str, tokens: int) -> None:
    (part,) = read_parts(
        [text], lambda texts: _ids(family, texts), enough=lambda ids: len(ids) >= 2 * tokens, reach=_REACH
    )
    (whole,) = _ids(family, [text])
    assert part.content[:tokens] == whole[:tokens]
    assert part.characters + part.unread == len(text)
    if not part.unread:
        assert part.content == whole


@pytest.mark.parametrize("family", list(_FAMILIES))
@given(text=_long_texts(), tokens=st.integers(1, 64))
@settings(deadline=None, max_examples=15)
def test_the_last_tokens_are_those_of_the_whole_text(family: str, text: str, tokens: int) -> None:
    (part,) = read_parts(
        [text],
        lambda texts: _ids(family, texts),
        enough=lambda ids: len(ids) >= 2 * tokens,
        reach=_REACH,
        side=Side.LEFT,
    )
    (whole,) = _ids(family, [text])
    assert part.content[-tokens:] == whole[-tokens:]


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize(
    ("text", "characters"),
    [
        ("w" * 100, 100),
        ("w" * 4096, 4096),
        ("w " * 5000, 4095),
        ("w" * 100_000, 100_000),
        ("w" * (LOOKED_AT + 1), LOOKED_AT),
        (" " * 10_000_000, LOOKED_AT),
    ],
)
def test_no_more_of_a_text_is_read_than_its_reach(text: str, characters: int, side: Side) -> None:
    given: list[int] = []

    def read(texts: Sequence[str]) -> list[int]:
        given.extend(map(len, texts))
        return [len(part.split()) for part in texts]

    (part,) = read_parts([text], read, enough=lambda words: words >= 1000, reach=_REACH, side=side)
    assert abs(part.characters - characters) <= 64
    assert max(given) <= LOOKED_AT
    assert sum(given) <= LOOKED_AT + 4096
    assert part.beyond(part.content) >= bool(part.unread)


def test_a_cut_spares_the_last_word() -> None:
    text = "sesquipedalian " * 1000
    (part,) = read_parts([text], list, enough=lambda _: True, reach=_REACH)
    assert set(part.content.split()) == {"sesquipedalian"}


def test_texts_that_were_read_whole_have_nothing_beyond() -> None:
    parts = read_parts(["", "a b"], lambda texts: list(map(len, texts)), enough=lambda _: False, reach=_REACH)
    assert [(part.content, part.unread, part.beyond(7)) for part in parts] == [(0, 0, 0), (3, 0, 0)]


_MEASURE = """
import json, resource, sys
from pathlib import Path
from rerankd.config.settings import SHIPPED_REGISTRY
from rerankd.scorers import load_list_scorer, load_scorer
from rerankd.scorers.base import ScorerSpec
from tests.tokenizer_folders import SHIPPED_TEMPLATES, tokenizer_folder

kind, unit, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
def spec(family, template):
    return ScorerSpec(
        folder=tokenizer_folder(folder, family), templates=(SHIPPED_TEMPLATES,), options={"template": template}
    )
if kind == "cross-encoder":
    scorer = load_scorer("cross-encoder", ScorerSpec(folder=SHIPPED_REGISTRY.parent / "minilm-qa"))
elif kind == "yes-no":
    scorer = load_scorer("yes-no", spec("qwen3", "qwen3-reranker"))
elif kind == "first":
    scorer = load_list_scorer("first", spec("mistral", "first-mistral"))
else:
    scorer = load_list_scorer("generative", spec("mistral", "rank-zephyr"))
documents = [(unit * (60_000_000 // len(unit) + 1))[:60_000_000]]
encode = getattr(scorer, "encode", None) or scorer.encode_window
encode("a query", ["short"], max_document_tokens=None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for tokens in (None, 50):
    encode("a query", documents, max_document_tokens=tokens)
print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))
"""


@pytest.mark.parametrize("unit", ["x", " ", "ab ", "漢"])
@pytest.mark.parametrize("kind", ["cross-encoder", "yes-no", "first", "generative"])
def test_a_document_of_sixty_million_characters_takes_no_more_memory_than_itself(
    kind: str, unit: str, tmp_path: object
) -> None:
    command = [sys.executable, "-c", _MEASURE, kind, unit, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=300)
    megabytes = json.loads(done.stdout)
    # Nothing but what is made of the part that is read.
    assert megabytes < 100
