"""Language models that judge one document at a time: the logit of "yes" against that of "no" at the last position.

Nogueira et al., "Document Ranking with a Pretrained Sequence-to-Sequence Model", 2020 (there with an encoder-decoder);
Qwen3-Reranker (2025), mxbai-rerank-v2 / ProRank (2025) and bge-reranker-v2-gemma (2024) with causal models. The raw
score is logit(positive) - logit(negative), whose sigmoid is the softmax probability of the positive token; a template
without a negative token gives the positive logit itself. With `ratings` the score is the expected grade: the values of
the rating tokens, weighted by their softmax (Zhuang et al., "Beyond Yes and No", NAACL 2024).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from rerankd.config.options import read_options
from rerankd.domain import FloatArray
from rerankd.errors import ConfigError
from rerankd.recognition.activations import ActivationSetting
from rerankd.recognition.chat_template import read_chat_prompt, reads_own_prompt
from rerankd.recognition.kinds import answer_tokens, refuse_other_than_language_model, refuse_unknown_settings
from rerankd.scorers.base import Kinds, Made, ScorerSpec
from rerankd.scorers.image_template import ImageTemplate
from rerankd.scorers.pair_prompt import EncodedInPrompts, PairPrompt, check_instruction, parts_of
from rerankd.scorers.templates import is_recognised, read_prompt_template, single_token
from rerankd.scorers.tokenizer_files import TokenizerFolder
from rerankd.scorers.yes_no_template import Ratings, YesNoTemplate
from rerankd.tasks.encoding import stacked
from rerankd.tasks.read_tokens import ReadTokens

# A model that reads images judges texts with its language model alone.
_TEMPLATES: Final[Mapping[str, type[YesNoTemplate]]] = {"yes-no": YesNoTemplate, "vision-language": ImageTemplate}


class YesNoOptions(BaseModel):
    """`[model.options]` of the scorer `yes-no`."""

    model_config = ConfigDict(extra="forbid")

    template: str | None = Field(default=None, description="Default: the one that recognises the model's repository.")
    instruction: str | None = Field(default=None, description="Default: the template's.")
    ratings: Ratings | None = Field(
        default=None,
        description="The tokens that are read, and the value of each: the score is the expected value; default: the "
        "template's.",
    )
    activation: ActivationSetting | None = Field(
        default=None, description="As for `cross-encoder`; default: the template's."
    )


class YesNo(EncodedInPrompts):
    def __init__(
        self,
        tokenizer: Tokenizer,
        template: YesNoTemplate,
        *,
        instruction: str | None,
        max_length: int,
        pad_id: int,
        activation: ActivationSetting | None,
    ) -> None:
        """`activation` None: that of `template`, or what is usual for what it reads."""
        prompt = PairPrompt(tokenizer, template, instruction=instruction, max_length=max_length)
        super().__init__(prompt, pad_id=pad_id, activation=activation or template.activation or "sigmoid")
        read = template.model_dump(exclude={"activation"} if template.ratings else {"activation", "ratings"})
        self.fingerprint = json.dumps(["yes-no", max_length, instruction, read])
        self.scores: Literal["logit", "relevance"] = "logit"
        self._grades: FloatArray | None = None
        if template.ratings is None:
            self.task = ReadTokens(_answers(tokenizer, template))
            return
        self.task = ReadTokens(_rated(tokenizer, template.ratings))
        self.scores = "relevance"
        self._grades = np.array(list(template.ratings.values()), dtype=np.float32)
        if activation is None and template.activation is None:
            self.activation = _Share(float(self._grades.min()), float(self._grades.max()))

    @classmethod
    def load(cls, spec: ScorerSpec) -> "YesNo":
        """Read tokenizer, configuration and prompt template.

        Raises:
            ConfigError: a file is missing, no template is known for the model, or its answer is not one token.
        """
        options = read_options(spec.options, YesNoOptions, of="scorer 'yes-no'")
        read = TokenizerFolder.read(spec.folder)
        refuse_other_than_language_model(read.files, scorer="yes-no")
        template = _template(spec, read, options)
        if template.positive is None and template.ratings is None:
            raise ConfigError(f"template {options.template!r} names no answer tokens: its model has a head of its own")
        scorer = cls(
            read.tokenizer,
            template,
            instruction=options.instruction if options.instruction is not None else template.instruction,
            max_length=read.length(spec.max_length, usual=template.max_length),
            pad_id=read.pad_id,
            activation=options.activation,
        )
        if template.ratings is None:
            _check_answers(read, scorer)
        return scorer

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.pairs(self)

    def interpret(self, rows: Iterable[FloatArray], /) -> FloatArray:
        """Raw scores of shape [pairs] from logits of shape [pairs, tokens]."""
        logits = stacked(rows)
        if self._grades is not None:
            return expected_grades(logits, self._grades)
        return logits[:, 0] - logits[:, 1] if logits.shape[1] > 1 else logits[:, 0]


@dataclass(frozen=True, slots=True)
class _Share:
    """Where grades are between the lowest and the highest: 0 to 1."""

    lowest: float
    highest: float

    def __call__(self, grades: FloatArray) -> FloatArray:
        share: FloatArray = np.clip((grades - self.lowest) / (self.highest - self.lowest), 0, 1).astype(np.float32)
        return share


def expected_grades(logits: FloatArray, grades: FloatArray) -> FloatArray:
    """The mean of grades of shape [tokens], weighted by the softmax of logits of shape [pairs, tokens]."""
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    expected: FloatArray = (weights @ grades / weights.sum(axis=1)).astype(np.float32)
    return expected


def _answers(tokenizer: Tokenizer, template: YesNoTemplate) -> tuple[int, ...]:
    """The ids of the positive token, and of the negative one if there is one."""
    answers = {"positive": template.positive, "negative": template.negative}
    return tuple(
        answer if isinstance(answer, int) else single_token(tokenizer, answer, option=name)
        for name, answer in answers.items()
        if answer is not None
    )


def _rated(tokenizer: Tokenizer, ratings: Ratings) -> tuple[int, ...]:
    ids = {text: single_token(tokenizer, text, option="ratings: token") for text in ratings}
    text_of: dict[int, str] = {}
    for text, token in ids.items():
        if text_of.setdefault(token, text) != text:
            raise ConfigError(f"ratings: {text_of[token]!r} and {text!r} are the same token; leave one of them out")
    return tuple(ids.values())


def _template(spec: ScorerSpec, read: TokenizerFolder, options: YesNoOptions) -> YesNoTemplate:
    """The template that is read, with the options' ratings if there are any."""
    template = _written_template(spec, read, options)
    if options.ratings is None:
        return template
    return template.model_copy(update={"positive": None, "negative": None, "ratings": options.ratings})


def _written_template(spec: ScorerSpec, read: TokenizerFolder, options: YesNoOptions) -> YesNoTemplate:
    """The named template, or the one that recognises the model, or what the folder itself says: sentence-transformers
    writes the prompt into a chat template, and the tokens into a module of their own.
    """
    if options.template is None and reads_own_prompt(read.files) and not is_recognised(spec, methods=_TEMPLATES):
        refuse_unknown_settings(read.files, task="text-generation", prompted=True)
        prompt = read_chat_prompt(read.files)
        answers: Sequence[str | int] = answer_tokens(read.files) or ("yes", "no")
        return YesNoTemplate(
            prompt=parts_of(prompt.text, read.tokenizer),
            instruction=prompt.instruction,
            instruction_form=prompt.instruction_form,
            strips=prompt.strips,
            positive=answers[0],
            negative=answers[1] if len(answers) > 1 else None,
        )
    template = read_prompt_template(spec, scorer="yes-no", name=options.template, shapes=_TEMPLATES)
    if "{instruction}" in "".join(template.prompt):
        check_instruction(read.files, said=options.instruction, template=template.instruction)
    return template


def _check_answers(read: TokenizerFolder, scorer: YesNo) -> None:
    """Refuse a template that reads other tokens than the folder says."""
    said = answer_tokens(read.files)
    if said is not None and tuple(said) != scorer.task.tokens:
        names, ours = ([read.tokenizer.id_to_token(number) for number in ids] for ids in (said, scorer.task.tokens))
        raise ConfigError(
            f"{read.folder}: modules.json says that the score is read at the tokens {names}, the template reads "
            f"{ours}; write a template with the first as `positive` and `negative` (docs/models.md)"
        )
