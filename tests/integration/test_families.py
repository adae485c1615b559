"""Each family that is served scores as its authors' library does, alone and in batches with other lengths.

`RERANKD_TEST_RECORD=1` writes the largest differences into docs/differences.json, which docs/models-supported.md shows.
"""

import asyncio
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from rerankd.config.named_models import served_registry
from rerankd.config.settings import SHIPPED_REGISTRY, Settings
from rerankd.domain import FloatArray, RerankRequest, ScoreOptions
from rerankd.engines.base import computed_here
from rerankd.recognition.families import recognise
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.recognised import Asked, Recognised
from rerankd.scorers.first import First
from rerankd.scorers.generative import Generative
from rerankd.scorers.graded import Graded
from rerankd.scorers.groupwise import Groupwise
from rerankd.scorers.templates import known_templates
from rerankd.serving.assembly import load_parts, running_service
from rerankd.tasks.sample import seeds_of
from rerankd.telemetry.observer import Silent
from tests.integration.test_poisoned_folders import build_modular, build_qwen3_classifier
from tests.oracles import hold
from tests.registry_files import write_registry
from tests.tiny_causal import (
    CAUSAL_FAMILIES,
    FIRST_TEMPLATES,
    build_classifier,
    build_jina_v3,
    build_nemotron,
    build_qwen2,
    build_qwen3_vl,
    build_rank1,
)
from tests.tiny_layer_wise import LAYERS, build_gemma, build_minicpm
from tests.tiny_models import CORPUS, FAMILIES, build_bert, build_gte, build_jina_v2, build_provence
from tests.tiny_seq2seq import build_mt5, build_t5, build_untied_t5
from tests.tiny_vectors import (
    bi_encoder,
    bi_encoder_scores,
    multi_vector,
    multi_vector_scores,
    sparse_encoder,
    sparse_scores,
)
from tests.tokenizer_folders import SHIPPED_TEMPLATES
from tests.transcriptions import (
    bge_gemma_logits,
    drawn,
    duot5_sums,
    e2rank_scores,
    first_logits,
    first_step_logits,
    greedy_logprobs,
    gte_logits,
    in_chat,
    jina_v3_scores,
    lightweight_logits,
    minicpm_logits,
    mxbai_rerank_logits,
    nemotron_logits,
    plain_ids,
    plain_text,
    prompted_logits,
    provence_logits,
    qwen3_reranker_logits,
    qwen3_vl_logits,
    rank1_logits,
    rank_r1_messages,
    reward_logits,
    rm_r1_prompt,
)

pytestmark = pytest.mark.slow

QUERY = "Where is the capital of Austria, and how large is it?"
DOCUMENTS = ["y", *CORPUS[:3], " Vienna \n", "\n\nVienna.", CORPUS[7], " ".join(CORPUS[:4])]
OWN_CODE = {"AutoModelForSequenceClassification": "modeling.Own"}
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
# With the roles that sentence-transformers gives a pair, an instruction before them, and text behind the document.
ROLES = (
    "{% for m in messages if m['role'] == 'system' %}<|im_start|>system\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>user\n<Query>: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
    "<Document>: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
    "{{ ending }}<|im_end|>\n{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MONO = "Query: {query} Document: {document} Relevant:"
Scores = Callable[[Path], FloatArray]


def sigmoid(values: FloatArray) -> FloatArray:
    return (1 / (1 + np.exp(-values))).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """How a tiny model of a family is made, and what its scores are by somebody else: relevance, or with `raw` what is
    before the activation. `repository`: the name on the hub that it is known by.
    """

    family: str
    build: Callable[[Path], object]
    oracle: Scores
    repository: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    raw: bool = False
    name: str = ""


def by_sentence_transformers(folder: Path) -> FloatArray:
    from sentence_transformers import CrossEncoder  # noqa: PLC0415 - imports torch

    encoder = CrossEncoder(str(folder), device="cpu")
    # One by one: padding must not be what both agree in.
    scores = [encoder.predict([(QUERY, text)], show_progress_bar=False)[0] for text in DOCUMENTS]
    return np.asarray(scores, dtype=np.float32)


def log_odds(folder: Path) -> FloatArray:
    import torch  # noqa: PLC0415 - only slow tests have torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: PLC0415

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        logits = [model(**tokenizer(QUERY, text, return_tensors="pt", truncation=True)).logits[0] for text in DOCUMENTS]
    return np.asarray([float(row[1] - row[0]) for row in logits], dtype=np.float32)


def judge(*, ending: str = "", prompt: str | None = None, false: str | None = "no") -> Callable[[Path], object]:
    """As sentence-transformers saves a language model with answer tokens."""

    def build(folder: Path) -> None:
        from sentence_transformers import CrossEncoder  # noqa: PLC0415 - imports torch
        from sentence_transformers.base.modules import Transformer  # noqa: PLC0415
        from sentence_transformers.cross_encoder.modules import LogitScore  # noqa: PLC0415

        plain = CAUSAL_FAMILIES["qwen3"](folder / "plain")
        (plain / "chat_template.jinja").write_text(ROLES)
        chat = {"add_generation_prompt": True, "ending": ending}
        transformer = Transformer(
            str(plain), transformer_task="text-generation", processing_kwargs={"chat_template": chat}
        )
        ids = transformer.tokenizer.convert_tokens_to_ids
        prompts = {"prompts": {"own": prompt}, "default_prompt_name": "own"} if prompt else {}
        reads = LogitScore(ids("yes"), ids(false) if false else None)
        CrossEncoder(modules=[transformer, reads], device="cpu", **prompts).save(str(folder))
        shutil.rmtree(plain)

    return build


def prompted_classifier(folder: Path) -> None:
    """As sentence-transformers saves a classifier with a chat template."""
    from sentence_transformers import CrossEncoder  # noqa: PLC0415 - imports torch

    build_qwen3_classifier(folder / "plain")
    (folder / "plain" / "chat_template.jinja").write_text(ROLES)
    CrossEncoder(str(folder / "plain"), device="cpu").save(str(folder))
    shutil.rmtree(folder / "plain")


def converted_qwen3(folder: Path) -> None:
    """A Qwen3-Reranker whose answer tokens' rows were made a classifier's head of one output."""
    import torch  # noqa: PLC0415 - only slow tests have torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForSequenceClassification  # noqa: PLC0415

    plain = CAUSAL_FAMILIES["qwen3"](folder / "plain")
    tokenizer, judge = AutoTokenizer.from_pretrained(plain), AutoModelForCausalLM.from_pretrained(plain)
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    config = judge.config
    config.num_labels = 1
    classifier = Qwen3ForSequenceClassification(config)
    classifier.model.load_state_dict(judge.model.state_dict())
    with torch.no_grad():
        rows = judge.lm_head.weight
        classifier.score.weight.copy_((rows[yes] - rows[no])[None])
    classifier.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(plain / name, folder / name)


def of_the_original(folder: Path) -> FloatArray:
    return qwen3_reranker_logits(folder / "plain", QUERY, DOCUMENTS, instruction=WEB_SEARCH)


def camembert(folder: Path) -> None:
    """An XLM-R by another name."""
    FAMILIES["xlmr"](folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["CamembertForSequenceClassification"], "model_type": "camembert"}
    (folder / "config.json").write_text(json.dumps(config))


def graph_of(family: str, **config: Any) -> Callable[[Path], object]:
    """A graph beside a config that names a class of the authors' own; the original lies in `plain`."""

    def build(folder: Path) -> None:
        from rerankd.tools.exporting import export_classifier  # noqa: PLC0415 - imports torch

        export_classifier(FAMILIES[family](folder / "plain"), folder, precisions=["float32"])
        (folder / "golden.json").unlink()
        said = json.loads((folder / "config.json").read_text()) | config
        said = {key: value for key, value in said.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(said))

    return build


def of_the_torch_original(folder: Path) -> FloatArray:
    return by_sentence_transformers(folder / "plain")


def by_minicpm(folder: Path, *, layer: int) -> FloatArray:
    return minicpm_logits(folder, QUERY, DOCUMENTS, layer=layer)


def by_lightweight(folder: Path, *, layer: int) -> FloatArray:
    return lightweight_logits(folder, QUERY, DOCUMENTS, layer=layer)


def true_against(false: str, true: str, prompt: str = MONO) -> Scores:
    """The log-odds of monoT5's probability."""

    def scores(folder: Path) -> FloatArray:
        logits = first_step_logits(folder, prompt, QUERY, DOCUMENTS, tokens=[false, true]).astype(np.float64)
        log_true = logits[:, 1] - np.logaddexp(logits[:, 0], logits[:, 1])
        return np.asarray(log_true - np.log1p(-np.exp(log_true)), dtype=np.float32)

    return scores


# As their makers publish them: Llama 3's takes all space off its texts and names a day unless it is told one, Qwen 3's
# takes the lines before an answer off.
LLAMA_CHAT = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n<|eot_id|>{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
)
QWEN3_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n"
    "{{ m.content.lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)


def reward_model(family: str, chat: str) -> Callable[[Path], object]:
    def build(folder: Path) -> None:
        build_classifier(folder, family)
        (folder / "chat_template.jinja").write_text(chat)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        named = {"bos_token": "<|begin_of_text|>"} if family == "llama" else {}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | named))

    return build


_REWARD = "reward models, which judge how helpful an answer is and not whether a document is relevant"
_ZERANK = "<|im_start|>system\n{query}<|im_end|>\n<|im_start|>user\n{document}<|im_end|>\n<|im_start|>assistant\n"
_CTXL = (
    "Check whether a given document contains information helpful to answer the query.\n<Document> {document}\n"
    "<Query> {query} ??"
)

CASES = [
    Case("BERT and ELECTRA cross-encoders", FAMILIES["bert"], by_sentence_transformers),
    Case("RoBERTa and XLM-RoBERTa cross-encoders", FAMILIES["xlmr"], by_sentence_transformers),
    Case("ModernBERT cross-encoders", FAMILIES["modernbert"], by_sentence_transformers),
    Case("DeBERTa cross-encoders", FAMILIES["deberta"], by_sentence_transformers),
    Case("other encoders of transformers with a classifier's head", camembert, by_sentence_transformers),
    Case(
        "jina-reranker-v1",
        graph_of("bert", position_embedding_type="alibi", auto_map=OWN_CODE),
        of_the_torch_original,
    ),
    Case("jina-reranker-v2", build_jina_v2, of_the_torch_original),
    Case("jina-reranker-v2", graph_of("xlmr", model_type=None), of_the_torch_original, name="graph"),
    Case(
        "gte-multilingual-reranker",
        build_gte,
        lambda folder: gte_logits(folder, QUERY, DOCUMENTS),
        raw=True,
    ),
    Case(
        "Provence",
        build_provence,
        lambda folder: provence_logits(folder, QUERY, DOCUMENTS),
    ),
    Case(
        "XProvence",
        partial(build_provence, multilingual=True),
        lambda folder: provence_logits(folder, QUERY, DOCUMENTS),
    ),
    Case(
        "monoBERT",
        lambda folder: build_bert(folder, num_labels=2),
        log_odds,
        repository="castorini/monobert-large-msmarco",
        raw=True,
    ),
    Case(
        "language models with a classifier's head, trained on plain pairs",
        build_qwen3_classifier,
        by_sentence_transformers,
        options={"pairs": "plain"},
    ),
    Case("language models with a classifier's head and a prompt", prompted_classifier, by_sentence_transformers),
    Case(
        "language models with a classifier's head and a prompt",
        converted_qwen3,
        of_the_original,
        repository="tomaarsen/Qwen3-Reranker-0.6B-seq-cls",
        raw=True,
        name="converted",
    ),
    Case(
        "nemotron rerankers",
        build_nemotron,
        lambda folder: nemotron_logits(folder, QUERY, DOCUMENTS),
        repository="nvidia/llama-nemotron-rerank-1b-v2",
    ),
    *(
        Case(
            _REWARD,
            reward_model(family, chat),
            lambda folder: reward_logits(folder, QUERY, DOCUMENTS),
            repository="Skywork/Skywork-Reward-V2-Llama-3.1-8B",
            name=name,
        )
        for family, chat, name in (("llama", LLAMA_CHAT, ""), ("qwen3", QWEN3_CHAT, "qwen3"))
    ),
    Case(
        "Rank1",
        build_rank1,
        lambda folder: rank1_logits(folder, QUERY, DOCUMENTS, tokens=9),
        repository="jhu-clsp/rank1-7b",
        options={"answer_tokens": 9},
        raw=True,
    ),
    Case("modular cross-encoders (ettin)", build_modular, by_sentence_transformers),
    *(
        Case(
            "modular cross-encoders (ettin)",
            partial(build_modular, pooling=pooling, residual=True),
            by_sentence_transformers,
            name=pooling,
        )
        for pooling in ("mean", "max", "lasttoken")
    ),
    *(
        Case(
            "embedding models (bi-encoders)",
            partial(bi_encoder, family=family, **how),
            partial(bi_encoder_scores, query=QUERY, documents=DOCUMENTS, passage=passage),
            name=name,
        )
        for name, family, passage, how in (
            ("", "bert", None, {"pooling": "mean", "truncate_dim": 20}),
            (
                "prompts apart",
                "modernbert",
                None,
                {
                    "pooling": ["cls", "weightedmean", "mean_sqrt_len_tokens"],
                    "include_prompt": False,
                    "dense": 24,
                    "prompts": {"query": "What answers: ", "document": "A text: "},
                    "similarity_fn_name": "dot",
                },
            ),
            (
                "passages",
                "xlmr",
                "passage",
                {
                    "pooling": "max",
                    "prompts": {"query": "query: ", "passage": "passage: "},
                    "similarity_fn_name": "euclidean",
                },
            ),
            (
                "language model",
                "qwen3",
                None,
                {
                    "pooling": "lasttoken",
                    "prompts": {"query": "Instruct: find it\nQuery:"},
                    "similarity_fn_name": "manhattan",
                },
            ),
        )
    ),
    *(
        Case(
            f"ColBERT ({layout})",
            partial(multi_vector, **how),
            partial(multi_vector_scores, query=QUERY, documents=DOCUMENTS),
            name=name,
        )
        for layout, name, how in (
            ("Stanford's layout", "", {"layout": "stanford", "query_maxlen": 40, "doc_maxlen": 64}),
            (
                "PyLate's layout, MultiVectorEncoder",
                "",
                {"layout": "pylate", "query_length": 24, "document_length": 60, "attend_to_expansion_tokens": True},
            ),
            (
                "PyLate's layout, MultiVectorEncoder",
                "without expansion",
                {"layout": "pylate", "family": "modernbert", "do_query_expansion": False, "skiplist_words": []},
            ),
            (
                "PyLate's layout, MultiVectorEncoder",
                "fixed",
                {
                    "prompts": {"query": "[Q] ", "document": "[D] "},
                    "query_expansion": {"strategy": "fixed", "attend": False, "token": None, "length": 40},
                    "document_length": 50,
                    "skiplist_words": [",", ".", "?"],
                },
            ),
            (
                "PyLate's layout, MultiVectorEncoder",
                "at least",
                {
                    "family": "modernbert",
                    "query_expansion": {"strategy": "min", "attend": True, "token": None, "length": 48},
                    "similarity_fn_name": "meanmaxsim",
                    "skiplist_words": [","],
                    "skiplist_tasks": ["query", "document"],
                },
            ),
        )
    ),
    *(
        Case(
            "SPLADE",
            partial(sparse_encoder, pooling=how),
            partial(sparse_scores, query=QUERY, documents=DOCUMENTS),
            name=name,
        )
        for name, how in (("", {}), ("sum", {"pooling_strategy": "sum", "activation_function": "log1p_relu"}))
    ),
    Case("judges with a chat template of their own", judge(), by_sentence_transformers),
    Case("judges with a chat template of their own", judge(ending="ing ??"), by_sentence_transformers, name="ending"),
    Case("judges with a chat template of their own", judge(prompt="Judge it."), by_sentence_transformers, name="told"),
    Case("judges with a chat template of their own", judge(false=None), by_sentence_transformers, name="one token"),
    Case(
        "Qwen3-Reranker",
        CAUSAL_FAMILIES["qwen3"],
        lambda folder: qwen3_reranker_logits(folder, QUERY, DOCUMENTS, instruction=WEB_SEARCH),
        repository="Qwen/Qwen3-Reranker-0.6B",
        raw=True,
    ),
    Case(
        "Qwen3-VL-Reranker",
        build_qwen3_vl,
        lambda folder: qwen3_vl_logits(
            folder,
            QUERY,
            DOCUMENTS,
            instruction="Given a search query, retrieve relevant candidates that answer the query.",
        ),
        repository="Qwen/Qwen3-VL-Reranker-2B",
        raw=True,
    ),
    Case(
        "mxbai-rerank-v2",
        CAUSAL_FAMILIES["qwen3"],
        lambda folder: mxbai_rerank_logits(folder, QUERY, DOCUMENTS, instruction=None),
        repository="mixedbread-ai/mxbai-rerank-base-v2",
        raw=True,
    ),
    Case(
        "bge-reranker-v2-gemma",
        CAUSAL_FAMILIES["gemma2"],
        lambda folder: bge_gemma_logits(folder, QUERY, DOCUMENTS),
        repository="BAAI/bge-reranker-v2-gemma",
        raw=True,
    ),
    Case(
        "zerank",
        CAUSAL_FAMILIES["qwen3"],
        lambda folder: prompted_logits(folder, _ZERANK, QUERY, DOCUMENTS, token="Yes"),
        repository="zeroentropy/zerank-1-small",
    ),
    Case(
        "zerank",
        CAUSAL_FAMILIES["qwen3"],
        # As it was before May 2026.
        lambda folder: sigmoid(prompted_logits(folder, _ZERANK, QUERY, DOCUMENTS, token="Yes") * np.float32(0.2)),
        repository="zeroentropy/zerank-1-small",
        options={"activation": {"scale": 0.2}},
        name="scaled",
    ),
    Case(
        "ctxl-rerank-v2",
        CAUSAL_FAMILIES["llama"],
        lambda folder: prompted_logits(folder, _CTXL, QUERY, DOCUMENTS, token=0),
        repository="ContextualAI/ctxl-rerank-v2-instruct-multilingual-1b",
    ),
    Case("layer-wise rerankers", build_minicpm, partial(by_minicpm, layer=LAYERS), raw=True),
    Case("layer-wise rerankers", build_gemma, partial(by_lightweight, layer=LAYERS), raw=True, name="lightweight"),
    *(
        Case("monoT5 and InRanker", build, true_against("▁false", "▁true"), repository=repository, raw=True, name=name)
        for build, repository, name in (
            (build_t5, "castorini/monot5-base-msmarco", ""),
            (build_untied_t5, "unicamp-dl/InRanker-base", "own head"),
        )
    ),
    Case(
        "mT5 on mMARCO",
        build_mt5,
        true_against("▁no", "▁yes"),
        repository="unicamp-dl/mt5-base-mmarco-v2",
        raw=True,
    ),
    Case(
        "mT5 on mMARCO",
        build_mt5,
        true_against("▁", "▁true"),
        repository="unicamp-dl/mt5-13b-mmarco-100k",
        raw=True,
        name="large",
    ),
    Case(
        "PTT5 and monoPTT5 (Portuguese)",
        build_t5,
        true_against("▁não", "▁sim"),
        repository="unicamp-dl/ptt5-base-pt-msmarco-100k-v2",
        raw=True,
    ),
    Case(
        "PTT5 and monoPTT5 (Portuguese)",
        build_t5,
        true_against("▁Não", "▁Sim", prompt="Pergunta: {query} Documento: {document} Relevante:"),
        repository="unicamp-dl/monoptt5-base",
        raw=True,
        name="mono",
    ),
    Case(
        "RankT5 in PyTorch",
        build_t5,
        lambda folder: first_step_logits(
            folder, "Query: {query} Document: {document}", QUERY, DOCUMENTS, tokens=["<extra_id_10>"]
        )[:, 0],
        repository="Soyoung97/RankT5-base",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family} {case.name}".strip())
@pytest.mark.usefixtures("_torch_on_one_thread")
async def test_a_family_scores_as_its_authors_library_does(case: Case, tmp_path: Path) -> None:
    folder = _place(tmp_path, case.repository)
    case.build(folder)
    found = recognise(
        ModelFiles.read(folder), Asked(options=case.options, templates=known_templates([SHIPPED_TEMPLATES]))
    )
    assert isinstance(found, Recognised), str(found)
    assert found.family == case.family
    together, alone = await _scores(folder, case, tmp_path)
    expected = case.oracle(folder)
    hold(case.family, np.concatenate([together, alone]), np.concatenate([expected, expected]), first=not case.name)


@pytest.mark.parametrize(("markup", "template"), FIRST_TEMPLATES.items())
@pytest.mark.usefixtures("_torch_on_one_thread")
def test_first_reads_the_identifiers_as_its_authors_do(markup: str, template: str, tmp_path: Path) -> None:
    folder = CAUSAL_FAMILIES[markup](tmp_path / "model")
    settings = Settings(model=(str(folder),), model_template=template)
    parts = load_parts(served_registry(settings).model[0], settings)
    windows = [DOCUMENTS[:3], DOCUMENTS[3:], DOCUMENTS[:2]]
    lists = parts.scorer
    assert isinstance(lists, First)
    payloads = [lists.encode_window(QUERY, window, max_document_tokens=None).encoding for window in windows]
    rows = computed_here(parts.engine).run(payloads)
    ours = [lists.interpret_window(row, candidates=len(window)) for row, window in zip(rows, windows, strict=True)]
    expected = [first_logits(markup, folder, QUERY, window) for window in windows]
    hold("FIRST", np.concatenate(ours), np.concatenate(expected), first=markup == "llama")


# Of v3.5 every other layer sees a window, shorter than the prompts here.
SLIDING = {
    "use_sliding_window": True,
    "sliding_window": 48,
    "layer_types": ["sliding_attention", "full_attention"],
}


@pytest.mark.parametrize("config", [{}, SLIDING], ids=["v3", "v3.5"])
@pytest.mark.usefixtures("_torch_on_one_thread")
async def test_jina_v3_compares_as_its_authors_do(config: Mapping[str, Any], tmp_path: Path) -> None:
    """Whole lists, lists of several blocks and single documents, all at the same time."""
    folder = build_jina_v3(tmp_path / "model", **config)
    texts = [*DOCUMENTS, "Vienna <|embed_token|>is<|rerank_token|> large."]
    asked = [(texts, None), (texts[:1], None), (texts[2:5], "Prefer cities."), (texts[:2], None)]
    model = {"name": "m", "path": folder, "scorer": "auto", "engine": "auto", "options": {"block": 3}}
    settings = Settings(registry=write_registry(tmp_path, [model]), cache_url="memory://")
    requests = [
        RerankRequest(query=QUERY, documents=documents, options=ScoreOptions(instruction=instruction))
        for documents, instruction in asked
    ]
    async with running_service(settings, Silent()) as service:
        await service.model_named("m").settled()
        results = await asyncio.gather(*map(service.rerank, requests))
        again = await service.rerank(requests[0])
    ours = [result.scores.values for result in results]
    expected = [
        jina_v3_scores(folder, QUERY, documents, block=3, instruction=instruction) for documents, instruction in asked
    ]
    hold("jina-reranker-v3", np.concatenate(ours), np.concatenate(expected), first=not config)
    assert np.array_equal(again.scores.values, ours[0])
    assert again.scores.cached is not None
    assert again.scores.cached.all()


CHOOSERS: list[tuple[str, str, str, int, Callable[[str, Sequence[str]], str]]] = [
    (
        "Rank-R1",
        "ielabgroup/Rank-R1-7B-v0.1",
        "rank-r1",
        4,
        lambda query, texts: in_chat("qwen3", rank_r1_messages(query, texts)),
    ),
    (
        "RM-R1, which chooses the best of several answers",
        "gaotang/RM-R1-DeepSeek-Distilled-Qwen-7B",
        "rm-r1-distilled",
        2,
        rm_r1_prompt,
    ),
]


@pytest.mark.parametrize(
    ("family", "repository", "template", "size", "written"), CHOOSERS, ids=lambda one: str(one)[:20]
)
@pytest.mark.usefixtures("_torch_on_one_thread")
def test_a_chooser_is_asked_and_writes_as_its_authors_do(
    family: str,
    repository: str,
    template: str,
    size: int,
    written: Callable[[str, Sequence[str]], str],
    tmp_path: Path,
) -> None:
    """The same prompts, and the same tokens with the same probabilities: alone, and beside longer prompts."""
    folder = build_qwen2(_place(tmp_path, repository))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    asked = Asked(options={"answer_tokens": 6}, templates=known_templates([SHIPPED_TEMPLATES]))
    found = recognise(ModelFiles.read(folder), asked)
    assert isinstance(found, Recognised), str(found)
    assert (found.family, found.template) == (family, template)
    entry = {"name": "m", "path": folder, "scorer": "auto", "engine": "auto", "options": {"answer_tokens": 6}}
    settings = Settings(registry=write_registry(tmp_path, [entry]))
    parts = load_parts(served_registry(settings).model[0], settings)
    lists, engine = parts.scorer, computed_here(parts.engine)
    assert isinstance(lists, Generative)
    windows = [[" ".join(text.split()) for text in DOCUMENTS[start : start + size]] for start in range(1, 5)]
    payloads = [lists.encode_window(QUERY, window, max_document_tokens=None).encoding for window in windows]
    expected = [plain_ids(folder, written(QUERY, window)) for window in windows]
    assert [payload.ids.tolist() for payload in payloads] == expected
    together, alone = engine.run(payloads), [engine.run([payload])[0] for payload in payloads]
    assert [one.text for one in together] == [one.text for one in alone]
    ours = [value for one in (*together, *alone) for value in one.logprobs]
    theirs = [value for ids in expected for value in greedy_logprobs(folder, ids, tokens=6)]
    hold(family, np.array(ours), np.array(theirs * 2), first=True)


@pytest.mark.parametrize(
    ("family", "repository", "answers", "opening", "ending"),
    [
        ("ERank", "Alibaba-NLP/ERank-4B", 1, "Given a query and a document, please give a relevance score", ""),
        ("Retro*", "ljw13/retro-star-qwen3-8b-0928", 3, "Here is the **relevance def", "<think>\n\n</think>\n\n"),
    ],
)
@pytest.mark.usefixtures("_torch_on_one_thread")
def test_a_judge_that_grades_is_asked_and_writes_as_its_authors_do(
    family: str, repository: str, answers: int, opening: str, ending: str, tmp_path: Path
) -> None:
    """The tokens that follow from the whole logits, with their probabilities: alone, and beside longer prompts."""
    folder = CAUSAL_FAMILIES["qwen3"](_place(tmp_path, repository))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    options = {"answer_tokens": 6, "samples": answers}
    entry = {"name": "m", "path": folder, "scorer": "auto", "engine": "auto", "options": options}
    parts = load_parts(
        served_registry(settings := Settings(registry=write_registry(tmp_path, [entry]))).model[0], settings
    )
    scorer, engine = parts.scorer, computed_here(parts.engine)
    assert isinstance(scorer, Graded)
    prompts = scorer.encode(QUERY, DOCUMENTS, max_document_tokens=None).encodings
    text = in_chat("qwen3", [{"role": "user", "content": "TEXT"}]).split("TEXT")
    for prompt, document in zip(prompts, DOCUMENTS, strict=True):
        begin, asked, end = f"{text[0]}{opening}", plain_text(folder, prompt.ids.tolist()), f"{text[1]}{ending}"
        assert asked.startswith(begin)
        assert asked.endswith(end)
        assert QUERY in asked
        assert document in asked
        assert plain_ids(folder, asked) == prompt.ids.tolist()
    together, alone = engine.run(prompts), [engine.run([prompt])[0] for prompt in prompts]
    assert [[one.text for one in sampled.answers] for sampled in together] == [
        [one.text for one in sampled.answers] for sampled in alone
    ]
    sampling = scorer.task.sampling
    theirs: list[float] = []
    written: list[int] = []
    for prompt, seed in zip(prompts, seeds_of(prompts), strict=True):
        if not sampling.temperature:
            logprobs = [greedy_logprobs(folder, prompt.ids.tolist(), tokens=6)]
        else:
            numbers = [np.random.default_rng([seed, answer]).random(6).tolist() for answer in range(answers)]
            logprobs = [drawn(folder, prompt.ids.tolist(), one, temperature=0.6, top_k=40)[1] for one in numbers]
        theirs += [value for one in logprobs for value in one]
        written.append(sum(map(len, logprobs)))
    assert [sampled.written for sampled in together] == written
    ours = [value for sampled in (*together, *alone) for one in sampled.answers for value in one.logprobs or ()]
    hold(family, np.array(ours), np.array(theirs * 2), first=True)


@pytest.mark.usefixtures("_torch_on_one_thread")
def test_a_judge_of_groups_is_asked_and_writes_as_its_authors_do(tmp_path: Path) -> None:
    """The authors' prompts, and the tokens that follow from the whole logits: alone, and beside longer prompts."""
    folder = build_qwen2(_place(tmp_path, "AQ-MedAI/Diver-GroupRank-7B"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    entry = {"name": "m", "path": folder, "scorer": "auto", "engine": "auto", "options": {"answer_tokens": 6}}
    settings = Settings(registry=write_registry(tmp_path, [entry]))
    parts = load_parts(served_registry(settings).model[0], settings)
    scorer, engine = parts.scorer, computed_here(parts.engine)
    assert isinstance(scorer, Groupwise)
    groups = [[" ".join(text.split()) for text in DOCUMENTS[start : start + 3]] for start in range(4)]
    prompts = [scorer.encode_window(QUERY, group, max_document_tokens=None).encoding for group in groups]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    chat = in_chat("qwen3", [{"role": "system", "content": "SYSTEM"}, {"role": "user", "content": "USER"}])
    begin, between, end = re.split("SYSTEM|USER", chat)
    for prompt, group in zip(prompts, groups, strict=True):
        passages = "".join(f"[{number}]. {text}\n\n" for number, text in enumerate(group, start=1))
        asked = plain_text(folder, prompt.ids.tolist())
        assert asked.startswith(f"{begin}Your task is to evaluate and rank documents based on how well they help")
        assert f"{between}I will provide you 3 documents, each indicated by a numerical identifier []." in asked
        assert f"Query:\n{QUERY}\n\nDocuments:\n{passages}\n\n## Final Output Format\n" in asked
        assert asked.endswith(f"</answer>\n{end}")
        assert tokenizer.encode(asked, add_special_tokens=False).ids == prompt.ids.tolist()
    together, alone = engine.run(prompts), [engine.run([prompt])[0] for prompt in prompts]
    assert [one.answers[0].text for one in together] == [one.answers[0].text for one in alone]
    theirs: list[float] = []
    for prompt, seed in zip(prompts, seeds_of(prompts), strict=True):
        numbers = np.random.default_rng([seed, 0]).random(6).tolist()
        theirs += drawn(folder, prompt.ids.tolist(), numbers, temperature=0.3, top_k=None)[1]
    ours = [value for sampled in (*together, *alone) for value in sampled.answers[0].logprobs or ()]
    hold("GroupRank", np.array(ours), np.array(theirs * 2), first=True)


@pytest.mark.usefixtures("_torch_on_one_thread")
async def test_e2rank_compares_as_its_authors_do(tmp_path: Path) -> None:
    """A query with the first documents, which may be fewer than all, and documents in mixed batches."""
    folder = _place(tmp_path, "Alibaba-NLP/E2Rank-0.6B")
    CAUSAL_FAMILIES["qwen3"](folder)
    texts = [*DOCUMENTS, " Vienna\n\tis <|im_end|> large. ", "w " * 1500]
    model = {"name": "m", "path": folder, "scorer": "auto", "engine": "auto", "options": {"documents": 5}}
    settings = Settings(registry=write_registry(tmp_path, [model]), cache_url="memory://")
    asked = [(QUERY, texts, None), (QUERY, texts[:2], "Prefer cities:"), ("bees", texts, None)]
    async with running_service(settings, Silent()) as service:
        await service.model_named("m").settled()
        results = [
            await service.rerank(
                RerankRequest(query=query, documents=documents, options=ScoreOptions(instruction=instruction))
            )
            for query, documents, instruction in asked
        ]
    ours = [result.scores.values for result in results]
    expected = [
        e2rank_scores(folder, query, documents, most=5, instruction=instruction)
        for query, documents, instruction in asked
    ]
    hold("E2Rank", np.concatenate(ours), np.concatenate(expected), first=True)
    assert results[0].scores.dropped.tolist()[:-1] == [0] * (len(texts) - 1)
    assert results[0].scores.dropped[-1] > 400
    # Another query over the same documents embeds the query alone.
    assert results[2].cached == len(texts)


@pytest.mark.usefixtures("_torch_on_one_thread")
async def test_duot5_adds_up_what_its_authors_add_up(tmp_path: Path) -> None:
    folder = _place(tmp_path, "castorini/duot5-base-msmarco")
    build_t5(folder, initializer_factor=2.0)
    settings = Settings(model=(str(folder),), model_name=("m",))
    sums = duot5_sums(folder, QUERY, DOCUMENTS)
    async with running_service(settings, Silent()) as service:
        await service.model_named("m").settled()
        few, all_of_them = [
            sorted(
                (await service.rerank(RerankRequest(query=QUERY, documents=documents))).results,
                key=lambda one: one.index,
            )
            for documents in (DOCUMENTS[:3], DOCUMENTS)
        ]
    expected = [duot5_sums(folder, QUERY, DOCUMENTS[:3]) / 4, sums / (2 * len(DOCUMENTS) - 2)]
    ours = np.array([one.relevance_score for one in (*few, *all_of_them)])
    hold("duoT5", ours, np.concatenate(expected), first=True)


async def test_the_shipped_model_scores_its_golden_pairs() -> None:
    folder = SHIPPED_REGISTRY.parent / "minilm-qa"
    golden = json.loads((folder / "golden.json").read_text())
    settings = Settings(model=(str(folder),), cache_url="none://")
    async with running_service(settings, Silent()) as service:
        await service.model_named("minilm-qa").settled()
        for pair in golden["pairs"]:
            result = await service.rerank(RerankRequest(query=pair["query"], documents=[pair["document"]]))
            assert abs(result.results[0].value - pair["logit"]) <= golden["tolerance"]


def _place(root: Path, repository: str) -> Path:
    """A folder that the hub's client would give a repository's files."""
    name = f"models--{repository.replace('/', '--')}/snapshots/{'a' * 40}" if repository else "model"
    (root / name).mkdir(parents=True)
    return root / name


async def _scores(folder: Path, case: Case, tmp_path: Path) -> Sequence[FloatArray]:
    """Scores in the order of the documents: of one request with all of them, and of one for each."""
    model = {"name": "m", "path": folder, "scorer": "auto", "engine": "auto", "options": case.options}
    registry = write_registry(tmp_path, [model])
    async with running_service(Settings(registry=registry, cache_url="none://"), Silent()) as service:
        await service.model_named("m").settled()
        requests = [DOCUMENTS, *([document] for document in DOCUMENTS)]
        results = [
            (await service.rerank(RerankRequest(query=QUERY, documents=documents))).results for documents in requests
        ]
    together, *alone = [
        [one.value if case.raw else one.relevance_score for one in sorted(ranked, key=lambda one: one.index)]
        for ranked in results
    ]
    return np.array(together), np.array([values[0] for values in alone])
