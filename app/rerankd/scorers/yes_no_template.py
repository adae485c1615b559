"""Template files of the method "yes-no", which classifiers made from such models are prompted with too."""

from pydantic import Field

from rerankd.recognition.activations import ActivationSetting
from rerankd.scorers.pair_prompt import PairTemplateFile


class YesNoTemplate(PairTemplateFile):
    """The prompt, and the tokens that are read behind it: each by its text, or by its id where it has none of its
    own.
    """

    positive: str | int
    negative: str | int | None = None
    activation: ActivationSetting = Field(default="sigmoid", description="Where options name none.")
