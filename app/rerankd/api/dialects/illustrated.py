"""What dialects have in common whose query and documents may have images."""

from abc import ABC
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field, PrivateAttr, Tag, ValidationInfo, model_validator

from rerankd.api.dialects.base import limits_of
from rerankd.api.dialects.fields import Documents, TextsBody, texts_of
from rerankd.api.dialects.images import BY_CONTENT, Content, Query, SentImages
from rerankd.concurrency.slices import Sliced, run_to_end

_Documents = Annotated[Annotated[Documents, Tag("plain")] | Annotated[Content, Tag("content")], BY_CONTENT]


class IllustratedBody(TextsBody, ABC):
    query: Query = Field(description='A text; for models that read images also {"text", "image"} or {"content"}.')
    documents: _Documents
    _sent: SentImages = PrivateAttr()
    _query_text: str | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _bound_images(self, info: ValidationInfo) -> Self:
        self._sent = SentImages(limits_of(info).images)
        return self

    @property
    def listed(self) -> list[Any]:
        """The documents one by one."""
        return self.documents.content if isinstance(self.documents, Content) else self.documents

    @property
    def query_text(self) -> str:
        """What the model reads of the query."""
        if self._query_text is None:
            self._query_text = run_to_end(self._sent.query_of(self.query))
        return self._query_text

    @property
    def image_bytes(self) -> int:
        return self._sent.bytes

    def read_texts(self) -> Sliced[list[str]]:
        listed, fields, images = self.listed, self.fields_to_read, self._sent
        if isinstance(self.documents, Content):
            return texts_of(listed, None, rank_fields=fields, name="documents.content", images=images)
        return texts_of(listed, self.raw_body, rank_fields=fields, images=images)

    def prepare(self) -> Sliced[None]:
        self._query_text = yield from self._sent.query_of(self.query)
        yield from super().prepare()

    @property
    def fields_to_read(self) -> Sequence[str] | None:
        """Of documents that are objects; None: their text and image, or all."""
        return None
