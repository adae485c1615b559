"""Encoder-decoders that judge documents by the first token of their answer: each needs the prompt of its training."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from rerankd.errors import few
from rerankd.recognition.families.language_models import chosen_template, prompted_model
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.recognised import (
    Asked,
    Evidence,
    Family,
    Outcome,
    Recognised,
    Refused,
    architecture,
    modules,
    refused_family,
    repository,
)

_OTHERS: Final = "use BAAI/bge-reranker-v2-m3 (multilingual) or mixedbread-ai/mxbai-rerank-large-v1 (English)"
_ORACLE: Final = "transformers: the authors' procedure, whole logits of the decoder's first step"
_OWN: Final = "encoder-decoders with a template of your own"
_UNKNOWN: Final = "other encoder-decoders"


def _reads_texts(files: ModelFiles) -> Evidence | None:
    """What says that it is an encoder-decoder, and reads nothing but texts."""
    return architecture(files, "T5ForConditionalGeneration", "MT5ForConditionalGeneration")


def _prompted(name: str, repositories: Sequence[str], templates: Sequence[str]) -> Family:
    """Models that one of the shipped templates is for."""

    def recognise(files: ModelFiles, asked: Asked) -> Outcome | None:
        template = chosen_template(files, asked) if _reads_texts(files) else None
        return _judge(name, files, asked) if template and template.name in templates else None

    return Family(name=name, repositories=repositories, recognise=recognise, oracle=_ORACLE)


def _judge(name: str, files: ModelFiles, asked: Asked) -> Outcome | None:
    template = chosen_template(files, asked) if _reads_texts(files) else None
    if template is None:
        return None
    found = prompted_model(name, files, asked, template)
    if not isinstance(found, Recognised):
        return found
    if "spiece.model" in files.names and "tokenizer.json" not in files.names:
        return Refused(
            family=name,
            reason="it has spiece.model and no tokenizer.json, which is read here",
            way_out="save model and tokenizer once with transformers (AutoModelForSeq2SeqLM and AutoTokenizer, "
            "from_pretrained(...).save_pretrained(folder); needs sentencepiece and protobuf), then serve the folder "
            f"with --template {template.name}",
            evidence=found.evidence,
        )
    head = "the logits of the template's answer tokens, of which the decoder would write one first"
    return replace(found, head=head, engines=["torch-seq2seq"])


def _own_template(files: ModelFiles, asked: Asked) -> Outcome | None:
    return _judge(_OWN, files, asked)


def _unknown_prompt(files: ModelFiles, asked: Asked) -> Outcome | None:
    sign = architecture(files, "*T5ForConditionalGeneration")
    if sign is None:
        return None
    names = sorted(one.name for one in asked.templates if "t5" in one.name)
    return Refused(
        family=_UNKNOWN,
        reason=f"{sign}: this is an encoder-decoder, and no file says what prompt it was trained with as a reranker, "
        "nor which words it answers",
        way_out="if it is a copy of a known one, name its template (options = { template = ... }, "
        f"`--template`): {few(names)}; or serve it by its name on the hub",
        evidence=[sign, *modules(files)],
    )


FAMILIES: Final[Sequence[Family]] = (
    refused_family(
        "LiT5, ListT5 and other models that fuse in the decoder",
        ["castorini/LiT5-Distill-base", "Soyoung97/ListT5-base"],
        lambda files: (
            architecture(files, "LiT5*", "FiD*") or repository(files, "castorini/LiT5-*", "Soyoung97/ListT5-*")
        ),
        because="its decoder reads all passages of a list at once, in its authors' own code",
        instead=_OTHERS,
    ),
    _prompted(
        "monoT5 and InRanker",
        ["castorini/monot5-base-msmarco", "castorini/monot5-3b-msmarco-10k", "unicamp-dl/InRanker-base"],
        ["monot5"],
    ),
    _prompted(
        "mT5 on mMARCO",
        ["unicamp-dl/mt5-base-mmarco-v2", "unicamp-dl/mt5-13b-mmarco-100k"],
        ["mt5-mmarco", "mt5-mmarco-large"],
    ),
    _prompted(
        "PTT5 and monoPTT5 (Portuguese)",
        ["unicamp-dl/ptt5-base-pt-msmarco-100k-v2", "unicamp-dl/monoptt5-base"],
        ["ptt5-msmarco", "monoptt5"],
    ),
    _prompted("duoT5", ["castorini/duot5-base-msmarco", "castorini/duot5-3b-msmarco-10k"], ["duot5"]),
    _prompted("RankT5 in PyTorch", ["Soyoung97/RankT5-base", "Soyoung97/RankT5-3b"], ["rankt5"]),
    Family(name=_OWN, repositories=["any T5 or mT5"], recognise=_own_template, oracle="none: yours"),
    Family(
        name=_UNKNOWN,
        repositories=["T5, Flan-T5, mT5 and others before their training for ranking"],
        recognise=_unknown_prompt,
        refused=(
            "no file says what prompt it was trained with as a reranker, nor which words it answers",
            "name its template, or serve it by its name on the hub",
        ),
    ),
)
