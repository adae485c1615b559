"""In-context reranking: a language model reads all documents, and relevant are those that the query makes it look at.

Chen, Gutiérrez and Su, "Attention in Large Language Models Yields Efficient Zero-Shot Re-Rankers", ICLR 2025. Nothing
is generated, and nothing was trained. What a query without content looks at is subtracted.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

import numpy as np
from pydantic import Field, model_validator
from tokenizers import Tokenizer

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray, WindowPlan
from rerankd.recognition.kinds import refuse_other_than_language_model
from rerankd.scorers.base import EncodedWindow, Kinds, Made, ScorerSpec, refuse_instruction
from rerankd.scorers.list_prompt import (
    ListPrompt,
    ListTemplate,
    WindowOptions,
    dropped_words,
    fit,
    identifier_texts,
    passages_of,
)
from rerankd.scorers.templates import ControlTokenEscaper, fill, read_prompt_template
from rerankd.scorers.tokenizer_files import TokenizerFolder, beginning_ids, drops
from rerankd.tasks.attend import Attend, AttendedPrompt

_NO_QUERY: Final = "N/A"
_OUTLIER_DEVIATIONS: Final = 2


class AttentionTemplate(ListTemplate):
    """A template file of the method "attention". Attention is read from all that follows {passages}, so {query} must
    come behind them.
    """

    identifiers: Literal["alphabetical", "numeric"] = "numeric"
    passage: str = "[{identifier}] {text}\n\n"

    @model_validator(mode="after")
    def _query_is_last(self) -> "AttentionTemplate":
        if "{query}" in self.user.partition("{passages}")[0]:
            raise ValueError("user: {query} must come behind {passages}")
        return self


class AttentionOptions(WindowOptions):
    """`[model.options]` of the scorer `attention`."""

    best_last: bool = Field(
        default=True, description="Show a window's first candidate last, next to the query, as the authors do."
    )


@dataclass(frozen=True, slots=True)
class _Written:
    """A prompt: its token ids, how many of them come before what attention is read from, and the documents' tokens with
    their identifiers', shape [documents, 2].
    """

    ids: IntArray
    shared: int
    spans: IntArray


class InContextAttention:
    names_best = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: AttentionTemplate,
        *,
        plan: WindowPlan,
        best_last: bool,
        max_length: int,
        pad_id: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._step = -1 if best_last else 1
        self._template = template
        self._identifiers = identifier_texts(template.identifiers, count=plan.window)
        self._prompt = ListPrompt(template, self._identifiers, ControlTokenEscaper(tokenizer, template.chat))
        self._leading = beginning_ids(tokenizer) if template.tokenizer_beginning else np.empty(0, dtype=np.int64)
        self.task = Attend()
        self.plan = plan
        self.max_length = max_length
        self.pad_id = pad_id
        self.fingerprint = json.dumps(["attention", max_length, asdict(plan), best_last, template.model_dump()])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "InContextAttention":
        """Read tokenizer, configuration and prompt template.

        Raises:
            ConfigError: a file is missing, or no template is known for the model.
        """
        options = read_options(spec.options, AttentionOptions, of="scorer 'attention'")
        template = read_prompt_template(
            spec, scorer="attention", name=options.template, shapes={"attention": AttentionTemplate}
        )
        if options.identifiers is not None:
            template = template.model_copy(update={"identifiers": options.identifiers})
        files = TokenizerFolder.read(spec.folder)
        refuse_other_than_language_model(files.files, scorer="attention")
        return cls(
            files.tokenizer,
            template,
            plan=options.plan(template),
            best_last=options.best_last,
            max_length=files.length(spec.max_length, usual=template.max_length),
            pad_id=files.pad_id,
        )

    def encode_window(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
    ) -> EncodedWindow[AttendedPrompt]:
        """Write the prompt of one window; where it is too long, every passage keeps the same number of first words.

        Raises:
            InvalidRequest: a few words of each passage do not fit beside the query, or there is an instruction.
        """
        refuse_instruction(instruction)
        question = self._prompt.clean(query)
        most = self._template.words_for(len(documents))
        parts, passages = passages_of(self._tokenizer, self._prompt, documents, words=most, tokens=max_document_tokens)

        written, kept = fit(
            lambda kept: self._write(question, kept[:: self._step]),
            passages,
            length=lambda written: len(written.ids),
            most=most,
            longest=self.max_length,
        )
        without = self._write(_NO_QUERY, kept[:: self._step])
        shared = min(written.shared, without.shared, _common(written.ids, without.ids))
        payload = AttendedPrompt(
            written.ids[:shared],
            written.ids[shared:],
            without.ids[shared:],
            np.minimum(written.spans, shared)[:: self._step],
        )
        return EncodedWindow(payload, dropped_words(parts, kept))

    def drops(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a short text."""
        return drops(self._tokenizer, text)

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.lists(self)

    def interpret_window(self, attention: Sequence[FloatArray], /, *, candidates: int) -> FloatArray:
        """How much more attention each document gets from the query than from one without content, shape [candidates].
        Its tokens that get much less than its others do not count.
        """
        return np.array([_score(one) for one in attention[:candidates]], dtype=np.float32)

    def _write(self, query: str, passages: Sequence[str]) -> _Written:
        template = self._template
        before, _, after = template.user.partition("{passages}")
        opening, _, ending = template.chat.partition("{user}")
        text = fill(opening, {"system": template.system}) + fill(before, {"count": str(len(passages))})
        ahead, _, behind = template.passage.partition("{text}")
        places = []
        for number, (identifier, passage) in enumerate(zip(self._identifiers, passages, strict=False)):
            text += template.between if number else ""
            start = len(text)
            text += fill(ahead, {"identifier": identifier}) + passage
            places.append((start, len(text)))
            text += fill(behind, {"identifier": identifier})
        rest = fill(after, {"query": query, "count": str(len(passages))}) + fill(ending, {"system": template.system})
        encoding = self._tokenizer.encode(text + rest, add_special_tokens=False)
        starts, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        # A token may begin with the space before a document, or end with the line behind it.
        firsts = np.searchsorted(ends, [start for start, _ in places], side="right")
        lasts = np.searchsorted(starts, [end for _, end in places])
        leading = len(self._leading)
        return _Written(
            np.concatenate((self._leading, np.array(encoding.ids, dtype=np.int64))),
            leading + int(np.searchsorted(ends, len(text), side="right")),
            leading + np.stack((firsts, np.maximum(lasts, firsts)), axis=1),
        )


def _score(attention: FloatArray) -> float:
    """Of attention to one document's tokens, shape [2, tokens]: from the query, and from one without content."""
    difference = (attention[0] - attention[1]).astype(np.float64)
    if len(difference) > 1:
        least = difference.mean() - _OUTLIER_DEVIATIONS * difference.std(ddof=1)
        difference = difference[difference > least] if difference.std() else difference
    return float(difference.sum())


def _common(one: IntArray, other: IntArray) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length
