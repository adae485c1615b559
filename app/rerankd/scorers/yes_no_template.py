"""Template files of the method "yes-no", which classifiers made from such models are prompted with too."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from rerankd.recognition.activations import ActivationSetting
from rerankd.scorers.pair_prompt import PairTemplateFile


def _told_apart(ratings: Mapping[str, float]) -> Mapping[str, float]:
    if len(set(ratings.values())) < 2:
        raise ValueError("ratings must have two different values at least; a judge that says one thing ranks nothing")
    return ratings


# Tokens that a judge may answer with, by their texts, and what each is worth.
Ratings = Annotated[
    Mapping[str, Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]], AfterValidator(_told_apart)
]


class YesNoTemplate(PairTemplateFile):
    """The prompt, and the tokens that are read behind it: each by its text, or by its id where it has none of its
    own. A judge that grades has `ratings` instead of `positive` and `negative`.
    """

    positive: str | int | None = None
    negative: str | int | None = None
    ratings: Ratings | None = None
    activation: ActivationSetting | None = Field(
        default=None, description="Where options name none; default: sigmoid, and of ratings their share of the range."
    )

    @model_validator(mode="after")
    def _reads_something(self) -> "YesNoTemplate":
        if self.ratings is None and self.positive is None:
            raise ValueError("positive is missing; name the token that says yes, or ratings of several tokens")
        if self.ratings is not None and (self.positive is not None or self.negative is not None):
            raise ValueError("ratings: leave out positive and negative, which are rated too")
        return self
