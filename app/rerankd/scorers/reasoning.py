"""Judges that think: a language model writes a thought about a pair, and then answers with one of two tokens.

Weller et al., "Rank1: Test-Time Compute for Reranking in Information Retrieval", 2025. The score is
logit(true) - logit(false) where the answer is written; its sigmoid is the softmax over the two. A thought that does not
come to its end is cut behind its last sentence and closed, and the answer is read there.
"""

import json
from collections.abc import Iterable
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray, Remark
from rerankd.errors import ConfigError
from rerankd.recognition.activations import ActivationSetting
from rerankd.recognition.kinds import refuse_other_than_language_model
from rerankd.scorers.base import Kinds, Made, ScorerSpec
from rerankd.scorers.pair_prompt import AnsweredPairs, PairPrompt, PairTemplateFile
from rerankd.scorers.rubric import reason_in
from rerankd.scorers.templates import placeholders, read_prompt_template, single_token
from rerankd.scorers.tokenizer_files import TokenizerFolder, ids_of
from rerankd.tasks.encoding import stacked
from rerankd.tasks.reason import Judged, Reason

_SENTENCE_ENDS: Final = (".", "!", "?")
# What closes a thought that did not end comes on top of it.
_CLOSING_TOKENS: Final = 16
_LEAST_PROMPT: Final = 64


class ReasoningTemplate(PairTemplateFile):
    """A template file of the method "reasoning". The prompt's last part begins the thought, `closing` ends it, and the
    token `positive` or `negative` follows.
    """

    closing: str
    positive: str
    negative: str
    answer_tokens: int = Field(ge=1, description="The longest thought.")
    activation: ActivationSetting = "sigmoid"

    @model_validator(mode="after")
    def _ends_with_plain_text(self) -> "ReasoningTemplate":
        if placeholders(self.prompt[-1]):
            raise ValueError("prompt: its last part begins the thought, and holds no placeholder")
        return self


class ReasoningOptions(BaseModel):
    """`[model.options]` of the scorer `reasoning`."""

    model_config = ConfigDict(extra="forbid")

    template: str | None = Field(default=None, description="Default: the one that recognises the model's repository.")
    instruction: str | None = Field(default=None, description="Default: the template's.")
    activation: ActivationSetting | None = Field(
        default=None, description="As for `cross-encoder`; default: the template's."
    )
    answer_tokens: int | None = Field(default=None, ge=1, description="The longest thought; default: the template's.")


class Reasoning(AnsweredPairs):
    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ReasoningTemplate,
        *,
        instruction: str | None,
        max_length: int,
        pad_id: int,
    ) -> None:
        prompt = PairPrompt(tokenizer, template, instruction=instruction, max_length=max_length)
        super().__init__(prompt, pad_id=pad_id, activation=template.activation)
        self._tokenizer = tokenizer
        self._template = template
        self._answer_tokens = template.answer_tokens
        self._opening = ids_of(tokenizer, template.prompt[-1])
        answers = (template.positive, template.negative)
        self.task = Reason(
            tokens=tuple(single_token(tokenizer, answer, option=f"answer {answer!r}") for answer in answers),
            endings=tuple(f"{template.closing}{answer}" for answer in answers),
            decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False)),
            close=self._close,
        )
        written = template.model_dump(exclude={"activation"})
        self.fingerprint = json.dumps(["reasoning", max_length, instruction, written])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "Reasoning":
        """Read tokenizer, configuration and prompt template.

        Raises:
            ConfigError: a file is missing, no template is known for the model, or its answers are not one token each.
        """
        options = read_options(spec.options, ReasoningOptions, of="scorer 'reasoning'")
        read = TokenizerFolder.read(spec.folder)
        refuse_other_than_language_model(read.files, scorer="reasoning")
        template = read_prompt_template(
            spec, scorer="reasoning", name=options.template, shapes={"reasoning": ReasoningTemplate}
        )
        changes = {"activation": options.activation, "answer_tokens": options.answer_tokens}
        template = template.model_copy(update={name: value for name, value in changes.items() if value is not None})
        return cls(
            read.tokenizer,
            template,
            instruction=options.instruction if options.instruction is not None else template.instruction,
            max_length=_beside_the_thought(read.length(spec.max_length, usual=template.max_length), template),
            pad_id=read.pad_id,
        )

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.pairs(self)

    def written(self, judged: Judged, /) -> int:
        """How many tokens the model wrote."""
        return judged.written

    def remark(self, judged: Judged, /) -> Remark:
        """The beginning of its thought."""
        return Remark(reason_in(judged.thought.split(self._template.closing)[0]), {})

    def interpret(self, judged: Iterable[Judged], /) -> FloatArray:
        """Raw scores of shape [pairs] from two logits each."""
        logits = stacked(one.logits for one in judged)
        return logits[:, 0] - logits[:, 1]

    def _close(self, prompt: IntArray, thought: str) -> IntArray:
        """A prompt with a thought that did not end, cut behind its last sentence and closed."""
        text = f"{self._template.prompt[-1]}\n{whole_sentences(thought)}\n{self._template.closing}"
        return np.concatenate((prompt[: len(prompt) - len(self._opening)], ids_of(self._tokenizer, text)))


def whole_sentences(text: str) -> str:
    """A text without what follows its last full stop, exclamation mark or question mark; all of it without one."""
    end = max(text.rfind(mark) for mark in _SENTENCE_ENDS)
    return (text if end < 0 else text[: end + 1]).strip()


def _beside_the_thought(max_length: int, template: ReasoningTemplate) -> int:
    left = max_length - template.answer_tokens - _CLOSING_TOKENS
    if left < _LEAST_PROMPT:
        raise ConfigError(
            f"answer_tokens = {template.answer_tokens} leaves no room for a prompt within the {max_length} tokens that "
            "the model reads: set options = { answer_tokens = ... } to fewer"
        )
    return left
