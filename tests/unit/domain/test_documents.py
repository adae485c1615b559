"""A document with an image is told from its text, and from one with another image."""

import pytest

from rerankd.domain import Document

_CAT = Document("a cat", image=b"meow")


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        (Document("a cat", image=b"meow"), True),
        (Document("a cat", image=b"purr"), False),
        (Document("a dog", image=b"meow"), False),
        ("a cat", False),
    ],
)
def test_documents_are_equal_if_text_and_image_are(other: str, equal: bool) -> None:
    assert (other == _CAT) is equal
    assert (other == _CAT) is equal
    assert len({_CAT, other}) == (1 if equal else 2)


def test_a_part_of_its_text_keeps_the_image() -> None:
    for part in (_CAT[2:], _CAT[-3:], _CAT[:0], _CAT[:]):
        assert (part.image, part.digest) == (b"meow", _CAT.digest)
    assert str.__str__(_CAT[2:]) == "cat"


def test_all_else_reads_its_text() -> None:
    assert (len(_CAT), _CAT.encode(), f"{_CAT}", _CAT.split()) == (5, b"a cat", "a cat", ["a", "cat"])
