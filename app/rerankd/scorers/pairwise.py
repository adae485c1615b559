"""Models that read two documents at once and say whether the first answers the query better.

Pradeep et al., "The Expando-Mono-Duo Design Pattern for Text Ranking with Pretrained Sequence-to-Sequence Models", 2021
(duoT5): the log-odds of "true" against "false". What follows from the comparisons is the pipeline's.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray, WindowPlan
from rerankd.errors import ConfigError, InvalidRequest, TooLong
from rerankd.recognition.kinds import refuse_other_than_language_model
from rerankd.scorers.base import Comparison, EncodedPairs, Kinds, Made, ScorerSpec, refuse_instruction
from rerankd.scorers.beginnings import Reach, read_parts
from rerankd.scorers.list_prompt import ScheduleOptions
from rerankd.scorers.templates import ControlTokenEscaper, fill, read_prompt_template, single_token
from rerankd.scorers.token_cache import DocumentTokens, TokenCache
from rerankd.scorers.tokenizer_files import TokenizerFolder, drops, ids_of
from rerankd.tasks.encoding import Encoding, stacked
from rerankd.tasks.read_tokens import ReadTokens

ALL_PAIRS: Final = "all-pairs"
_MIN_DOCUMENT_TOKENS: Final = 16
# A request's documents come back with each part of its comparisons.
_REMEMBERED_BYTES: Final = 8 * 2**20
_PLACE: Final = re.compile(r"\{(query|first|second)\}")
_TRIED: Final = (("what is love", "Baby don't hurt me.", "No more"), ("größe", "漢字 🎉", "b, c"))


class PairwiseTemplate(BaseModel):
    """A template file of the method "pairwise": `positive` means that the first document is better."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    positive: str
    negative: str
    max_length: int | None = Field(default=None, ge=64)

    @model_validator(mode="after")
    def _has_places(self) -> "PairwiseTemplate":
        if _PLACE.findall(self.prompt) != ["query", "first", "second"]:
            raise ValueError("prompt: it must hold {query}, {first} and {second}, once each and in this order")
        return self

    @property
    def texts(self) -> Sequence[str]:
        """What stands before, between and behind the three places."""
        return _PLACE.split(self.prompt)[::2]


class PairwiseOptions(ScheduleOptions):
    """`[model.options]` of the scorer `pairwise`."""

    depth: int = Field(default=50, ge=2, le=200, description="Documents that are compared; requests may ask for fewer.")

    @property
    def plan(self) -> WindowPlan:
        return WindowPlan(
            window=2,
            stride=1,
            schedule=self.schedule or ALL_PAIRS,
            depth=self.depth,
            settle=self.settle,
            rounds=self.rounds,
            both_orders=self.both_orders,
        )


class Pairwise:
    def __init__(
        self, tokenizer: Tokenizer, template: PairwiseTemplate, *, plan: WindowPlan, max_length: int, pad_id: int
    ) -> None:
        self._tokenizer = tokenizer
        self._escape = ControlTokenEscaper(tokenizer, template.prompt)
        self._texts = [ids_of(tokenizer, text.strip()) for text in template.texts]
        self._refuse_other_tokens(template)
        self.plan = plan
        self._tokens = TokenCache(max_bytes=_REMEMBERED_BYTES)
        self.max_length = max_length
        self.pad_id = pad_id
        answers = {"positive": template.positive, "negative": template.negative}
        self.task = ReadTokens(tuple(single_token(tokenizer, text, option=name) for name, text in answers.items()))
        # Not the plan: a comparison is the same whatever else is compared.
        self.fingerprint = json.dumps(["pairwise", max_length, template.model_dump()])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "Pairwise":
        """Read tokenizer, configuration and prompt template.

        Raises:
            ConfigError: a file is missing, no template is known for the model, or its tokenizer does not suit it.
        """
        options = read_options(spec.options, PairwiseOptions, of="scorer 'pairwise'")
        template = read_prompt_template(
            spec, scorer="pairwise", name=options.template, shapes={"pairwise": PairwiseTemplate}
        )
        read = TokenizerFolder.read(spec.folder)
        refuse_other_than_language_model(read.files, scorer="pairwise")
        return cls(
            read.tokenizer,
            template,
            plan=options.plan,
            max_length=read.length(spec.max_length, usual=template.max_length),
            pad_id=read.pad_id,
        )

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.comparisons(self)

    def encode_comparisons(
        self,
        query: str,
        documents: Sequence[str],
        comparisons: Sequence[Comparison],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
        owner: str = "",
    ) -> EncodedPairs[Encoding]:
        """Tokenize the query and each document once. Where two do not fit, the longer is cut first.

        Raises:
            InvalidRequest: the query leaves no room for two documents, or there is an instruction.
        """
        refuse_instruction(instruction)
        head, middle, tail = self._frame(query)
        room = self._room(len(head) + len(middle) + len(tail))
        used = sorted({position for comparison in comparisons for position in comparison})
        limit = room if max_document_tokens is None else min(room, max_document_tokens)
        known = dict(zip(used, self._tokenized([documents[one] for one in used], limit, owner=owner), strict=True))
        encodings = []
        dropped = np.empty(len(comparisons), dtype=np.int64)
        for place, (first, second) in enumerate(comparisons):
            one, other = known[first].ids[:limit], known[second].ids[:limit]
            kept = max(room // 2, room - len(other))
            part = one[:kept]
            ids = np.concatenate((head, part, middle, other[: room - len(part)], tail), dtype=np.int64)
            encodings.append(Encoding(ids, len(head)))
            dropped[place] = known[first].total - len(part)
        return EncodedPairs(encodings, dropped)

    def drops(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a short text."""
        return drops(self._tokenizer, text)

    def interpret_comparisons(self, rows: Iterable[FloatArray], /) -> FloatArray:
        """Log-odds that the first document is better, shape [comparisons], from logits of shape [comparisons, 2]."""
        logits = stacked(rows)
        return logits[:, 0] - logits[:, 1]

    def _frame(self, query: str) -> tuple[IntArray, IntArray, IntArray]:
        """The ids before, between and behind two documents."""
        before, after, middle, tail = self._texts
        return np.concatenate((before, ids_of(self._tokenizer, self._escape(query)), after)), middle, tail

    def _room(self, taken: int) -> int:
        room = self.max_length - taken
        if room < 2 * _MIN_DOCUMENT_TOKENS:
            problem = (
                f"the prompt with this query has {taken} tokens before any document, the model reads "
                f"{self.max_length}: shorten the query"
            )
            raise InvalidRequest(TooLong(problem=problem))
        return room

    def _tokenized(self, documents: Sequence[str], limit: int, *, owner: str) -> list[DocumentTokens]:
        reach = Reach.of(limit)
        return self._tokens.get(
            documents, lambda texts: self._first_tokens(texts, limit, reach), room=limit, most=reach.most, owner=owner
        )

    def _first_tokens(self, texts: Sequence[str], limit: int, reach: Reach) -> list[DocumentTokens]:
        parts = read_parts(
            texts,
            lambda some: self._tokenizer.encode_batch_fast(list(map(self._escape, some)), add_special_tokens=False),
            enough=lambda one: len(one.ids) >= 2 * limit,
            reach=reach,
        )
        return [
            DocumentTokens(
                np.array(part.content.ids[:limit], dtype=np.int32),
                len(part.content.ids) + part.beyond(len(part.content.ids)),
            )
            for part in parts
        ]

    def _refuse_other_tokens(self, template: PairwiseTemplate) -> None:
        """Refuse a tokenizer that reads the parts of a prompt otherwise than the whole."""
        for texts in _TRIED:
            prompt = fill(template.prompt, dict(zip(("query", "first", "second"), texts, strict=True)))
            query, first, second = (ids_of(self._tokenizer, text) for text in texts)
            before, after, middle, tail = self._texts
            apart = np.concatenate((before, query, after, first, middle, second, tail))
            if not np.array_equal(apart, ids_of(self._tokenizer, prompt)):
                raise ConfigError(
                    "this tokenizer joins a prompt's words with the documents beside them, and scorer 'pairwise' needs "
                    "one that ends each token at white space, as T5's does"
                )
