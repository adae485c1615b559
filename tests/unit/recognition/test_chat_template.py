"""What a chat template makes of a pair, or why it cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest

from rerankd.errors import ConfigError
from rerankd.recognition.chat_template import ChatPrompt, Strips, read_chat_prompt, reads_own_prompt
from rerankd.recognition.kinds import ModelFiles

FORM = "{instruction}"
PAIR = (
    "{{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}|"
    "{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
)
SYSTEM = "{{ (messages | selectattr('role', 'eq', 'system') | map(attribute='content') | list + [DEFAULT]) | first }}"
STRUCTURED = "{% for m in messages %}{{ m.role }}: {{ m.content[0].text }}\n{% endfor %}"


def files(folder: Path, template: str | None, *, prompt: str | None = None, **transformer: Any) -> ModelFiles:
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    (folder / "modules.json").write_text(json.dumps([{"path": "", "type": "x.Transformer"}]))
    (folder / "sentence_bert_config.json").write_text(json.dumps(transformer))
    said = {"prompts": {"p": prompt}, "default_prompt_name": "p"} if prompt else {}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return ModelFiles.read(folder)


@pytest.mark.parametrize(
    ("template", "prompt", "expected"),
    [
        (PAIR, None, ChatPrompt("{query}|{document}", None, "{instruction}")),
        ("{{ bos_token }}" + PAIR + "{{ eos_token }}", None, ChatPrompt("<s>{query}|{document}</s>", None, FORM)),
        (
            "{% if messages[0].role == 'system' %}[{{ messages[0].content }}] {% endif %}" + PAIR,
            "Judge.",
            ChatPrompt("{instruction}{query}|{document}", "Judge.", "[{instruction}] "),
        ),
        (
            f"<{SYSTEM.replace('DEFAULT', repr('retrieve'))}>{PAIR}",
            None,
            ChatPrompt("<{instruction}>{query}|{document}", "retrieve", "{instruction}"),
        ),
        (
            f"<{SYSTEM.replace('DEFAULT', repr('retrieve'))}>{PAIR}",
            "Judge.",
            ChatPrompt("<{instruction}>{query}|{document}", "Judge.", "{instruction}"),
        ),
        (STRUCTURED, None, ChatPrompt(f"{FORM}query: {{query}}\ndocument: {{document}}\n", None, f"system: {FORM}\n")),
    ],
    ids=["plain", "control tokens", "instruction", "instruction of its own", "default prompt", "structured"],
)  # fmt: skip
def test_the_prompt_is_what_the_template_makes_of_a_pair(
    tmp_path: Path, template: str, prompt: str | None, expected: ChatPrompt
) -> None:
    assert read_chat_prompt(files(tmp_path, template, prompt=prompt)) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "has no chat template"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "does not write the roles"),
        (f"{PAIR} {PAIR}", "does not write the roles"),
        (PAIR.replace("| first }}|", "| first | trim }}|"), "changes the texts"),
        (PAIR.replace("| first }}|", "| first | upper }}|"), "changes the texts"),
        ("{% for m in messages %}{{ m.content[:9000] }}|{% endfor %}", "changes the texts"),
        ("{{ raise_exception('only users') }}", "only users"),
        ("{% if %}", "cannot be rendered"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be rendered"),
    ],
)
def test_a_template_that_cannot_be_read_off_is_refused(tmp_path: Path, template: str | None, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_chat_prompt(files(tmp_path, template))


def test_options_of_the_template_are_those_of_the_folder(tmp_path: Path) -> None:
    template = PAIR + "{% if add_generation_prompt %}<answer>{% endif %}{{ mood }}"
    chat = {"chat_template": {"add_generation_prompt": True, "mood": "!", "restore_suffix": False}}
    assert read_chat_prompt(files(tmp_path, template, processing_kwargs=chat)).text == "{query}|{document}<answer>!"


def test_a_chat_models_own_template_is_no_prompt_for_pairs(tmp_path: Path) -> None:
    with_modules = files(tmp_path, STRUCTURED, modality_config={"message": {"format": "structured"}})
    assert reads_own_prompt(with_modules)
    (tmp_path / "modules.json").unlink()
    assert not reads_own_prompt(ModelFiles.read(tmp_path))
    (tmp_path / "chat_template.jinja").write_text(PAIR)
    assert reads_own_prompt(ModelFiles.read(tmp_path))


@pytest.mark.parametrize(
    ("question", "answer", "strips"),
    [
        ("{{ m.content }}", "{{ m.content }}", "nothing"),
        ("{{ m.content }}", "{{ m.content.lstrip('\\n') }}", "lines before the document"),
        ("{{ m.content | trim }}", "{{ m.content | trim }}", "space"),
    ],
)
def test_what_a_template_takes_off_the_texts_is_told(
    tmp_path: Path, question: str, answer: str, strips: Strips
) -> None:
    roles = f"{{% if m.role == 'user' %}}{question}|{{% else %}}{answer}{{% endif %}}"
    template = f"{{% for m in messages %}}{roles}{{% endfor %}}"
    prompt = read_chat_prompt(files(tmp_path, template), roles=("user", "assistant"))
    assert prompt == ChatPrompt("{query}|{document}", None, FORM, strips)


def test_roles_that_a_template_does_not_write_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not write the roles user and assistant"):
        read_chat_prompt(files(tmp_path, "{{ messages[0].content }}"), roles=("user", "assistant"))
