"""Read images: token ids of a prompt with images in it go in, a few logits at its end come out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rerankd.domain import FloatArray
from rerankd.tasks.encoding import Encoding, lengths_of


@dataclass(frozen=True, slots=True)
class SeenImage:
    """An image as a model sees it: `rows` by `columns` patches. `read` makes their numbers of the `image`, its digest
    and its owner.
    """

    digest: bytes
    rows: int
    columns: int
    image: bytes
    owner: str
    read: Callable[[bytes, bytes, str], FloatArray]

    def patches(self) -> FloatArray:
        """Shape [rows * columns, numbers of a patch], float32: megabytes, so that only those of a pass are in
        memory.
        """
        return self.read(self.image, self.digest, self.owner)


@dataclass(frozen=True, slots=True)
class IllustratedEncoding(Encoding):
    """The token ids of a prompt, with as many image tokens in it as its `images` have, in their order."""

    images: tuple[SeenImage, ...]


@dataclass(frozen=True, slots=True)
class ReadImages:
    """Payloads are `Encoding`s, and `IllustratedEncoding`s where there are images. Results are rows with the logit of
    each of `tokens`, or, without tokens, the one logit of the model's own head.
    """

    tokens: tuple[int, ...]

    name: ClassVar[str] = "read_images"
    costs = staticmethod(lengths_of)

    @property
    def outputs(self) -> int:
        return len(self.tokens) or 1

    @staticmethod
    def identities(prompts: Sequence[Encoding]) -> list[bytes]:
        return [
            prompt.boundary.to_bytes(8) + prompt.ids.tobytes() + b"".join(image.digest for image in _images_in(prompt))
            for prompt in prompts
        ]


def _images_in(prompt: Encoding) -> tuple[SeenImage, ...]:
    return prompt.images if isinstance(prompt, IllustratedEncoding) else ()
