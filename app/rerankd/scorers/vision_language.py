"""Models that read images and text together, and judge one document at a time.

Qwen3-VL-Reranker (Li et al., "Qwen3-VL-Embedding and Qwen3-VL-Reranker", 2026) and MonoQwen2-VL (LightOn, 2024) are
read at two tokens, as `yes-no` judges are; jina-reranker-m0 (2025) has a head of its own.
"""

import json
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field

from rerankd.config.options import read_options
from rerankd.domain import Document, FloatArray
from rerankd.errors import ConfigError
from rerankd.recognition.activations import ActivationSetting
from rerankd.recognition.files import number_of
from rerankd.scorers.base import Edges, EncodedPairs, Kinds, Made, ScorerSpec
from rerankd.scorers.image_prompt import ImagePrompt
from rerankd.scorers.image_template import ImageTemplate
from rerankd.scorers.images import ImageReader, PixelBounds
from rerankd.scorers.pair_prompt import check_instruction
from rerankd.scorers.ranking import Activation, activation_of
from rerankd.scorers.templates import read_prompt_template, single_token
from rerankd.scorers.tokenizer_files import TokenizerFolder
from rerankd.tasks.encoding import Encoding, stacked
from rerankd.tasks.read_images import ReadImages

# To try a model with: a picture of 8 x 8 black and white pixels.
_SAMPLE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000008000000080100000000ec7483260000000f4944415478da6308650a656640"
    "60000edf01bb6dcdfe350000000049454e44ae426082"
)


class VisionLanguageOptions(BaseModel):
    """`[model.options]` of the scorer `vision-language`."""

    model_config = ConfigDict(extra="forbid")

    template: str | None = Field(default=None, description="Default: the one that recognises the model's repository.")
    instruction: str | None = Field(default=None, description="Default: the template's.")
    activation: ActivationSetting | None = Field(
        default=None, description="As for `cross-encoder`; default: the template's."
    )
    most_pixels: int | None = Field(
        default=None,
        ge=1,
        description="What the model sees of an image at most; larger ones are made smaller. Default: the template's, "
        "or what the model's files say. A token is 28 x 28 or 32 x 32 pixels.",
    )
    kept_image_mb: int = Field(
        default=256,
        ge=0,
        description="Megabytes of decoded images that are kept, for their pass and for later queries.",
    )


class VisionLanguage:
    def __init__(
        self,
        read: TokenizerFolder,
        template: ImageTemplate,
        reader: ImageReader,
        *,
        instruction: str | None,
        max_length: int,
        activation: ActivationSetting,
    ) -> None:
        self._prompt = ImagePrompt(
            read.tokenizer,
            template,
            reader,
            instruction=instruction,
            max_length=max_length,
            image_token=_image_token(read, template),
        )
        answers = {"positive": template.positive, "negative": template.negative}
        tokens = (
            answer if isinstance(answer, int) else single_token(read.tokenizer, answer, option=name)
            for name, answer in answers.items()
            if answer is not None
        )
        self._reads = template.reads
        self._reader = reader
        self.task = ReadImages(tuple(tokens))
        self.max_length = max_length
        self.pad_id = read.pad_id
        self.activation: Activation = activation_of(activation)
        prompt = template.model_dump(exclude={"activation"})
        self.fingerprint = json.dumps(["vision-language", max_length, instruction, prompt, reader.identity])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "VisionLanguage":
        """Read tokenizer, configuration, prompt template, and how images are read.

        Raises:
            ConfigError: a file or a package is missing, no template is known for the model, or its answer is not one
                token.
        """
        options = read_options(spec.options, VisionLanguageOptions, of="scorer 'vision-language'")
        read = TokenizerFolder.read(spec.folder)
        template = read_prompt_template(
            spec, scorer="vision-language", name=options.template, shapes={"vision-language": ImageTemplate}
        )
        if "{instruction}" in "".join(template.prompt):
            check_instruction(read.files, said=options.instruction, template=template.instruction)
        bounds = PixelBounds(least=template.least_pixels, most=options.most_pixels or template.most_pixels)
        reader = ImageReader.load(
            spec.folder, bounds, max_pixels=spec.max_image_pixels, kept_bytes=options.kept_image_mb << 20
        )
        return cls(
            read,
            template,
            reader,
            instruction=options.instruction if options.instruction is not None else template.instruction,
            max_length=read.length(spec.max_length, usual=template.max_length),
            activation=options.activation or template.activation or "sigmoid",
        )

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.pairs(self)

    def samples(self, text: str) -> Sequence[str]:
        """Documents for trying the model, one of each kind that it reads; the last has an image."""
        plain = [] if self._reads == "image" else [text]
        return [*plain, Document(text if self._reads == "text and image" else "", image=_SAMPLE)]

    def patches(self, image: bytes, digest: bytes, owner: str) -> FloatArray:
        """As `ImageReader.patches`."""
        return self._reader.patches(image, digest, owner)

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
        owner: str = "",
    ) -> EncodedPairs[Encoding]:
        """As `ImagePrompt.encode`."""
        return self._prompt.encode(
            query, documents, max_document_tokens=max_document_tokens, instruction=instruction, owner=owner
        )

    def room(self, query: str, instruction: str | None = None) -> int:
        """As `ImagePrompt.room`."""
        return self._prompt.room(query, instruction)

    def edges(self, texts: Sequence[str]) -> list[Edges]:
        """As `PairPrompt.edges`."""
        return self._prompt.texts.edges(texts)

    def drops(self, text: str) -> bool:
        """As `PairPrompt.drops`."""
        return self._prompt.texts.drops(text)

    def interpret(self, rows: Iterable[FloatArray], /) -> FloatArray:
        """Raw scores of shape [pairs] from logits of shape [pairs, 1 or 2]."""
        logits = stacked(rows)
        return logits[:, 0] - logits[:, 1] if logits.shape[1] > 1 else logits[:, 0]


def _image_token(read: TokenizerFolder, template: ImageTemplate) -> int:
    """The id that stands for a part of an image.

    Raises:
        ConfigError: the tokenizer has no such token, or the model takes another one for it.
    """
    path = read.folder / "config.json"
    said = number_of(read.files.config, "image_token_id", of=path)
    ours = read.tokenizer.token_to_id(template.repeated)
    if ours is None or said not in (None, ours):
        raise ConfigError(
            f"{path} says image_token_id = {said}, and {template.repeated!r} is {ours} in tokenizer.json; download "
            "the model again"
        )
    return int(ours)
