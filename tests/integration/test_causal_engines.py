"""The engines `torch-causal` and `torch-generate` beside what the logits are: what is shared, refused and rounded."""

import re
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest

from rerankd.domain import FloatArray
from rerankd.engines import load_engine
from rerankd.engines.base import Engine, EngineSpec, LogitsEngine
from rerankd.errors import ConfigError, OutOfMemory
from rerankd.tasks.encoding import Encoding
from rerankd.tasks.generate import Generate, Generated, Prompt
from rerankd.tasks.read_tokens import ReadTokens
from tests.tiny_causal import CAUSAL_FAMILIES, build_llama, build_llama4, build_phi3, build_t5

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Folder = Callable[[str], Path]

TOKENS = (40, 41, 42, 50)
FAMILY = pytest.mark.parametrize("family", list(CAUSAL_FAMILIES))


def load(folder: Path, engine: str = "torch-causal", tokens: Sequence[int] = TOKENS, **options: Any) -> LogitsEngine:
    spec = EngineSpec(folder=folder, pad_id=0, task=ReadTokens(tuple(tokens)), options={"device": "cpu", **options})
    return load_engine(engine, spec)


def load_writer(folder: Path, **options: Any) -> Engine[Prompt, list[Generated]]:
    """Its texts are the ids that it writes, with blanks between them."""
    task = Generate(decode=lambda ids: " ".join(map(str, ids)))
    spec = EngineSpec(folder=folder, pad_id=0, task=task, options={"device": "cpu", **options})
    return load_engine("torch-generate", spec)


def prompts(count: int, *, max_tokens: int = 10_000) -> list[Prompt]:
    return [Prompt(encoding.ids, max_tokens) for encoding in random_encodings(count)]


def random_encodings(count: int, *, seed: int = 0) -> list[Encoding]:
    """Sequences of many lengths over two shared beginnings, some of nothing but the beginning."""
    generator = np.random.default_rng(seed)
    beginnings = [generator.integers(20, 250, length) for length in (70, 33)]
    encodings = []
    for number in range(count):
        beginning = beginnings[number % 2]
        rest = generator.integers(20, 250, int(generator.integers(0, 90)))
        ids = np.concatenate((beginning, rest)).astype(np.int64)
        encodings.append(Encoding(ids, len(beginning) if number % 5 else 0))
    return encodings


def plain(folder: Path, encodings: Sequence[Encoding]) -> FloatArray:
    import torch  # noqa: PLC0415 - only slow tests have torch
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - as above

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        rows = [
            model(input_ids=torch.from_numpy(encoding.ids)[None], use_cache=False).logits[0, -1, list(TOKENS)].numpy()
            for encoding in encodings
        ]
    return np.stack(rows)


@FAMILY
@pytest.mark.parametrize("options", [{}, {"share_prefixes": False}, {"prefix_tokens": 100}, {"attention": "eager"}])
def test_logits_do_not_depend_on_batches_or_on_what_is_shared(
    causal_folder: Folder, family: str, options: dict[str, Any]
) -> None:
    encodings = random_encodings(24)
    expected = plain(causal_folder(family), encodings)
    engine = load(causal_folder(family), **options)
    for size in (24, 5, 1):
        for start in range(0, 24, size):
            logits = engine.run(encodings[start : start + size])
            np.testing.assert_allclose(logits, expected[start : start + size], atol=2e-5)
    assert expected.std() > 0.1


def test_positions_that_a_batchs_longest_sequence_turns_are_computed_apart(tmp_path: Path) -> None:
    encodings = random_encodings(24)
    folder = build_phi3(tmp_path)
    expected = plain(folder, encodings)
    engine = load(folder)
    for size in (24, 5, 1):
        for start in range(0, 24, size):
            logits = engine.run(encodings[start : start + size])
            np.testing.assert_allclose(logits, expected[start : start + size], atol=2e-5)
    lengths = [len(encoding.ids) for encoding in encodings]
    assert min(lengths) < 80 < max(lengths)


def test_positions_that_what_was_read_before_turns_are_refused(tmp_path: Path) -> None:
    rotation = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    with pytest.raises(ConfigError, match='rope_type "dynamic" is not supported'):
        load(build_llama(tmp_path, rope_scaling=rotation))


def test_a_model_whose_tokens_see_what_follows_shares_no_beginning(tmp_path: Path) -> None:
    from transformers import BertGenerationConfig, BertGenerationDecoder  # noqa: PLC0415 - only slow tests have it

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertGenerationConfig(vocab_size=300, is_decoder=False, initializer_range=0.15, **sizes)
    BertGenerationDecoder(config).eval().save_pretrained(tmp_path)
    encodings = random_encodings(6)
    np.testing.assert_allclose(load(tmp_path).run(encodings), plain(tmp_path, encodings), atol=2e-5)


def test_a_beginning_is_computed_once(causal_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    from rerankd.engines.torch.prefill import Prefill  # noqa: PLC0415 - imports torch

    computed: list[int] = []
    run = Prefill.run

    def counting(self: Any, past: Any, rests: Any, **options: Any) -> Any:
        computed.append(sum(map(len, rests)))
        return run(self, past, rests, **options)

    engine = load(causal_folder("qwen3"))
    monkeypatch.setattr(Prefill, "run", counting)
    beginning = np.arange(20, 120)
    encodings = [Encoding(np.concatenate((beginning, [number])), 100) for number in range(30, 50)]
    engine.run(encodings[:10])
    assert sum(computed) <= 100 + 10 + 1
    computed.clear()
    engine.run(encodings[10:])
    assert sum(computed) == 10


def test_what_all_prompts_begin_with_is_shared_between_requests(
    causal_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rerankd.engines.torch.prefill import Prefill  # noqa: PLC0415 - imports torch

    engine = load(causal_folder("qwen3"))
    requests = [np.concatenate((np.arange(20, 120), np.full(10, 130 + number), [9, 8])) for number in range(4)]
    for ids in requests[:3]:
        engine.run([Encoding(ids, 110)])
    computed: list[int] = []
    run = Prefill.run

    def counting(self: Any, past: Any, rests: Any, **options: Any) -> Any:
        computed.append(sum(map(len, rests)))
        return run(self, past, rests, **options)

    monkeypatch.setattr(Prefill, "run", counting)
    engine.run([Encoding(requests[3], 110)])
    assert sum(computed) == 12


def test_a_store_forgets_what_was_used_least_recently() -> None:
    import torch  # noqa: PLC0415 - only slow tests have torch

    from rerankd.engines.torch.prefixes import PrefixStore  # noqa: PLC0415 - imports torch

    store = PrefixStore(max_tokens=100)
    states = [(torch.zeros(1, 1, 40, 1), torch.zeros(1, 1, 40, 1))]
    one, two, three = (np.full(40, number) for number in range(3))
    store.put(one, states)
    store.put(two, states)
    assert store.get(one) is states
    store.put(three, states)
    assert store.get(two) is None
    assert store.get(one) is states
    store.put(np.zeros(1000, dtype=np.int64), states)
    assert store.get(one) is None


def test_threads_that_share_an_engine_get_their_own_logits(causal_folder: Folder) -> None:
    engine = load(causal_folder("llama"))
    encodings = random_encodings(16)
    expected = plain(causal_folder("llama"), encodings)
    with ThreadPoolExecutor(4) as pool:
        for logits, wanted in zip(pool.map(lambda one: engine.run([one]), encodings * 3), [*expected] * 3):  # noqa: B905 - of one length
            np.testing.assert_allclose(logits[0], wanted, atol=2e-5)


def test_rounded_weights_stay_close_and_rows_are_float32(causal_folder: Folder) -> None:
    encodings = random_encodings(12)
    expected = plain(causal_folder("llama"), encodings)
    logits = load(causal_folder("llama"), precision="bfloat16").run(encodings)
    assert np.abs(logits - expected).max() < 0.2
    assert len(np.unique(logits)) == logits.size, "rows in bfloat16 would hold ties"


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_weights_are_rounded_while_loading(tmp_path: Path, quantization: str) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    # Blocks of 64 weights share a scale.
    folder = build_llama(tmp_path, hidden_size=128, intermediate_size=128, head_dim=32, initializer_range=0.05)
    encodings = random_encodings(6)
    expected = plain(folder, encodings)
    engine = load(folder, quantization=quantization)
    logits = engine.run(encodings)
    assert engine.name == f"torch-causal/cpu/float32/{quantization}"
    assert 0 < np.abs(logits - expected).max() < 1.5
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.8


def test_a_head_that_does_more_than_multiply_is_refused(
    causal_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rerankd.engines.torch.head_rows import HeadRows  # noqa: PLC0415 - imports torch

    monkeypatch.setattr(HeadRows, "logits", lambda self, hidden: hidden.float() @ self._rows.T * 2)
    with pytest.raises(ConfigError, match="its head does more than multiply"):
        load(causal_folder("llama"))


@pytest.mark.parametrize("engine", ["torch-causal", "torch-generate"])
def test_a_full_device_asks_for_smaller_batches_and_keeps_nothing(causal_folder: Folder, engine: str) -> None:
    import torch  # noqa: PLC0415 - only slow tests have torch

    def full(module: Any, inputs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    run: Callable[[], Sized] = (
        partial(load(causal_folder("llama")).run, random_encodings(3))
        if engine == "torch-causal"
        else partial(load_writer(causal_folder("llama"), max_new_tokens=3).run, prompts(3))
    )
    with torch.nn.modules.module.register_module_forward_pre_hook(full), pytest.raises(OutOfMemory) as caught:
        run()
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None, "its frames would hold the memory of the pass that failed"
    assert len(run()) == 3


@pytest.mark.parametrize(
    ("engine", "tokens", "options", "message"),
    [
        ("torch-causal", (10**6,), {}, "reads token 1000000, the model's head has"),
        ("torch-causal", TOKENS, {"precision": "int3"}, "engine 'torch-causal': precision"),
        ("torch-causal", TOKENS, {"device": "abacus"}, "unknown device 'abacus'"),
        ("torch-causal", TOKENS, {"device": "meta"}, "device 'meta' is not supported"),
        ("torch-causal", TOKENS, {"device": "cuda:63"}, "no such GPU"),
        ("torch-generate", TOKENS, {}, "'torch-generate' runs generate.*; set engine to one of: onnx"),
        ("torch-encoder", TOKENS, {}, "'torch-encoder' runs classify.*; set engine to one of: onnx, openvino"),
    ],
)
def test_what_cannot_be_loaded_says_what_to_change(
    causal_folder: Folder, engine: str, tokens: Sequence[int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(causal_folder("llama"), engine, tokens, **options)


def test_a_folder_without_all_weights_is_refused(causal_folder: Folder, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415 - only slow tests have it

    folder = Path(copytree(causal_folder("llama"), tmp_path / "less"))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lack lm_head\.weight: this is not a complete causal language model"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no weights in"):
        load(folder)


@pytest.mark.parametrize("engine", ["torch-causal", "torch-generate"])
def test_a_model_that_is_no_causal_language_model_is_refused_by_its_type(tmp_path: Path, engine: str) -> None:
    folder = build_t5(tmp_path / "t5")
    load_it = load if engine == "torch-causal" else load_writer
    with pytest.raises(ConfigError, match=r"\(model_type 't5'\): .*; engine 'torch-encoder' reads seq") as caught:
        load_it(folder)
    assert len(str(caught.value)) < 800, "transformers lists all models that it knows"


def test_a_causal_language_model_is_refused_as_an_encoder_decoder(causal_folder: Folder) -> None:
    with pytest.raises(ConfigError, match=r"\(model_type 'llama'\): .* 'torch-seq2seq' encoder-decoders"):
        load(causal_folder("llama"), "torch-seq2seq")


def test_a_model_without_a_decoder_of_its_own_is_refused_with_a_way_out(tmp_path: Path) -> None:
    folder = build_llama4(tmp_path / "llama4")
    with pytest.raises(ConfigError, match=r"model_type 'llama4_text' is not supported .*scorer = \"generative\""):
        load(folder)
    assert all(result.text for result in load_writer(folder).run(prompts(2, max_tokens=3))), "the way out leads there"


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_what_is_written_is_what_transformers_writes_greedily(causal_folder: Folder, family: str) -> None:
    import torch  # noqa: PLC0415 - only slow tests have torch
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - as above

    folder = causal_folder(family)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    asked = [*prompts(4), *prompts(1, max_tokens=3)]
    results = load_writer(folder, max_new_tokens=7).run(asked)
    for result, prompt in zip(results, asked, strict=True):
        ids, logprobs = prompt.ids.tolist(), []
        with torch.inference_mode():
            for _ in range(min(7, prompt.max_tokens)):
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
                ids.append(int(logits.argmax()))
                logprobs.append(float(logits.log_softmax(-1).max()))
        written = [(token, logprob) for token, logprob in zip(ids[len(prompt.ids) :], logprobs, strict=True) if token]
        assert result.text == " ".join(str(token) for token, _ in written)
        assert result.logprobs == pytest.approx([logprob for _, logprob in written], abs=1e-4)


def test_a_generative_model_orders_a_window(causal_folder: Folder) -> None:
    from rerankd.scorers import load_list_scorer  # noqa: PLC0415 - beside its only use
    from rerankd.scorers.base import ScorerSpec  # noqa: PLC0415 - as above
    from tests.tokenizer_folders import SHIPPED_TEMPLATES  # noqa: PLC0415 - as above

    folder = causal_folder("mistral")
    spec = ScorerSpec(folder=folder, templates=[SHIPPED_TEMPLATES], options={"template": "rank-zephyr"})
    scorer = load_list_scorer("generative", spec)
    prompt = scorer.encode_window("query", ["a", "b", "c"], max_document_tokens=None).encoding
    served = EngineSpec(folder=folder, pad_id=0, task=scorer.task, options={"device": "cpu", "max_new_tokens": 10})
    (noise,) = load_engine("torch-generate", served).run([prompt])
    assert noise.text
    assert not {"1", "2", "3"} & set(re.findall(r"\w+", noise.text))
    assert scorer.interpret_window(noise, candidates=3).tolist() == [0, 0, 0]
    assert scorer.interpret_window(Generated("[2] > [3] > [1]"), candidates=3).tolist() == [-2, 0, -1]
