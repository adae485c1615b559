"""Images in request bodies: data URLs or base64, as Jina's and vLLM's clients send them. Nothing is ever fetched.

An image is a field of a document (`image`, `image_url`) or one of its `content` parts, as OpenAI's chat API has them.
"""

import re
from binascii import Error as NotBase64
from binascii import a2b_base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, Discriminator, Field, Tag

from rerankd.api.dialects.base import shown
from rerankd.concurrency.slices import Sliced
from rerankd.domain import Document, ImageLimits
from rerankd.errors import InvalidRequest

IMAGE_FIELDS: Final = frozenset(["image", "image_url", "content"])
_PART_TYPES: Final = ("text", "image", "image_url")
_SCHEME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{1,15}:")
_HEAD: Final = re.compile(r"data:(?P<type>[^;,]{0,100})(?:;[^;,]{0,100}){0,8}?;base64,", re.IGNORECASE)
_HEAD_CHARACTERS: Final = 1024
# Decoded at a time, in less than a millisecond.
_CHARACTERS: Final = 2**18
_HOW: Final = 'send the file itself, as "data:image/png;base64,..." or as base64 alone'


class Content(BaseModel):
    """vLLM's: the parts of a query, or documents of one part each."""

    content: list[Any] = Field(description="Parts: a text, or an image as a data URL.")


# Told apart before they are checked, so that a message says what is wrong with the kind that is meant.
_BY_KIND: Final = Discriminator(lambda value: "object" if isinstance(value, dict) else "plain")
BY_CONTENT: Final = Discriminator(
    lambda value: (
        "content" if isinstance(value, Content) or (isinstance(value, dict) and "content" in value) else "plain"
    )
)
# A text, or an object with an image.
Query = Annotated[Annotated[str, Tag("plain")] | Annotated[dict[str, Any], Tag("object")], _BY_KIND]


class SentImages:
    """The images of one request: counted, and bounded before they are decoded."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._images = 0
        self.bytes = 0

    def texts_of(self, texts: Sequence[str | Mapping[str, Any]], *, name: str) -> Sliced[list[str]]:
        """As `query_of`, of many."""
        if set(map(type, texts)) <= {str}:
            return [text for text in texts if isinstance(text, str)]
        read: list[str] = []
        for index, text in enumerate(texts):
            read.append((yield from self.query_of(text, f"{name}[{index}]")))
            yield
        return read

    def query_of(self, query: str | Mapping[str, Any], place: str = "query") -> Sliced[str]:
        """A query's text, with its image.

        Raises:
            InvalidRequest: it is an object without either, or an image is not one.
            RequestTooLarge: an image is too large, or one too many.
        """
        if isinstance(query, str):
            return query
        read = yield from self.document_of(query, place)
        if read is not None:
            return read
        text = query.get("text")
        if not isinstance(text, str):
            raise InvalidRequest(f'{place} is an object without "text", "image" or "content"; send a string')
        return text

    def document_of(self, document: Mapping[str, Any], place: object) -> Sliced[str | None]:
        """A document's text with its image; None: it has neither an image nor parts.

        Raises:
            InvalidRequest: an image is not one; the message names the field and the way out.
            RequestTooLarge: an image is too large, or one too many.
        """
        content = document.get("content")
        if isinstance(content, list) and content and all(map(_is_part, content)):
            return (yield from self._joined(content, f"{place}.content"))
        if "type" in document and document["type"] in _PART_TYPES:
            return (yield from self._joined([document], f"{place}"))
        sent = [name for name in ("image", "image_url") if document.get(name) is not None]
        if not sent:
            return None
        if len(sent) > 1:
            raise InvalidRequest(f"{place} has image and image_url; send one image a document")
        text = document.get("text")
        if text is not None and not isinstance(text, str):
            raise InvalidRequest(f"{place}.text is {shown(text)}; send a string beside the image, or leave it out")
        image = yield from self._decoded(document[sent[0]], f"{place}.{sent[0]}")
        return Document(text or "", image=image)

    def _joined(self, parts: Sequence[Mapping[str, Any]], place: str) -> Sliced[str]:
        """One text of all text parts, with the image of the others."""
        texts: list[str] = []
        image: bytes | None = None
        for number, part in enumerate(parts):
            where = f"{place}[{number}]" if place.endswith("content") else place
            kind = part["type"]
            if kind not in _PART_TYPES:
                raise InvalidRequest(f"{where}.type is {shown(kind)}; parts are text, image_url or image")
            value = part.get(kind)
            if kind == "text":
                if not isinstance(value, str):
                    raise InvalidRequest(f'{where} has no string in its field "text"; add one')
                texts.append(value)
            elif image is None:
                image = yield from self._decoded(value, f"{where}.{kind}")
            else:
                raise InvalidRequest(f"{place} has several images; send one a document")
        text = "\n".join(texts)
        return text if image is None else Document(text, image=image)

    def _decoded(self, value: object, place: str) -> Sliced[bytes]:
        if isinstance(value, Mapping):
            value, place = value.get("url"), f"{place}.url"
        if not isinstance(value, str):
            raise InvalidRequest(f"{place} is {shown(value)}, and no image; {_HOW}")
        start = _start_of(value, place)
        self._images += 1
        self._limits.check(images=self._images, largest=(len(value) - start) * 3 // 4)
        image = yield from _bytes_of(value, start, place)
        self.bytes += len(image)
        return image


def _is_part(value: object) -> bool:
    return isinstance(value, Mapping) and "type" in value


def _start_of(value: str, place: str) -> int:
    """Where the base64 of an image begins."""
    if not _SCHEME.match(value):
        return 0
    if value[:5].lower() != "data:":
        raise InvalidRequest(f"{place} is the address {shown(value)}, and nothing is fetched; {_HOW}")
    head = _HEAD.match(value, 0, _HEAD_CHARACTERS)
    if head is None:
        raise InvalidRequest(f"{place} is {shown(value)}, a data URL without base64; {_HOW}")
    if not head["type"].lower().startswith("image/") and head["type"]:
        raise InvalidRequest(f"{place} is of type {shown(head['type'])}, and no image; {_HOW}")
    return head.end()


def _bytes_of(value: str, start: int, place: str) -> Sliced[bytes]:
    """Decode base64; line breaks in it mean nothing."""
    image = bytearray()
    rest = ""
    for at in range(start, len(value), _CHARACTERS):
        piece = rest + "".join(value[at : at + _CHARACTERS].split())
        end = len(piece) if at + _CHARACTERS >= len(value) else len(piece) // 4 * 4
        try:
            image += a2b_base64(piece[:end], strict_mode=True)
        except (NotBase64, ValueError):
            raise InvalidRequest(f"{place} is {shown(value)}, which is not base64; {_HOW}") from None
        rest = piece[end:]
        yield
    return bytes(image)
