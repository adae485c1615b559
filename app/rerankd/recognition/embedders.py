"""What an embedding model's files say beside its modules: its prompts, and how vectors are compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, cast, get_args

from rerankd.errors import ConfigError, few
from rerankd.recognition.files import table_of
from rerankd.recognition.kinds import ModelFiles, refuse_other_root, refuse_unknown_settings
from rerankd.recognition.modules import read_embedding_head

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
_SIMILARITIES: Final = get_args(Similarity)
_SETTINGS: Final = "config_sentence_transformers.json"
_QUERY: Final = ("query",)
# sentence-transformers 5 and later write an empty "document" beside an older model's "passage": the first that says
# something counts.
_DOCUMENT: Final = ("document", "passage", "corpus")
# Models whose cards ask for a prefix that older copies of their files do not name.
_PREFIXED: Final = ("*e5-*", "*nomic-embed-text*", "*instructor-*")


@dataclass(frozen=True, slots=True)
class Prompts:
    """What stands before every query and every document."""

    query: str
    document: str


def refuse_other_than_embedder(files: ModelFiles) -> None:
    """Refuse a folder whose files say that it is no sentence-transformers model that gives one vector for each text.

    Raises:
        ConfigError: it says what it is.
    """
    kind = files.sentence_transformers.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise ConfigError(
            f"{files.folder}: {_SETTINGS} says model_type {kind!r}, and a bi-encoder is SentenceTransformer"
        )
    if files.config.get("is_encoder_decoder"):
        raise ConfigError(
            f"{files.folder}: config.json says is_encoder_decoder: vectors of encoder-decoders, such as sentence-t5 "
            "and gtr-t5, are not computed here; serve another model"
        )
    read_embedding_head(files)
    refuse_other_root(files)
    if files.renders_pairs is not None:
        raise ConfigError(
            f"{files.folder}: by {files.renders_pairs} this model reads texts inside of a chat template, which is not "
            "applied here; serve another model"
        )
    refuse_unknown_settings(files, task="feature-extraction", prompted=True)


def read_prompts(files: ModelFiles, *, query: str | None, document: str | None) -> Prompts:
    """The prompts by the operator's word (`query`, `document`), or else by the folder's.

    Raises:
        ConfigError: the files name prompts for other purposes only, or the model is known for prefixes that they leave
            out.
    """
    said = {
        str(name): text
        for name, text in table_of(files.sentence_transformers, "prompts", of=_SETTINGS).items()
        if isinstance(text, str) and text
    }
    if query is None and document is None:
        _refuse_to_guess(files, said)
    return Prompts(
        query=_first(said, _QUERY) if query is None else query,
        document=_first(said, _DOCUMENT) if document is None else document,
    )


def read_similarity(files: ModelFiles) -> Similarity:
    """How vectors are compared.

    Raises:
        ConfigError: in a way that is not computed here.
    """
    named = files.sentence_transformers.get("similarity_fn_name") or "cosine"
    if named not in _SIMILARITIES:
        raise ConfigError(f"{_SETTINGS}: similarity_fn_name is {named!r:.60}; known: {', '.join(_SIMILARITIES)}")
    return cast("Similarity", named)


def _first(prompts: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((prompts[name] for name in names if name in prompts), "")


def _refuse_to_guess(files: ModelFiles, said: Mapping[str, str]) -> None:
    way_out = 'options = { query_prompt = "...", document_prompt = "..." }, as its card says; "" means none'
    if any(name in said for name in (*_QUERY, *_DOCUMENT)):
        return
    if said:
        raise ConfigError(
            f"{files.folder}: {_SETTINGS} has prompts for {few(sorted(said))} and none for queries or documents; say "
            f"which ones are meant: {way_out}"
        )
    names = (files.repository, files.folder.name, str(files.config.get("_name_or_path") or ""))
    known = next((name for name in names if any(fnmatchcase(name.lower(), pattern) for pattern in _PREFIXED)), None)
    if known is not None:
        raise ConfigError(
            f"{files.folder}: models like {known!r} were trained with a prefix before queries and documents (e5: "
            f'"query: " and "passage: "), and no file says it; say it: {way_out}'
        )
