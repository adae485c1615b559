"""Models that read images and text: rerankers on Qwen2-VL and Qwen3-VL."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from rerankd.recognition.families.language_models import chosen_template, prompted_model
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.native import is_jina_m0, is_qwen3_vl, native_form
from rerankd.recognition.recognised import (
    Asked,
    Evidence,
    Family,
    Outcome,
    PromptTemplate,
    Recognised,
    Refused,
    architecture,
    refused_family,
    repository,
)


def _qwen3_vl(files: ModelFiles, asked: Asked) -> Outcome | None:
    if not is_qwen3_vl(files):
        return None
    return _judge(_QWEN3_VL, files, asked, usual="qwen3-vl-reranker")


def _qwen2_vl(files: ModelFiles, asked: Asked) -> Outcome | None:
    """An adapter's base, or the two merged."""
    if architecture(files, "Qwen2VLForConditionalGeneration") is None:
        return None
    return _judge(_MONO, files, asked, usual="monoqwen2-vl")


def _judge(family: str, files: ModelFiles, asked: Asked, *, usual: str) -> Outcome:
    template = _template(files, asked)
    sign = Evidence("config.json", f"architectures = {files.architecture!r}")
    if template is None:
        return Refused(
            family=family,
            reason=f"{sign}, and no file says what prompt it was trained with as a reranker",
            way_out=f'if it is a copy of {family}, name its template: options = {{ template = "{usual}" }}; or serve '
            "it by its name on the hub",
            evidence=[sign],
        )
    # A graph is of its language model alone, and reads no image.
    texts_alone = asked.scorer == "yes-no" or (files.graphs and not files.has_safetensors)
    if not texts_alone:
        return prompted_model(family, files, asked, template)
    native = native_form(files)
    if native is not None and native.problem:
        return Refused(family=family, reason=native.problem, evidence=[sign])
    return prompted_model(family, files, asked, replace(template, method="yes-no"))


def _template(files: ModelFiles, asked: Asked) -> PromptTemplate | None:
    """That which the operator names, or which knows the adapter, or the model."""
    if asked.adapter and "template" not in asked.options:
        return next((one for one in asked.templates if one.fits(asked.adapter)), None)
    return chosen_template(files, asked)


def _jina_m0(files: ModelFiles, asked: Asked) -> Outcome | None:
    if not is_jina_m0(files):
        return None
    options = {"template": "jina-reranker-m0", **asked.options}
    template = chosen_template(files, replace(asked, options=options))
    sign = Evidence("config.json", f"architectures = {files.architecture!r}")
    if template is None:
        name = options["template"]
        return Refused(
            family=_JINA_M0,
            reason=f"{sign}, and there is no template {name!r}",
            way_out="name one that there is, or none: the shipped one is its authors'",
            evidence=[sign],
        )
    outcome = prompted_model(_JINA_M0, files, asked, template)
    own = "the model's own head at the last place"
    return replace(outcome, head=own) if isinstance(outcome, Recognised) else outcome


_QWEN3_VL: Final = "Qwen3-VL-Reranker"
_JINA_M0: Final = "jina-reranker-m0"
_MONO: Final = "MonoQwen2-VL"

FAMILIES: Final[Sequence[Family]] = (
    Family(
        name=_JINA_M0,
        repositories=["jinaai/jina-reranker-m0"],
        recognise=_jina_m0,
        oracle="transformers: the authors' procedure, images and texts as query and document",
    ),
    Family(
        name=_QWEN3_VL,
        repositories=["Qwen/Qwen3-VL-Reranker-2B", "Qwen/Qwen3-VL-Reranker-8B"],
        recognise=_qwen3_vl,
        oracle="transformers: the authors' procedure, texts and images",
    ),
    Family(
        name=_MONO,
        repositories=["lightonai/MonoQwen2-VL-v0.1"],
        recognise=_qwen2_vl,
        oracle="transformers and peft: the card's procedure",
    ),
    refused_family(
        "other models of several media",
        ["nvidia/llama-nemotron-rerank-vl-1b-v2"],
        lambda files: (
            architecture(files, "*VLForConditionalGeneration", "*VisionForConditionalGeneration")
            or repository(files, "*/*-VL-Reranker-*", "*/*rerank-vl-*")
        ),
        because="no engine loads its class",
        instead="use Qwen/Qwen3-VL-Reranker-2B",
    ),
)
