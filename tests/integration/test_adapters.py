"""Adapters (LoRA): scores are peft's own, models share their base's weights and no batch, and others are refused."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest

from rerankd.config.named_models import served_registry
from rerankd.config.settings import Settings
from rerankd.domain import FloatArray, RerankRequest
from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec
from rerankd.errors import ConfigError
from rerankd.serving.assembly import load_parts, running_service
from rerankd.serving.choosing import refuse_unserved_folders
from rerankd.tasks.encoding import Encoding
from rerankd.tasks.read_tokens import ReadTokens
from rerankd.telemetry.observer import Silent
from tests.conftest import Built, Folder
from tests.registry_files import write_registry
from tests.tiny_models import CORPUS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("_torch_on_one_thread"),
    # peft asks transformers what it no longer likes to be asked
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

TOKENS = (300, 12, 45)
IDS = [np.arange(5, 5 + length, dtype=np.int64) for length in (9, 30, 17)]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 16, "target_modules": LINEAR},
    "rslora": {"r": 8, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": LINEAR,
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 6},
        "alpha_pattern": {"v_proj": 32, "layers.0.mlp.down_proj": 3},
    },
    "head": {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "lm_head"]},
    "norms": {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj"], "modules_to_save": ["input_layernorm"]},
}


def build_adapter(folder: Path, *, base: Path, seed: int = 0, classifier: bool = False, **config: Any) -> None:
    """As peft saves one, with both matrices random: in a new one B is zero, and so the adapter changes nothing."""
    import torch  # noqa: PLC0415 - only slow tests have torch
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - as above

    model = get_peft_model(_base(base, classifier=classifier), LoraConfig(**config))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(str(folder))


def by_peft(base: Path, adapter: Path, *, classifier: bool = False) -> FloatArray:
    """Logits of each sequence alone, of the adapter beside its model."""
    import torch  # noqa: PLC0415 - as above
    from peft import PeftModel  # noqa: PLC0415 - as above

    model = PeftModel.from_pretrained(_base(base, classifier=classifier), adapter).eval()
    with torch.inference_mode():
        logits = [model(input_ids=torch.from_numpy(ids)[None]).logits[0] for ids in IDS]
    return np.stack([(row if classifier else row[-1, list(TOKENS)]).numpy() for row in logits])


def _base(folder: Path, *, classifier: bool) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification  # noqa: PLC0415 - as above

    kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    return kind.from_pretrained(folder)


def scores(spec: EngineSpec, engine: str = "torch-causal") -> FloatArray:
    """Ours: in one batch, and each alone."""
    loaded = load_engine(engine, spec)
    encodings = [Encoding(ids, len(ids)) for ids in IDS]
    together: FloatArray = loaded.run(encodings)
    alone = np.concatenate([loaded.run([encoding]) for encoding in encodings])
    assert together == pytest.approx(alone, abs=1e-5)
    return together


@pytest.fixture(scope="module")
def qwen3(causal_folder: Folder) -> Path:
    return causal_folder("qwen3")


@pytest.fixture(scope="module")
def adapter_of(built: Built, qwen3: Path) -> Callable[[str], Path]:
    return lambda kind: built(f"adapter-{kind}", partial(build_adapter, base=qwen3, **KINDS[kind]))


@pytest.fixture
def spec(qwen3: Path) -> EngineSpec:
    return EngineSpec(folder=qwen3, pad_id=0, task=ReadTokens(TOKENS), options={"device": "cpu"})


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_peft_beside_the_weights_and_merged(
    kind: str, spec: EngineSpec, adapter_of: Callable[[str], Path]
) -> None:
    adapter = adapter_of(kind)
    expected = by_peft(spec.folder, adapter)
    beside = scores(replace(spec, adapter=adapter))
    merged = scores(replace(spec, adapter=adapter, options={**spec.options, "merge_adapter": True}))
    assert beside == pytest.approx(expected, abs=1e-5)
    assert merged == pytest.approx(expected, abs=1e-5)
    assert np.abs(expected - scores(spec)).max() > 0.01, "the adapter changes nothing: all would agree"


def test_a_classifier_may_bring_a_head_of_its_own(tiny_bert: Path, tmp_path: Path) -> None:
    config: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    build_adapter(tmp_path, base=tiny_bert, classifier=True, modules_to_save=["classifier"], **config)
    spec = EngineSpec(folder=tiny_bert, pad_id=0, options={"device": "cpu"})
    ours = scores(replace(spec, adapter=tmp_path), "torch-encoder")
    assert ours == pytest.approx(by_peft(tiny_bert, tmp_path, classifier=True), abs=1e-5)
    assert np.abs(ours - scores(spec, "torch-encoder")).max() > 0.01


def test_layers_that_store_their_weights_transposed_are_changed_too(tmp_path: Path) -> None:
    import torch  # noqa: PLC0415 - as above
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415 - as above

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=400, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    transposed: dict[str, Any] = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    build_adapter(tmp_path / "adapter", base=tmp_path / "base", r=4, lora_alpha=8, **transposed)
    spec = EngineSpec(
        folder=tmp_path / "base",
        adapter=tmp_path / "adapter",
        pad_id=0,
        task=ReadTokens(TOKENS),
        options={"device": "cpu"},
    )
    expected = by_peft(tmp_path / "base", tmp_path / "adapter")
    assert scores(spec) == pytest.approx(expected, abs=1e-5)
    assert scores(replace(spec, options={**spec.options, "merge_adapter": True})) == pytest.approx(expected, abs=1e-5)


def test_an_adapter_of_zeros_changes_nothing(
    spec: EngineSpec, adapter_of: Callable[[str], Path], tmp_path: Path
) -> None:
    zeros = _changed(adapter_of("lora"), tmp_path, tensors=lambda name, tensor: tensor * (0 if "lora_B" in name else 1))
    assert np.array_equal(scores(replace(spec, adapter=zeros)), scores(spec))


def test_models_over_one_base_share_its_memory(spec: EngineSpec, adapter_of: Callable[[str], Path]) -> None:
    plain, first, second = (
        load_engine("torch-causal", one)
        for one in (spec, replace(spec, adapter=adapter_of("lora")), replace(spec, adapter=adapter_of("rslora")))
    )
    used = [{weight.data_ptr() for weight in engine._model.parameters()} for engine in (plain, first, second)]  # type: ignore[attr-defined]
    assert used[0] < used[1]
    assert used[0] < used[2]
    assert used[1] & used[2] == used[0]


def test_an_adapter_of_another_model_ends_serve_at_once(
    qwen3: Path, adapter_of: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = copytree(adapter_of("lora"), tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/other"}))
    with pytest.raises(ConfigError, match="names 'org/other' as the model that it changes"):
        refuse_unserved_folders(Settings(model=str(qwen3), model_template="qwen3-reranker", model_adapter=str(adapter)))


async def test_models_over_one_base_are_served_side_by_side(
    qwen3: Path, adapter_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """With a cache: what one of them answered is no answer of another."""
    entry = {"scorer": "yes-no", "engine": "torch-causal", "path": qwen3, "options": {"template": "qwen3-reranker"}}
    models = [
        {"name": "plain", **entry},
        *(
            {"name": kind, "adapter": adapter_of(kind), "adapter_of": str(qwen3), **entry}
            for kind in ("lora", "rslora")
        ),
    ]
    async with running_service(Settings(registry=write_registry(tmp_path, models)), Silent()) as service:
        for model in service.models:
            await model.settled()
        asked = [
            RerankRequest(query="capital of France", documents=CORPUS[number:], model=model)
            for number in range(4)
            for model in ("plain", "lora", "rslora")
        ]
        mixed = [result.results for result in await asyncio.gather(*map(service.rerank, asked))]
    for number in range(3):
        one = [{**entry, "name": "m", **{key: models[number][key] for key in ("adapter", "adapter_of") if number}}]
        async with running_service(
            Settings(registry=write_registry(tmp_path, one), cache_url="none://"), Silent()
        ) as it:
            await it.model_named("m").settled()
            alone = (await it.rerank(replace(asked[number], model=None))).results
        ours = {ranked.index: ranked.value for ranked in mixed[number]}
        assert {ranked.index: ranked.value for ranked in alone} == pytest.approx(ours, abs=1e-5), number
    values = [{ranked.index: ranked.value for ranked in results} for results in mixed[:3]]
    assert values[0] != pytest.approx(values[1], abs=0.01)
    assert values[1] != pytest.approx(values[2], abs=0.01)


def test_another_adapter_is_another_fingerprint(qwen3: Path, adapter_of: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    copytree(adapter_of("lora"), adapter)
    settings = Settings(
        model=(str(qwen3),), model_adapter=str(adapter), model_adapter_of=str(qwen3), model_template="qwen3-reranker"
    )
    before = load_parts(served_registry(settings).model[0], settings)
    _changed(adapter, adapter, tensors=lambda _name, tensor: tensor * 2)
    after = load_parts(served_registry(settings).model[0], settings)
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize("named", ["beside", "absolute"])
def test_the_folder_of_an_adapter_finds_its_model(
    named: str, qwen3: Path, adapter_of: Callable[[str], Path], tmp_path: Path
) -> None:
    copytree(qwen3, tmp_path / "base")
    name = "base" if named == "beside" else str(tmp_path / "base")
    adapter = _changed(adapter_of("lora"), tmp_path / "adapter", base_model_name_or_path=name)
    settings = Settings(model=(str(adapter),), model_template="qwen3-reranker")
    [spec] = served_registry(settings).model
    assert (spec.name, spec.path, spec.adapter) == ("adapter", str(tmp_path / "base"), str(adapter))
    assert load_parts(spec, settings).engine.name == "torch-causal/cpu/float32"


def test_the_folder_of_an_adapter_whose_model_is_not_there_says_how_to_name_it(
    adapter_of: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = _changed(adapter_of("lora"), tmp_path / "adapter", base_model_name_or_path="/nowhere/at all")
    with pytest.raises(ConfigError, match="rerankd serve MODEL --adapter"):
        served_registry(Settings(model=(str(adapter),)))


def test_an_adapter_of_another_model_is_refused_by_its_name(
    qwen3: Path, adapter_of: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = _changed(adapter_of("lora"), tmp_path / "adapter", base_model_name_or_path="Qwen/Qwen3-8B")
    named = Settings(model=(str(qwen3),), model_adapter=str(adapter), model_template="qwen3-reranker")
    with pytest.raises(ConfigError, match=r"names 'Qwen/Qwen3-8B' .*adapter_of = 'Qwen/Qwen3-8B'"):
        load_parts(served_registry(named).model[0], named)
    said = named.model_copy(update={"model_adapter_of": "Qwen/Qwen3-8B"})
    assert load_parts(served_registry(said).model[0], said).engine is not None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "use_dora = True, which is not applied: merge"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3'; only LORA"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa', which changes the model's own weights"),
        ({"lora_bias": True}, "lora_bias = True, which is not applied"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"something_new": 1}, "something_new = 1, which is not applied"),
        ({"r": 8}, "says rank 8 for .*, and its matrices have 4"),
        ({"r": 0}, "r = 0"),
        ({"alpha_pattern": {"(": 1}}, "a pattern of modules cannot be read"),
    ],
)
def test_what_is_not_applied_is_refused(
    config: Mapping[str, Any], reason: str, spec: EngineSpec, adapter_of: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = _changed(adapter_of("lora"), tmp_path, **config)
    with pytest.raises(ConfigError, match=reason):
        load_engine("torch-causal", replace(spec, adapter=adapter))


@pytest.mark.parametrize(
    ("rename", "reason"),
    [
        (
            ("layers.0.self_attn.q_proj.lora_A", "layers.0.self_attn.q_proj.magnitude"),
            "which Qwen3ForCausalLM does not",
        ),
        (("layers.0.self_attn.q_proj.lora_A", "layers.0.norm.lora_A"), "lacks one of the two matrices"),
        (("layers.1.", "layers.7."), "has no linear layer of that name"),
        (("self_attn.o_proj", "mlp.down_proj.x"), "has no linear layer of that name"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    rename: tuple[str, str], reason: str, spec: EngineSpec, adapter_of: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = _changed(adapter_of("lora"), tmp_path, names=lambda name: name.replace(*rename))
    with pytest.raises(ConfigError, match=reason):
        load_engine("torch-causal", replace(spec, adapter=adapter))


def test_pickled_adapters_and_other_engines_are_refused(
    spec: EngineSpec, adapter_of: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = _changed(adapter_of("lora"), tmp_path)
    with pytest.raises(ConfigError, match="engine 'onnx' takes no adapter; set engine to one of: torch-encoder"):
        load_engine("onnx", replace(spec, adapter=adapter))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ConfigError, match=r"pickled adapters .* are never read"):
        load_engine("torch-causal", replace(spec, adapter=adapter))


def _changed(
    source: Path,
    target: Path,
    *,
    tensors: Callable[[str, Any], Any] = lambda _name, tensor: tensor,
    names: Callable[[str], str] = lambda name: name,
    **config: Any,
) -> Path:
    """A copy of an adapter with other settings, weights or names of weights."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415 - as above

    weights = load_file(source / "adapter_model.safetensors")
    said = json.loads((source / "adapter_config.json").read_text()) | config
    target.mkdir(exist_ok=True)
    (target / "adapter_config.json").write_text(json.dumps(said))
    changed = {names(name): tensors(name, tensor).clone() for name, tensor in weights.items()}
    save_file(changed, target / "adapter_model.safetensors")
    return target
