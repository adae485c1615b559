"""Graded relevance: a language model writes a grade about each document; the mean over its answers is the score.

Cai et al., "ERank: Fusing Supervised Fine-Tuning and Reinforcement Learning for Effective and Efficient Text
Reranking", 2025: a grade of 0 to 10, times the probability of its tokens. Lan et al., "Retro*: Optimizing LLMs for
Reasoning-Intensive Document Retrieval", 2025: the mean of sampled grades of 0 to 100. Scores are divided by the highest
grade. The references count an answer without a grade as 0; here it is skipped, and a document without any has no score.
With a rubric (`rerankd.scorers.rubric`) an answer has a grade for each criterion, of which one score is made.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import exp, isfinite, nan
from typing import ClassVar, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, Remark
from rerankd.errors import ConfigError
from rerankd.recognition.kinds import refuse_other_than_language_model
from rerankd.scorers.base import AnyPairScorer, Edges, EncodedPairs, Kinds, Made, ScorerSpec, refuse_instruction
from rerankd.scorers.estimated import USUAL_LENGTH, estimated_edges, first_tokens, room_beside, unicode_of
from rerankd.scorers.pair_prompt import AnsweredPairs, PairPrompt, PairTemplateFile
from rerankd.scorers.ranking import Activation, identity
from rerankd.scorers.rubric import Rubric, aggregated, find_grades, reason_in, written
from rerankd.scorers.templates import fill, placeholders, read_prompt_template
from rerankd.scorers.tokenizer_files import TokenizerFolder
from rerankd.tasks.generate import Conversation, Message
from rerankd.tasks.sample import Answer, Sample, SampleChat, Sampled, Sampling

_LEAST_PROMPT: Final = 64


class GradedTemplate(PairTemplateFile):
    """A template file of the method "graded". The grade is the last integer between `opening` and `closing`, 0 to
    `highest`; for a prompt that shows {criteria}, a JSON object with one for each. With `weighted` a grade is
    multiplied by the probability of its tokens. With `messages` the prompt goes to an endpoint as a user's message,
    and `answer_tokens` is the endpoint's to say.
    """

    places: ClassVar[frozenset[str]] = PairTemplateFile.places | {"criteria"}

    opening: str = Field(min_length=1)
    closing: str = Field(min_length=1)
    highest: int = Field(ge=1)
    weighted: bool = False
    samples: int = Field(default=1, ge=1, le=64)
    temperature: float = Field(default=0.0, ge=0, le=10)
    top_k: int | None = Field(default=None, ge=1)
    answer_tokens: int = Field(default=4096, ge=1)
    messages: bool = False
    criteria: Rubric = ()


class GradedOptions(BaseModel):
    """`[model.options]` of the scorer `graded`."""

    model_config = ConfigDict(extra="forbid")

    template: str | None = Field(default=None, description="Default: the one that recognises the model's repository.")
    instruction: str | None = Field(default=None, description="Default: the template's.")
    samples: int | None = Field(
        default=None, ge=1, le=64, description="Answers about each document; default: the template's."
    )
    temperature: float | None = Field(default=None, ge=0, le=10, description="0: greedy; default: the template's.")
    answer_tokens: int | None = Field(
        default=None, ge=1, description="The longest answer; default: the template's. Of an endpoint: its `max_tokens`."
    )
    criteria: Rubric | None = Field(
        default=None, description="A rubric, for a template that shows one; default: the template's."
    )

    @model_validator(mode="after")
    def _differ(self) -> "GradedOptions":
        if self.temperature == 0 and (self.samples or 1) > 1:
            raise ValueError("temperature: answers at temperature 0 are all the same; set samples to 1")
        return self


@dataclass(frozen=True, slots=True)
class Grading:
    """How grades are read, and made a score. Without `criteria` there is one grade."""

    opening: str
    closing: str
    highest: int
    weighted: bool
    criteria: Rubric = ()

    def score(self, answers: Sequence[Answer]) -> float:
        """The mean of the answers that have a grade, in [0, 1]; NaN: none has."""
        grades = [grade for grade in map(self.grade, answers) if isfinite(grade)]
        return sum(grades) / len(grades) if grades else nan

    def grade(self, answer: Answer) -> float:
        """The grade of one answer in [0, 1]; NaN: it has none, or none for one of the criteria."""
        grades = self._grades(answer)
        if not self.criteria or not grades:
            return grades.get("", nan)
        return aggregated(self.criteria, grades)

    def ungraded(self, sampled: Sampled) -> int:
        """How many answers have no grade."""
        return sum(not isfinite(self.grade(answer)) for answer in sampled.answers)

    def remark(self, answers: Sequence[Answer]) -> Remark:
        """The reason of the first answer that has a grade, and the mean grade of all those by each criterion."""
        graded = [answer for answer in answers if isfinite(self.grade(answer))]
        grades = [self._grades(answer) for answer in graded]
        before, found, text = (graded or answers)[0].text.rpartition(self.opening)
        names = [criterion.name for criterion in self.criteria] if grades else ()
        means = {name: sum(one[name] for one in grades) / len(grades) for name in names}
        return Remark(reason_in(before if found else text), means)

    def _grades(self, answer: Answer) -> Mapping[str, float]:
        """The grade by each criterion in [0, 1]; empty where one is missing or too high."""
        grades = {}
        for name, (start, end) in self._places(answer.text).items():
            grade = int(answer.text[start:end])
            if grade <= self.highest:
                grades[name] = grade / self.highest * (_probability(answer, start, end) if self.weighted else 1.0)
        return grades if len(grades) == max(1, len(self.criteria)) else {}

    def _places(self, text: str) -> Mapping[str, tuple[int, int]]:
        """Where the grades stand."""
        if not self.criteria:
            pattern = rf"{re.escape(self.opening)}\s*([0-9]{{1,9}})\s*{re.escape(self.closing)}"
            found = list(re.finditer(pattern, text))
            return {"": found[-1].span(1)} if found else {}
        names = [criterion.name for criterion in self.criteria]
        end = max(0, text.rfind(self.closing))
        return find_grades(text, names, start=max(0, text.rfind(self.opening, 0, end)), end=end)


def _probability(answer: Answer, start: int, end: int) -> float:
    """The probability of the tokens that have one of the characters `start` to `end`."""
    if answer.logprobs is None:
        return nan
    ends = list(accumulate(map(len, answer.tokens)))
    spans = zip((0, *ends), ends, answer.logprobs, strict=False)
    return exp(min(0.0, sum(logprob for first, last, logprob in spans if first < end and last > start)))


class Graded(AnsweredPairs):
    """For an engine that has the model's weights."""

    scores: ClassVar[Literal["relevance"]] = "relevance"

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: GradedTemplate,
        *,
        instruction: str | None,
        max_length: int,
        pad_id: int,
    ) -> None:
        prompt = PairPrompt(tokenizer, template, instruction=instruction, max_length=max_length)
        super().__init__(prompt, pad_id=pad_id, activation="identity")
        self._answer_tokens = template.answer_tokens
        self._grading = _grading(template)
        self.task = Sample(
            decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)), sampling=_sampling(template)
        )
        self.fingerprint = json.dumps(["graded", max_length, instruction, template.model_dump()])

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.pairs(self)

    def written(self, sampled: Sampled, /) -> int:
        """How many tokens the model wrote."""
        return sampled.written

    def ungraded(self, sampled: Sampled, /) -> int:
        """How many answers have no grade."""
        return self._grading.ungraded(sampled)

    def remark(self, sampled: Sampled, /) -> Remark:
        """Its reason, and its grades by a rubric."""
        return self._grading.remark(sampled.answers)

    def interpret(self, results: Iterable[Sampled], /) -> FloatArray:
        """Scores in [0, 1] of shape [pairs]; NaN where no answer has a grade."""
        return _scores(self._grading, results)


class GradedChat:
    """For a server that tokenizes messages itself and puts them into its model's chat template."""

    pad_id = 0
    scores: ClassVar[Literal["relevance"]] = "relevance"
    activation: Activation = staticmethod(identity)

    def __init__(self, template: GradedTemplate, *, instruction: str | None, max_length: int) -> None:
        self._text = "".join(template.prompt)
        self._form = template.instruction_form
        self._instruction = instruction
        self._grading = _grading(template)
        self.max_length = max_length
        self.task = SampleChat(_sampling(template), logprobs=template.weighted)
        self.fingerprint = json.dumps(["graded", max_length, instruction, template.model_dump()])

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
        owner: str = "",  # noqa: ARG002 - nothing is kept
    ) -> EncodedPairs[Conversation]:
        """One conversation for each document, which is cut to what is read beside the query."""
        room = min(self.room(query, instruction), max_document_tokens or self.max_length)
        parts = [first_tokens(unicode_of(document), room) for document in documents]
        conversations = [Conversation((Message("user", self._filled(query, text, instruction)),)) for text, _ in parts]
        return EncodedPairs(conversations, np.array([dropped for _, dropped in parts], dtype=np.int64))

    def room(self, query: str, instruction: str | None = None) -> int:
        refuse_instruction(instruction, takes="instruction" in placeholders(self._text))
        return room_beside([self._filled(query, "", instruction)], max_length=self.max_length)

    def edges(self, texts: Sequence[str]) -> list[Edges]:
        return [estimated_edges(text) for text in texts]

    def drops(self, text: str) -> bool:  # noqa: ARG002 - the server's tokenizer is not known
        return False

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.pairs(self)

    def written(self, sampled: Sampled, /) -> int:
        """As `Graded.written`."""
        return sampled.written

    def ungraded(self, sampled: Sampled, /) -> int:
        """As `Graded.ungraded`."""
        return self._grading.ungraded(sampled)

    def remark(self, sampled: Sampled, /) -> Remark:
        """As `Graded.remark`."""
        return self._grading.remark(sampled.answers)

    def interpret(self, results: Iterable[Sampled], /) -> FloatArray:
        """As `Graded.interpret`."""
        return _scores(self._grading, results)

    def _filled(self, query: str, document: str, instruction: str | None) -> str:
        said = self._instruction if instruction is None else unicode_of(instruction)
        told = fill(self._form, {"instruction": said}) if said else ""
        return fill(self._text, {"query": unicode_of(query), "document": document, "instruction": told})


def load_graded(spec: ScorerSpec) -> AnyPairScorer:
    """Read the prompt template, and for a local model tokenizer and configuration.

    Raises:
        ConfigError: a file is missing, no template is known for the model, or its options do not suit it.
    """
    options = read_options(spec.options, GradedOptions, of="scorer 'graded'")
    template = read_prompt_template(spec, scorer="graded", name=options.template, shapes={"graded": GradedTemplate})
    if template.messages and options.answer_tokens is not None:
        raise ConfigError(
            "answer_tokens: of an endpoint it is its own option; set engine_options = { max_tokens = ... }"
        )
    changes = options.model_dump(include={"samples", "temperature", "answer_tokens"}, exclude_none=True)
    if options.criteria is not None:
        changes["criteria"] = options.criteria
    template = _with_rubric(template.model_copy(update=changes))
    if template.samples > 1 and not template.temperature:
        raise ConfigError("samples: answers at temperature 0 are all the same; set options = { temperature = ... } too")
    instruction = template.instruction if options.instruction is None else options.instruction
    if template.messages:
        return GradedChat(template, instruction=instruction, max_length=spec.max_length or USUAL_LENGTH)
    read = TokenizerFolder.read(spec.folder)
    refuse_other_than_language_model(read.files, scorer="graded")
    max_length = read.length(spec.max_length, usual=template.max_length) - template.answer_tokens
    if max_length < _LEAST_PROMPT:
        raise ConfigError(
            f"answer_tokens = {template.answer_tokens} leaves no room for a prompt within the "
            f"{max_length + template.answer_tokens} tokens that the model reads: set options = "
            "{ answer_tokens = ... } to fewer"
        )
    return Graded(read.tokenizer, template, instruction=instruction, max_length=max_length, pad_id=read.pad_id)


def _grading(template: GradedTemplate) -> Grading:
    return Grading(template.opening, template.closing, template.highest, template.weighted, template.criteria)


def _with_rubric(template: GradedTemplate) -> GradedTemplate:
    """A template whose prompt holds its criteria.

    Raises:
        ConfigError: it shows criteria and has none, or has some and does not show them.
    """
    shows = "criteria" in placeholders("".join(template.prompt))
    if shows and not template.criteria:
        raise ConfigError("criteria: this template grades by a rubric; set options = { criteria = [...] }")
    if template.criteria and not shows:
        raise ConfigError("criteria: this template shows no rubric; choose one that does (rubric-chat, rubric-chatml)")
    if not shows:
        return template
    values = {"criteria": written(template.criteria)}
    return template.model_copy(update={"prompt": tuple(fill(part, values) for part in template.prompt)})


def _sampling(template: GradedTemplate) -> Sampling:
    return Sampling(answers=template.samples, temperature=template.temperature, top_k=template.top_k)


def _scores(grading: Grading, results: Iterable[Sampled]) -> FloatArray:
    return np.array([grading.score(sampled.answers) for sampled in results], dtype=np.float32)
