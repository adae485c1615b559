"""Template files of models that read images: where an image stands in the prompt, and where the score is read."""

from typing import Literal

from pydantic import Field, model_validator

from rerankd.scorers.yes_no_template import YesNoTemplate

Reads = Literal["text and image", "text or image", "image"]


class ImageTemplate(YesNoTemplate):
    """The prompt of a model that reads images. `image` is written where one stands; of its tokens the one called
    `repeated` is written once for each token that the image has. Without `positive` the model has a head of its own.
    """

    image: str = "<|vision_start|><|image_pad|><|vision_end|>"
    repeated: str = "<|image_pad|>"
    reads: Reads = Field(default="text and image", description="What a document is: `text or image` is never both.")
    least_pixels: int | None = Field(
        default=None, ge=1, description="Smaller images are enlarged; default: the files'."
    )
    most_pixels: int | None = Field(
        default=None, ge=1, description="Larger ones are made smaller; default: the files'."
    )

    @model_validator(mode="after")
    def _reads_something(self) -> "ImageTemplate":
        if self.ratings is not None:
            raise ValueError("ratings are not for models that read images; name positive and negative")
        return self
