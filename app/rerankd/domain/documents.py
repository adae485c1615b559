"""A document or query that is more than its text. Most are text alone, and those are plain strings."""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Self, SupportsIndex

from rerankd.errors import RequestTooLarge

_DIGEST_BYTES: Final = 16


class Document(str):
    """A text with an image beside it, which may also be without a text; a query may be one, too. A part of its text
    keeps the image, so that code that cuts and passes on texts knows nothing of images (docs/adr/0018). `digest` tells
    images apart.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """The most images of a request, and the most bytes of one."""

    images: int
    bytes: int

    def check(self, *, images: int, largest: int) -> None:
        """Check the number of images, and the size of the largest in bytes.

        Raises:
            RequestTooLarge: there are more, or it is larger.
        """
        if images > self.images:
            raise RequestTooLarge(f"at most {self.images} images per request; got {images}: send fewer")
        if largest > self.bytes:
            raise RequestTooLarge(f"at most {self.bytes} bytes in an image; one has {largest}: send it smaller")


def images_of(texts: Iterable[str]) -> list[bytes]:
    """The images of these texts."""
    return [text.image for text in texts if isinstance(text, Document)]
