"""`rerankd import`: a GGUF file becomes a folder that scores as the file does, or it is refused by name."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from typer.testing import CliRunner

from rerankd.cli import cli
from rerankd.config.named_models import served_registry
from rerankd.config.settings import Settings
from rerankd.domain import FloatArray
from rerankd.engines.base import computed_here
from rerankd.errors import ConfigError
from rerankd.scorers.yes_no import YesNo
from rerankd.serving.assembly import load_parts
from rerankd.serving.sources import Hub, find_folder
from rerankd.tools.importing import import_gguf
from tests.conftest import Built
from tests.gguf_files import write_gguf
from tests.integration.test_families import DOCUMENTS, QUERY
from tests.oracles import hold
from tests.tiny_causal import build_llama, build_qwen2, build_qwen3
from tests.tiny_models import CORPUS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_torch_on_one_thread")]

FAMILY = "GGUF files of Llama, Qwen2 and Qwen3 models, converted by `rerankd import`"
PROMPT = "Query: {query}\nDocument: {document}\nrelevance:"
TEMPLATE = f'method = "yes-no"\nprompt = [{json.dumps(PROMPT)}]\npositive = "yes"\nactivation = "identity"\n'
BUILDERS: Mapping[str, Callable[[Path], Path]] = {"llama": build_llama, "qwen2": build_qwen2, "qwen3": build_qwen3}
NOT_CONVERTED = "not converted.*serve the repository"


@pytest.fixture
def model_of(built: Built) -> Callable[[str], Path]:
    return lambda family: built(f"{family}-for-gguf", BUILDERS[family])


@pytest.fixture
def qwen3(model_of: Callable[[str], Path]) -> Path:
    return model_of("qwen3")


def by_transformers(file: Path, original: Path, tokenizer: Tokenizer, texts: list[str]) -> FloatArray:
    """The logit of "yes" among those of the whole vocabulary, of the file's weights as transformers reads them. It does
    not read how wide the heads of a Qwen3 are, so the sizes are the original's.
    """
    import torch  # noqa: PLC0415 - only slow tests have torch
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - as above

    config = AutoConfig.from_pretrained(original)
    read = {"gguf_file": file.name, "config": config, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(file.parent, **read).eval()
    rows = [torch.tensor([tokenizer.encode(text).ids]) for text in texts]
    with torch.inference_mode():
        logits = [model(input_ids=row).logits[0, -1, tokenizer.token_to_id("yes")] for row in rows]
    return np.array(logits, dtype=np.float32)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "F32"), ("llama", "Q8_0"), ("qwen2", "F16"), ("qwen2", "Q4_1"), ("qwen3", "BF16"), ("qwen3", "Q5_0")],
)
def test_a_converted_file_scores_as_the_file_does(
    family: str, kind: str, model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    file = write_gguf(model_of(family), tmp_path / f"{kind}.gguf", kind=kind)
    import_gguf(file, tmp_path / "model")
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "own.toml").write_text(TEMPLATE)
    settings = Settings(model=(str(tmp_path / "model"),), model_template="own", registry=tmp_path / "registry.toml")
    parts = load_parts(served_registry(settings).model[0], settings)
    assert isinstance(parts.scorer, YesNo)
    encodings = parts.scorer.encode(QUERY, DOCUMENTS, max_document_tokens=None).encodings
    run = computed_here(parts.engine).run
    ours = np.concatenate([run(encodings), *(run([encoding]) for encoding in encodings)])
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    texts = [PROMPT.format(query=QUERY, document=document) for document in DOCUMENTS]
    expected = by_transformers(file, model_of(family), tokenizer, texts)
    hold(FAMILY, ours[:, 0], np.concatenate([expected, expected]), first=(family, kind) == ("llama", "F32"))


@pytest.mark.parametrize("family", BUILDERS)
def test_weights_and_tokens_are_those_of_the_original(
    family: str, model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    original = model_of(family)
    import_gguf(write_gguf(original, tmp_path / "f32.gguf"), tmp_path / "model")
    before, after = (load_file(folder / "model.safetensors") for folder in (original, tmp_path / "model"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    read, made = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (original, tmp_path / "model"))
    for text in (*CORPUS, "<|im_start|>user\n<think>x</think><|im_end|>"):
        assert made.decode(made.encode(text).ids, skip_special_tokens=False) == text or family == "llama"
    assert made.get_vocab() == read.get_vocab()
    assert (tmp_path / "model" / "chat_template.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "cats 2019  x", ["cats", "Ġ2019", "Ġ", "Ġx"]),
        ("smollm", "cats 2019  x", ["cats", "Ġ", "2", "0", "1", "9", "Ġ", "Ġx"]),
        ("llama-bpe", "cats 2019's", ["cats", "Ġ", "201", "9", "'s"]),
        ("qwen2", "cats 2019's", ["cats", "Ġ", "2", "0", "1", "9", "'s"]),
    ],
)
def test_texts_are_split_as_the_file_says(pre: str, text: str, pieces: list[str], qwen3: Path, tmp_path: Path) -> None:
    import_gguf(write_gguf(qwen3, tmp_path / "m.gguf", pre=pre), tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert tokenizer.pre_tokenizer is not None
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_a_text_begins_as_the_file_says(qwen3: Path, tmp_path: Path) -> None:
    says = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 1}
    import_gguf(write_gguf(qwen3, tmp_path / "m.gguf", says=says), tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert tokenizer.encode("yes").ids[0] == 1
    assert tokenizer.encode("yes", add_special_tokens=False).ids[0] != 1


def test_large_models_are_written_in_shards(qwen3: Path, tmp_path: Path) -> None:
    file = write_gguf(qwen3, tmp_path / "m.gguf")
    import_gguf(file, tmp_path / "whole")
    import_gguf(file, tmp_path / "model", largest_shard=30_000, precision="float16")
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    shards = {name: load_file(tmp_path / "model" / name) for name in set(index["weight_map"].values())}
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert len(shards) > 2
    for name, numbers in whole.items():
        assert np.array_equal(shards[index["weight_map"][name]][name], numbers.astype(np.float16))
    import_gguf(file, tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").glob("*.safetensors*")] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ({"general.architecture": "bert"}, "architecture 'bert', which is not converted"),
        ({"qwen3.pooling_type": 4}, f"qwen3.pooling_type = 4, .*{NOT_CONVERTED}"),
        ({"qwen3.rope.scaling.type": "yarn"}, f"qwen3.rope.scaling.type = 'yarn', .*{NOT_CONVERTED}"),
        ({"qwen3.rope.dimension_count": 4}, f"qwen3.rope.dimension_count = 4, .*{NOT_CONVERTED}"),
        ({"qwen3.block_count": 0}, "qwen3.block_count = 0; download it again"),
        ({"qwen3.block_count": 10**9}, "says that it has 1000000000 layers, and holds weights of 2; download it"),
        ({"qwen3.attention.head_count": 4.5}, "attention.head_count = 4.5; download it again"),
        (
            {"qwen3.attention.head_count": 3},
            r"q_proj.weight has the shape \[32, 32\], and by its sizes it has \[32, 24\]",
        ),
        ({"qwen3.embedding_length": 64}, r"embed_tokens.weight has the shape \[32, \d+\], .* \[64, \d+\]"),
        ({"qwen3.context_length": 2**32 - 1}, "context_length = 4294967295; download it again"),
        ({"tokenizer.ggml.model": "llama"}, "a tokenizer 'llama' .*not converted"),
        ({"tokenizer.ggml.pre": "tekken"}, "splits texts by 'tekken', which is not converted"),
        ({"split.count": 3}, "one of 3 parts; merge them"),
        ({"tokenizer.ggml.eos_token_id": 10**9}, "eos_token_id = 1000000000, and has [0-9]+ tokens; download it again"),
        ({"tokenizer.ggml.eos_token_id": "</s>"}, "eos_token_id = '</s>', and has"),
        ({"tokenizer.ggml.add_bos_token": 1}, "bos_token_id = None, and has"),
        ({"tokenizer.ggml.token_type": 3}, "token_type = 3; download it again"),
        ({"tokenizer.ggml.merges": ["! !"]}, "merges do not fit its vocabulary"),
    ],
)
def test_what_is_not_converted_is_refused(says: Mapping[str, Any], reason: str, qwen3: Path, tmp_path: Path) -> None:
    file = write_gguf(qwen3, tmp_path / "m.gguf", says=says)
    with pytest.raises(ConfigError, match=reason):
        import_gguf(file, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["rope_freqs.weight", "cls.output.weight", "blk.0.ffn_gate_exps.weight"])
def test_weights_that_would_be_dropped_are_refused(name: str, qwen3: Path, tmp_path: Path) -> None:
    file = write_gguf(qwen3, tmp_path / "m.gguf", tensors={name: np.ones((2, 32), dtype=np.float32)})
    with pytest.raises(ConfigError, match=f"holds {name}, which is not converted"):
        import_gguf(file, tmp_path / "model")


@pytest.mark.parametrize("bytes_kept", [0, 3, 40, 2000, -10_000])
def test_a_file_that_is_cut_off_is_refused(bytes_kept: int, qwen3: Path, tmp_path: Path) -> None:
    file = write_gguf(qwen3, tmp_path / "m.gguf")
    file.write_bytes(file.read_bytes()[:bytes_kept])
    with pytest.raises(ConfigError, match="download"):
        import_gguf(file, tmp_path / "model")


@pytest.mark.parametrize("metadata", [struct.pack("<IQ", 4, 2**60), struct.pack("<IQ", 9, 1) * 5000])
def test_a_list_that_is_longer_than_the_file_is_refused(metadata: bytes, tmp_path: Path) -> None:
    name = b"tokenizer.ggml.scores"
    head = struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, len(name)) + name
    (tmp_path / "m.gguf").write_bytes(head + struct.pack("<I", 9) + metadata)
    with pytest.raises(ConfigError, match="not a whole GGUF file"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "model")


def test_the_command_says_how_to_go_on(qwen3: Path, tmp_path: Path) -> None:
    file = write_gguf(qwen3, tmp_path / "m.gguf")
    done = CliRunner().invoke(cli, ["import", str(file), str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    assert f"rerankd serve {tmp_path / 'model'} --template NAME" in done.output


def test_serving_the_file_itself_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"convert it with `rerankd import .*m\.gguf FOLDER`"):
        find_folder("m.gguf", beside=tmp_path, hub=Hub(), patterns=())
    settings = Settings(model=(str(tmp_path),))
    with pytest.raises(ConfigError, match=r"holds m\.gguf, weights for llama\.cpp.*rerankd import"):
        load_parts(served_registry(settings).model[0], settings)
