"""Reads the prompt of a pair off a folder's chat template.

sentence-transformers gives a template two messages, with the roles `query` and `document`, and where there is an
instruction a `system` message before them. Reward models read a question of the `user` and an answer of the
`assistant`. The template is rendered here once, with marks in their places. What it makes of other texts must follow
from that, or the folder is refused. Nothing of it runs while serving.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Final, Literal

from rerankd.config.extras import missing
from rerankd.errors import ConfigError
from rerankd.recognition.files import table_of
from rerankd.recognition.kinds import ModelFiles, default_prompt
from rerankd.recognition.tokenizer_settings import content_of

_QUERY: Final = "\ue000"
_DOCUMENT: Final = "\ue001"
_SYSTEM: Final = "\ue002"
_TRIED: Final = (
    ("what is love", "Baby don't hurt me."),
    ("  spaces around ", " \n\tand a line\n"),
    ("\n\n lines before\n", "\n\nand behind \n\n"),
    ("{{ braces }} {query}", "{% if %} <b>&amp;</b> {document}"),
    ("größe 漢字", "naïve 🎉"),
    # A template that cuts long texts, as zerank's authors did, shows only with long ones.
    ("word " * 4_000, "word " * 20_000),
)
_ROLES: Final = ("query", "document")
Strips = Literal["nothing", "lines before the document", "space"]
# What chat templates take off a query and a document: Qwen's the lines before an answer, Llama's and Gemma's all space.
STRIPPED: Final[Mapping[Strips, Callable[[str, str], tuple[str, str]]]] = {
    "nothing": lambda query, document: (query, document),
    "lines before the document": lambda query, document: (query, document.lstrip("\n")),
    "space": lambda query, document: (query.strip(), document.strip()),
}
# sentence-transformers takes these for itself.
_NOT_RENDERED: Final = ("restore_suffix", "truncation", "max_length", "padding")


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A prompt with {query}, {document} and, where it takes one, {instruction}, which `instruction_form` puts into
    words. `instruction` is what is said where a request brings none. `strips`: the texts are without this.
    """

    text: str
    instruction: str | None
    instruction_form: str
    strips: Strips = "nothing"


def reads_own_prompt(files: ModelFiles) -> bool:
    """Whether sentence-transformers would write a pair into the folder's chat template, and that knows the roles."""
    if files.modules is not None:
        return files.renders_pairs is not None or "LogitScore" in files.chain
    if files.chat_template is None:
        return False
    source = _source(files)
    return all(role in source for role in ("query", "document"))


def read_chat_prompt(files: ModelFiles, *, roles: tuple[str, str] = _ROLES) -> ChatPrompt:
    """The prompt that a folder's chat template gives a pair, whose texts are messages of these roles. Only with those
    of sentence-transformers it takes an instruction.

    Raises:
        ConfigError: there is no template, it has no place for the roles, or it changes the texts.
    """
    renders = _Renderer(files, roles)
    plain = renders(_QUERY, _DOCUMENT, None)
    told = renders(_QUERY, _DOCUMENT, _SYSTEM) if roles == _ROLES else plain
    if any(text.count(mark) != 1 for text in (plain, told) for mark in (_QUERY, _DOCUMENT)):
        raise ConfigError(
            f"{files.folder}: {files.chat_template} does not write the roles {' and '.join(roles)}, in which it is "
            "given a pair; name a prompt template instead: options = { template = ... }"
        )
    patterns = ((plain, None), (told, "Judge {it}.")) if told != plain else ((plain, None),)
    rendered = [(pattern, system, *pair, renders(*pair, system)) for pattern, system in patterns for pair in _TRIED]
    for strips in STRIPPED:
        changed = [
            (query, document)
            for pattern, system, query, document, text in rendered
            if text != _filled(pattern, *STRIPPED[strips](query, document), system)
        ]
        if not changed:
            return replace(_prompt(plain, told, default_prompt(files)), strips=strips)
    query, document = changed[0]
    raise ConfigError(
        f"{files.folder}: {files.chat_template} changes the texts that it is given, such as "
        f"{(query[:80], document[:80])!r}; write a prompt template instead (docs/models.md)"
    )


def _prompt(plain: str, told: str, instruction: str | None) -> ChatPrompt:
    """What both renderings have in common, with the place of an instruction between."""
    if told.count(_SYSTEM) != 1:
        return ChatPrompt(_named(plain), None, "{instruction}")
    before = _common(plain, told)
    behind = _common(plain[len(before) :][::-1], told[len(before) :][::-1])[::-1]
    without = plain[len(before) : len(plain) - len(behind)]
    form = told[len(before) : len(told) - len(behind)]
    if _QUERY in form or _DOCUMENT in form:
        raise ConfigError(
            "the chat template writes a pair otherwise where there is an instruction; write a prompt template instead "
            "(docs/models.md)"
        )
    text = _named(f"{before}{{instruction}}{behind}")
    if not without:
        return ChatPrompt(text, instruction, _named(form))
    if form == _SYSTEM:
        return ChatPrompt(text, instruction or without, "{instruction}")
    # What stands there without an instruction is more than one: either of both is kept.
    kept = _filled(told, _QUERY, _DOCUMENT, instruction) if instruction else plain
    return ChatPrompt(_named(kept), None, "{instruction}")


def _common(one: str, other: str) -> str:
    """What both begin with."""
    return "".join(first for first, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _filled(pattern: str, query: str, document: str, system: str | None) -> str:
    texts = {_QUERY: query, _DOCUMENT: document, _SYSTEM: system or ""}
    return "".join(texts.get(character, character) for character in pattern)


def _named(text: str) -> str:
    return _filled(text, "{query}", "{document}", "{instruction}")


class _Renderer:
    """A folder's chat template, as transformers renders it."""

    def __init__(self, files: ModelFiles, roles: tuple[str, str]) -> None:
        self._files = files
        self._roles = roles
        self._template = self._compiled(_source(files))
        said = table_of(files.transformer, "processing_kwargs", of="sentence_bert_config.json")
        options = table_of(said, "chat_template", of="sentence_bert_config.json")
        self._options = {key: value for key, value in options.items() if key not in _NOT_RENDERED}
        tokens = {key: content_of(value) for key, value in files.tokenizer_config.items() if key.endswith("_token")}
        self._tokens = {key: token for key, token in tokens.items() if token is not None}
        modality = table_of(files.transformer, "modality_config", of="sentence_bert_config.json")
        self._format = table_of(modality, "message", of="sentence_bert_config.json").get("format", "auto")
        if self._format not in ("flat", "structured"):
            shown = self._flat([(roles[0], _QUERY), (roles[1], _DOCUMENT)])
            self._format = "flat" if all(mark in shown for mark in (_QUERY, _DOCUMENT)) else "structured"

    def __call__(self, query: str, document: str, system: str | None) -> str:
        texts = dict(zip(("system", *self._roles), (system, query, document), strict=True))
        messages = [(role, text) for role, text in texts.items() if text is not None]
        if self._format == "flat":
            return self._flat(messages)
        return self._rendered([{"role": role, "content": [{"type": "text", "text": text}]} for role, text in messages])

    def _flat(self, messages: Sequence[tuple[str, str]]) -> str:
        return self._rendered([{"role": role, "content": text} for role, text in messages])

    def _compiled(self, source: str) -> Any:  # noqa: ANN401 - the package is optional
        environment = _environment()
        try:
            return environment.from_string(source)
        except Exception as error:  # noqa: BLE001 - as below
            raise self._unusable(error) from None

    def _rendered(self, messages: list[Mapping[str, Any]]) -> str:
        values = {"add_generation_prompt": False, **self._options, **self._tokens}
        try:
            return str(self._template.render(messages=messages, tools=None, documents=None, **values))
        except Exception as error:  # noqa: BLE001 - a template may do anything wrong
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"{self._files.folder}: {self._files.chat_template} cannot be rendered with the roles "
            f"{' and '.join(self._roles)} ({' '.join(str(error).split())[:200]}); name a prompt template instead: "
            "options = { template = ... }"
        )


def _source(files: ModelFiles) -> str:
    path = files.folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    said = files.tokenizer_config.get("chat_template")
    if isinstance(said, list):
        # Several by name, of which transformers takes this one.
        by_name = {one.get("name"): one.get("template") for one in said if isinstance(one, dict)}
        said = by_name.get("default")
    if not isinstance(said, str) or not said:
        raise ConfigError(
            f"{files.folder} has no chat template; name a prompt template: options = {{ template = ... }}"
        )
    return said


def _environment() -> Any:  # noqa: ANN401 - the package is optional
    """As transformers makes it: templates of a repository are not trusted."""
    try:
        from jinja2.exceptions import TemplateError  # noqa: PLC0415 - few models need it
        from jinja2.ext import loopcontrols  # noqa: PLC0415 - as above
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415 - as above
    except ModuleNotFoundError:
        raise missing("jinja2", extra="torch", of="a model's own chat template") from None

    def refuse(message: str) -> str:
        raise TemplateError(message)

    def as_json(value: object, **options: Any) -> str:  # noqa: ANN401 - json's own
        return json.dumps(value, ensure_ascii=False, **options)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    return environment
