"""A document that is more than its text. Most are text alone, and those are plain strings."""

from hashlib import blake2b
from typing import Final, Self, SupportsIndex

_DIGEST_BYTES: Final = 16


class Document(str):
    """A text with an image beside it, which may also be without a text. A part of its text keeps the image, so that
    code that cuts and passes on texts knows nothing of images (docs/adr/0018). `digest` tells images apart.
    """

    __slots__ = ("digest", "image")

    image: bytes
    digest: bytes

    def __new__(cls, text: str = "", *, image: bytes) -> Self:
        document = super().__new__(cls, text)
        document.image = image
        document.digest = blake2b(image, digest_size=_DIGEST_BYTES).digest()
        return document

    def __getitem__(self, key: SupportsIndex | slice) -> Self:
        part = super().__new__(type(self), super().__getitem__(key))
        part.image, part.digest = self.image, self.digest
        return part

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Document) and self.digest == other.digest and super().__eq__(other)

    __hash__ = str.__hash__
