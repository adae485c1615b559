"""Rerankers that score at an inner layer, with a head of their own there, which the operator may choose."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from rerankd.errors import ConfigError
from rerankd.recognition.families.language_models import chosen_template, prompted_model
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.layer_wise import LAYER_WISE_TEMPLATES, layer_wise_form
from rerankd.recognition.recognised import (
    Asked,
    Evidence,
    Family,
    Outcome,
    Recognised,
    Refused,
    architecture,
    model_type,
    repository,
)

_NAME: Final = "layer-wise rerankers"
_INSTEAD: Final = "or use BAAI/bge-reranker-v2-gemma"


def _recognise(files: ModelFiles, asked: Asked) -> Outcome | None:
    sign = _sign(files)
    if sign is None:
        return None
    usual = LAYER_WISE_TEMPLATES.get(files.architecture)
    asked = replace(asked, options={**({"template": usual} if usual else {}), **asked.options})
    template = chosen_template(files, asked)
    try:
        form = layer_wise_form(files, cutoff_layer=None)
    except ConfigError as error:
        return Refused(family=_NAME, reason=str(error), way_out=_INSTEAD, evidence=[sign])
    if form is None or template is None:
        return Refused(
            family=_NAME,
            reason=f"{sign} (family: {_NAME}): only {' and '.join(LAYER_WISE_TEMPLATES)} are computed",
            way_out=_INSTEAD,
            evidence=[sign],
        )
    found = prompted_model(_NAME, files, asked, template)
    if not isinstance(found, Recognised):
        return found
    said = Evidence("config.json", f"start_layer = {files.config.get('start_layer')}, num_hidden_layers = {form.layer}")
    head = f"one logit of layer {form.layer}, or of `cutoff_layer` (engine_options)"
    return replace(found, head=head, engines=["torch-causal"], evidence=[sign, said])


def _sign(files: ModelFiles) -> Evidence | None:
    return (
        model_type(files, "cost_wise_gemma")
        or architecture(files, "LayerWise*", "CostWise*")
        or repository(files, "BAAI/bge-reranker-*-layerwise", "BAAI/bge-reranker-*-lightweight")
    )


FAMILIES: Final[Sequence[Family]] = (
    Family(
        name=_NAME,
        repositories=["BAAI/bge-reranker-v2-minicpm-layerwise", "BAAI/bge-reranker-v2.5-gemma2-lightweight"],
        recognise=_recognise,
        oracle="torch and transformers: the authors' layers and heads, whole states of the layer that is read",
    ),
)
