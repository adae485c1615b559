"""Prompt templates of language models: TOML files, shipped in models/templates or put beside the operator's registry.

A model with the wrong prompt gives near-random scores, so nothing is guessed: a model either names its template, or a
template recognises the repository that the model comes from, or the model is refused.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from tokenizers import Tokenizer

from rerankd.config.options import explain, read_toml
from rerankd.errors import ConfigError
from rerankd.recognition.activations import described
from rerankd.recognition.recognised import PromptTemplate
from rerankd.scorers.base import ScorerSpec

Shape = TypeVar("Shape", bound=BaseModel)

_HUB_NAME: Final = re.compile(r"(?:hub:)?([\w.-]+/[\w.-]+?)(?:@.*)?")
_MARKUP: Final = re.compile(r"[<\[|].*[>\]|]|▁?<.*>", re.DOTALL)
_ROLE: Final = re.compile(r"<\|\w+\|>|\[/?[A-Z]{2,}\]")


def read_prompt_template(
    spec: ScorerSpec, *, scorer: str, name: str | None, shapes: Mapping[str, type[Shape]]
) -> Shape:
    """The template of that name, or without a name the one that recognises the model's repository. `shapes`: what a
    file holds, by its method; others are not for this scorer.

    Raises:
        ConfigError: there is none, or the file is unusable.
    """
    files = dict(_files(spec.templates))
    usable = {known: path for known, path in files.items() if _read(path).get("method") in shapes}
    if name is None:
        name = _recognised(usable, spec.source)
    if name not in usable:
        what = "no template recognises it" if name is None else f"there is no template {name!r} of this method"
        raise ConfigError(
            f"scorer {scorer!r} needs the prompt that {spec.source or spec.folder} was trained with, and {what}; set "
            f"options = {{ template = ... }}, one of: {', '.join(sorted(usable)) or 'none'}, or write "
            f"{next(iter(spec.templates), Path('templates'))}/<name>.toml (docs/models.md)"
        )
    content = {key: value for key, value in _read(usable[name]).items() if key not in ("method", "recognises")}
    shape = shapes[str(_read(usable[name])["method"])]
    try:
        return shape.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{usable[name]}: {explain(error, shape)}") from None


def known_templates(folders: Sequence[Path]) -> list[PromptTemplate]:
    """All templates, for recognition.

    Raises:
        ConfigError: a file is unusable.
    """
    return [_described(name, _read(path)) for name, path in dict(_files(folders)).items()]


def _described(name: str, content: Mapping[str, Any]) -> PromptTemplate:
    patterns, longest = content.get("recognises", []), content.get("max_length")
    return PromptTemplate(
        name=name,
        method=str(content.get("method")),
        recognises=[str(pattern) for pattern in patterns] if isinstance(patterns, list) else [],
        max_length=longest if isinstance(longest, int) else None,
        activation=described(content.get("activation", "sigmoid")),
        instruction="{instruction}" in "".join(map(str, content.get("prompt", ()))),
    )


def is_recognised(spec: ScorerSpec, *, methods: Collection[str]) -> bool:
    """Whether a template is known for the repository that the model comes from."""
    usable = {name: path for name, path in _files(spec.templates) if _read(path).get("method") in methods}
    return _recognised(usable, spec.source) is not None


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put values into a text's {placeholders}; other braces, and those inside of values, stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), text)


def placeholders(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


class ControlTokenEscaper:
    """Escapes control tokens in a caller's texts: a document that ends its turn, or begins one for the
    system, would be obeyed. A space after the first character keeps the tokenizer from seeing them. So it is with roles
    that a template writes and the tokenizer has no token for: Zephyr's `<|user|>` is plain text, and obeyed as well.
    """

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        added = tokenizer.get_added_tokens_decoder().values()
        control = {token.content for token in added if token.special or token.content in template}
        control |= set(_ROLE.findall(template))
        # Words and white space that a tokenizer holds as added tokens control nothing.
        self._texts = sorted((text for text in control if _MARKUP.fullmatch(text)), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._texts))) if self._texts else None

    def __call__(self, text: str) -> str:
        if self._pattern is None:
            return text
        # Breaking one may put together another; each round makes the text longer and leaves fewer of them.
        while self._pattern.search(text):
            text = self._pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
        return text


def single_token(tokenizer: Tokenizer, text: str, *, option: str) -> int:
    """The id of a text that is one token.

    Raises:
        ConfigError: it is several.
    """
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) != 1:
        raise ConfigError(f"{option} = {text!r} is {len(ids)} tokens in this model's tokenizer; it must be one")
    return int(ids[0])


def _files(folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Templates by name; those of the first folders win over later ones."""
    for folder in reversed(folders):
        for path in sorted(folder.glob("*.toml")):
            yield path.stem, path


def _read(path: Path) -> dict[str, object]:
    try:
        return read_toml(path)
    except OSError as error:
        raise ConfigError(f"cannot read the template {path} ({error.strerror})") from None


def _recognised(files: Mapping[str, Path], source: str) -> str | None:
    match = _HUB_NAME.fullmatch(source)
    known = (_described(name, _read(path)) for name, path in files.items())
    return next((one.name for one in known if match and one.fits(match[1])), None)
