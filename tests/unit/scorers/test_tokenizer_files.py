"""What is read of a model's folder, and how its tokenizer is used."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import pytest

from rerankd.scorers.tokenizer_files import TokenizerFolder, ids_of, load_tokenizer
from tests.tokenizer_folders import tokenizer_folder


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_ids_are_those_of_the_text_alone(tmp_path: Path, family: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder(tmp_path / family, family))
    for text in ("", "what is a window?", "größer  als\n[A] <s>"):
        assert ids_of(tokenizer, text).tolist() == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("stated", "usual", "expected"), [(8192, 4096, 8192), (None, 4096, 4096), (None, None, 512), (64, None, 64)]
)
def test_where_a_models_files_say_no_length_the_operator_and_the_template_do(
    tmp_path: Path, stated: int | None, usual: int | None, expected: int
) -> None:
    folder = tokenizer_folder(tmp_path, "gemma")
    (folder / "config.json").write_text('{"text_config": {"sliding_window": 1024}}')
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert TokenizerFolder.read(folder).length(stated, usual=usual) == expected


@pytest.mark.timed
def test_other_threads_go_on_while_a_long_text_is_tokenized(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder(tmp_path / "llama", "llama"))
    text = "".join(f"{number} windows " for number in range(15_000))
    with ThreadPoolExecutor(1) as pool:
        started = last = perf_counter()
        tokenizing = pool.submit(ids_of, tokenizer, text)
        longest_pause = 0.0
        while not tokenizing.done():
            now = perf_counter()
            longest_pause, last = max(longest_pause, now - last), now
    assert longest_pause < 0.6 * (last - started)
