"""Prompts that show a model one query and one document, of which either may have an image. Only text is ever cut."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from rerankd.domain import Document, IntArray
from rerankd.errors import InvalidRequest
from rerankd.scorers.base import EncodedPairs
from rerankd.scorers.beginnings import Reach, read_parts
from rerankd.scorers.image_template import ImageTemplate
from rerankd.scorers.images import ImageReader, bad_image
from rerankd.scorers.pair_prompt import PairPrompt
from rerankd.scorers.tokenizer_files import ids_of
from rerankd.tasks.encoding import Encoding
from rerankd.tasks.read_images import IllustratedEncoding, SeenImage


@dataclass(frozen=True, slots=True)
class _Sides:
    """The prompt's text on both sides of the document, and the query's images, which stand in one of them."""

    before: str
    behind: str
    images_before: tuple[SeenImage, ...]
    images_behind: tuple[SeenImage, ...]


class ImagePrompt:
    """Encodes pairs into a prompt. Pairs without an image are those of `PairPrompt`."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ImageTemplate,
        reader: ImageReader,
        *,
        instruction: str | None,
        max_length: int,
        image_token: int,
    ) -> None:
        self.texts = PairPrompt(
            tokenizer, template, instruction=instruction, max_length=max_length, also=template.image
        )
        self._tokenizer = tokenizer
        self._template = template
        self._reader = reader
        self._image_token = image_token
        self._ending = np.array(template.ending_tokens, dtype=np.int64)

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None,
        owner: str,
    ) -> EncodedPairs[Encoding]:
        """Tokenize pairs and read their images.

        Raises:
            InvalidRequest: an image cannot be read, or leaves no room within what the model reads.
            InvalidRequest: as `PairPrompt.encode` says, or the model does not read such a document.
        """
        self._refuse_others(query, documents)
        plain = [index for index, one in enumerate(documents) if Document not in (type(query), type(one))]
        dropped = np.zeros(len(documents), dtype=np.int64)
        encodings: dict[int, Encoding] = {}
        if plain:
            texts = [documents[index] for index in plain]
            encoded = self.texts.encode(query, texts, max_document_tokens=max_document_tokens, instruction=instruction)
            dropped[plain] = encoded.dropped
            encodings |= zip(plain, encoded.encodings, strict=True)
        if len(plain) < len(documents):
            sides = self._sides(query, instruction, owner)
            for index in sorted(set(range(len(documents))) - set(plain)):
                encodings[index], dropped[index] = self._illustrated(
                    sides, documents[index], max_document_tokens, owner
                )
        return EncodedPairs([encodings[index] for index in range(len(documents))], dropped)

    def room(self, query: str, instruction: str | None) -> int:
        """How many tokens of a document's text fit beside a query; an image takes its own."""
        room = self.texts.room(query, instruction)
        if isinstance(query, Document):
            room -= self._tokens(self._reader.read(query, owner="")) + 2
            if room < 1:
                raise bad_image("it leaves no room for a document; send it smaller", query.digest)
        return room

    def _refuse_others(self, query: str, documents: Sequence[str]) -> None:
        """Refuse what the model was not trained to read."""
        reads = self._template.reads
        if reads == "text and image":
            return
        if reads == "image" and not all(isinstance(one, Document) for one in documents):
            raise InvalidRequest(
                "this model reads documents that are images, and one is text: send its page as an image"
            )
        if reads == "image" and isinstance(query, Document):
            raise InvalidRequest("this model reads queries that are text: send the query without its image")
        for one in (query, *documents):
            if isinstance(one, Document) and str(one).strip():
                raise InvalidRequest("this model reads a text or an image, not both: send the image without its text")

    def _sides(self, query: str, instruction: str | None, owner: str) -> _Sides:
        image = (self._reader.read(query, owner=owner),) if isinstance(query, Document) else ()
        before, behind = self.texts.written(query, instruction, mark=self._template.image if image else "")
        first = bool(image) and self._template.image in before
        return _Sides(before, behind, image if first else (), () if first else image)

    def _illustrated(
        self, sides: _Sides, document: str, max_document_tokens: int | None, owner: str
    ) -> tuple[IllustratedEncoding, int]:
        """One pair, and how many tokens of the document's text were cut."""
        own = (self._reader.read(document, owner=owner),) if isinstance(document, Document) else ()
        before = sides.before + (self._template.image if own else "")
        images = (*sides.images_before, *own, *sides.images_behind)
        head, tail = ids_of(self._tokenizer, before), ids_of(self._tokenizer, sides.behind)
        taken = len(head) + len(tail) + len(self._ending) + sum(self._tokens(image) - 1 for image in images)
        room = self.texts.max_length - taken
        if room < 0:
            problem = f"the prompt has {taken} tokens with it, and the model reads {self.texts.max_length}"
            digest = own[0].digest if own else images[0].digest
            raise bad_image(f"{problem}; send it smaller, or a shorter query", digest)
        limit = len(head) + min(room, room if max_document_tokens is None else max_document_tokens)
        ids, dropped = self._text(before, document, sides.behind, limit=limit, tail=tail)
        shared = 0 if sides.images_before else len(ids_of(self._tokenizer, sides.before)) - (not own)
        boundary = shared if (ids[:shared] == head[:shared]).all() else 0
        return IllustratedEncoding(self._widened(ids, images), boundary, images), dropped

    def _text(self, before: str, document: str, behind: str, *, limit: int, tail: IntArray) -> tuple[IntArray, int]:
        """The ids of a prompt whose document is cut where more than `limit` stand before its end."""
        (part,) = read_parts(
            [document],
            lambda texts: [ids_of(self._tokenizer, before + self.texts.escape(text)) for text in texts],
            enough=lambda ids: len(ids) > limit,
            reach=Reach.of(limit),
        )
        dropped = max(0, len(part.content) - limit) + part.beyond(len(part.content))
        if not dropped:
            whole = ids_of(self._tokenizer, before + self.texts.escape(document) + behind)
            if len(whole) <= limit + len(tail):
                return np.concatenate((whole, self._ending)), 0
        return np.concatenate((part.content[:limit], tail, self._ending)), dropped

    def _widened(self, ids: IntArray, images: Sequence[SeenImage]) -> IntArray:
        """As many image tokens as the images have, in place of one each."""
        counts = np.ones(len(ids), dtype=np.int64)
        counts[ids == self._image_token] = [self._tokens(image) for image in images]
        return np.repeat(ids, counts)

    def _tokens(self, image: SeenImage) -> int:
        return image.rows * image.columns // self._reader.merged
