"""Prediction of text-embeddings-inference: pairs go in, each pair's only label with its score comes out."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, Field, RootModel, WithJsonSchema

from rerankd.api.answers import Answer, Json
from rerankd.api.dialects.base import Dialect
from rerankd.api.dialects.fields import RawScores, score_of
from rerankd.api.dialects.pairs import PairsBody
from rerankd.api.dialects.tei import TruncatingFields
from rerankd.domain import RankedDocument, RerankResult, ScoreOptions

# The name in `/info`: a reranker has one output, and TEI names outputs after their numbers.
LABEL: Final = "LABEL_0"


def _pairs(inputs: object) -> object:
    """A pair, or a list of pairs, as a list of pairs."""
    if not isinstance(inputs, list) or not inputs:
        raise ValueError("no pairs; send [query, document], or a list of such pairs")
    batch = [inputs] if isinstance(inputs[0], str) else inputs
    for index, pair in enumerate(batch):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ValueError(f"entry {index} is not a pair of texts; send [query, document]")
    return inputs


class PredictBody(TruncatingFields, PairsBody):
    """`model` is our addition: TEI serves one model."""

    inputs: Annotated[
        list[Any],
        BeforeValidator(_pairs),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2},
                    {"type": "array", "items": {"type": "array", "items": {"type": "string"}}},
                ]
            }
        ),
    ] = Field(description="A pair `[query, document]`, or a list of pairs.")
    raw_scores: RawScores = None

    @property
    def _is_one(self) -> bool:
        return isinstance(self.inputs[0], str)

    def distinct_queries(self) -> int:
        return len({query for query, _ in self.pairs()})

    def options(self) -> ScoreOptions:
        return self.truncating()

    def pairs(self) -> Sequence[tuple[str, str]]:
        return [(self.inputs[0], self.inputs[1])] if self._is_one else [(pair[0], pair[1]) for pair in self.inputs]

    def render(self, results: Sequence[RerankResult], *, request_id: str) -> Answer:  # noqa: ARG002 - no place for it
        predictions = (self._prediction(ranked) for _, ranked in self.ranked(results))
        return predictions if self._is_one else _as_lists(predictions)

    def _prediction(self, ranked: RankedDocument) -> Json:
        return {"score": score_of(ranked, raw=self.raw_scores), "label": LABEL}


def _as_lists(predictions: Iterator[Json]) -> Iterator[list[Json]]:
    return ([prediction] for prediction in predictions)


class Prediction(BaseModel):
    score: float
    label: str


class PredictAnswer(RootModel[list[Prediction] | list[list[Prediction]]]):
    pass


TEI_PREDICT: Final = Dialect(
    name="tei-predict",
    paths=("/predict",),
    document_fields=frozenset(["inputs"]),
    truncation_hint="truncate: true",
    body=PredictBody,
    answer=PredictAnswer,
    example={
        "inputs": [
            ["What is the capital of France?", "Berlin is in Germany."],
            ["What is the capital of France?", "Paris is the capital of France."],
        ],
        "raw_scores": False,
    },
)
