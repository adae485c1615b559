"""Every family of rerankers that is known, in the order in which they are tried: docs/models-supported.md is this."""

from collections.abc import Sequence
from typing import Final

from rerankd.errors import ConfigError
from rerankd.recognition.exported import Exported
from rerankd.recognition.families import (
    classifiers,
    encoder_decoders,
    images,
    language_models,
    layer_wise,
    others,
    vectors,
)
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.recognised import Asked, Family, Outcome, Refused

FAMILIES: Final[Sequence[Family]] = (
    *classifiers.FAMILIES,
    *layer_wise.FAMILIES,
    # Before language models, many of which are trained to give vectors.
    *vectors.FAMILIES,
    *images.FAMILIES,
    *language_models.FAMILIES,
    *encoder_decoders.FAMILIES,
    *others.SERVICES,
)


def recognise(files: ModelFiles, asked: Asked | None = None) -> Outcome:
    """What a model folder is and how it is scored, or why it is not served and what to use instead."""
    asked = asked or Asked()
    try:
        exported = Exported.read(files)
    except ConfigError as error:
        return Refused(family="", reason=str(error))
    if exported is None:
        return _recognised(files, asked)
    return exported.checked(_recognised(files, exported.asked(asked)))


def family_named(name: str) -> Family:
    """The family of an outcome."""
    return next(family for family in FAMILIES if family.name == name)


def _recognised(files: ModelFiles, asked: Asked) -> Outcome:
    for family in FAMILIES:
        outcome = family.recognise(files, asked)
        if outcome is not None:
            return outcome
    named = files.architecture or "no architectures"
    return Refused(
        family="",
        reason=f"config.json says {named} (model_type {files.model_type!r}), and no family of rerankers is known by "
        "that",
        way_out="name scorer, engine and options in a registry if it is one (docs/models.md), or serve one of "
        "docs/models-supported.md",
    )
