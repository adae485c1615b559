"""What turns a raw score into relevance, as options and template files say it: by a name, or by scale and bias."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag


class ScaledSigmoid(BaseModel):
    """Relevance is sigmoid(scale * score + bias). A positive scale keeps the order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    bias: float = Field(default=0.0, allow_inf_nan=False)


ActivationName = Literal["sigmoid", "identity"]
# Told apart before they are checked, so that a message says what is wrong with the kind that is meant.
ActivationSetting = Annotated[
    Annotated[ActivationName, Tag("name")] | Annotated[ScaledSigmoid, Tag("table")],
    Discriminator(lambda given: "table" if isinstance(given, dict | ScaledSigmoid) else "name"),
]


def described(setting: object) -> str:
    """A setting for people, be it read already or not."""
    if isinstance(setting, ScaledSigmoid):
        setting = setting.model_dump()
    if isinstance(setting, dict):
        bias = setting.get("bias", 0)
        return f"sigmoid({setting.get('scale', 1)} x{f' + {bias}' if bias else ''})".replace("+ -", "- ")
    return str(setting)
