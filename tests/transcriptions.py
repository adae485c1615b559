"""The methods once more, as their papers and model cards say them: plain transformers, one prompt at a time, the whole
vocabulary, no batch, no padding, nothing shared, none of our code. What ours gives is compared with this.
"""

import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rerankd.domain import FloatArray
from tests.tiny_causal import JINA_MARKERS
from tests.tiny_models import MAX_LENGTH

T = TypeVar("T")

_SYSTEM: Final = (
    "You are RankLLM, an intelligent assistant that can rank passages based on their relevancy to the query"
)
_TASK: Final = (
    "Rank the {count} passages above based on their relevance to the search query. All the passages should be included "
    "and listed using identifiers, in descending order of relevance. The output format should be [] > [], e.g., "
    "[B] > [A], Answer concisely and directly and only respond with the ranking results, do not say any word or "
    "explain."
)
_BGE_TASK: Final = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
# The chat templates as the models' makers publish them, for one system and one user message.
CHATS: Final = {
    "llama": (
        "{% for m in messages %}{% if loop.first %}<|begin_of_text|>{% endif %}<|start_header_id|>{{ m['role'] }}"
        "<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "mistral": (
        "<s>{% for m in messages[1:] %}[INST] {{ messages[0]['content'] }}\n\n{{ m['content'] }}[/INST]{% endfor %}"
    ),
    "qwen3": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
}


def first_logits(family: str, folder: Path, query: str, documents: Sequence[str]) -> FloatArray:
    """FIRST with letters: the prompt, "[" behind it, the letters' logits at the last position; shape [documents]."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(documents)]
    words = 6000 // len(documents)
    count = len(documents)
    lines = [
        f"[{letter}] {_without_identifiers(' '.join(document.split()[:words]))}\n"
        for letter, document in zip(letters, documents, strict=True)
    ]
    question = _without_identifiers(" ".join(query.split()))
    user = (
        f"I will provide you with {count} passages, each indicated by an alphabetical identifier []. Rank the passages "
        f"based on their relevance to the search query: {question}.\n{''.join(lines)}Search Query: {question}.\n"
        + _TASK.replace("{count}", str(count))
    )
    tokenizer, _ = _loaded(folder)
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": user}]
    prompt = tokenizer.apply_chat_template(
        messages, chat_template=CHATS[family], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    # rank_llm trained its Mistral on rendered prompts that the tokenizer added its own first token to, and ranks so.
    ids = tokenizer(f"{prompt}[", add_special_tokens=family == "mistral").input_ids
    letter_ids = [tokenizer(f"{prompt}[{letter}", add_special_tokens=False).input_ids[-1] for letter in letters]
    return _logits_after(folder, ids)[letter_ids]


def qwen3_reranker_logits(folder: Path, query: str, documents: Sequence[str], *, instruction: str) -> FloatArray:
    """The model card's procedure; log-odds of its probability of "yes", shape [documents]."""
    ratings = {"no": 0.0, "yes": 1.0}
    probabilities = qwen3_reranker_grades(folder, query, documents, instruction=instruction, ratings=ratings)
    return np.log(probabilities / (1 - probabilities)).astype(np.float32)


def qwen3_reranker_grades(
    folder: Path, query: str, documents: Sequence[str], *, instruction: str, ratings: Mapping[str, float]
) -> NDArray[np.float64]:
    """The same prompt; the expectation of ratings by their tokens' probabilities, shape [documents]."""
    import torch  # noqa: PLC0415 - only slow tests have torch

    tokenizer, _ = _loaded(folder)
    prefix = tokenizer.encode(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        add_special_tokens=False,
    )
    suffix = tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", add_special_tokens=False)
    ids = [tokenizer.convert_tokens_to_ids(word) for word in ratings]
    grades = torch.tensor(list(ratings.values()), dtype=torch.float64)
    values = []
    for document in documents:
        text = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        body = tokenizer(text, add_special_tokens=False).input_ids
        logits = torch.from_numpy(_logits_after(folder, prefix + body + suffix)[ids]).double()
        values.append((torch.nn.functional.log_softmax(logits, dim=0).exp() * grades).sum().item())
    return np.array(values)


def mxbai_rerank_logits(folder: Path, query: str, documents: Sequence[str], *, instruction: str | None) -> FloatArray:
    """mxbai-rerank-v2 as its makers' package reads it: logit("1") - logit("0"), shape [documents]."""
    tokenizer, _ = _loaded(folder)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    system = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    task = (
        "You are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
    )
    before = ids(f"{system}<|im_start|>user\n")
    behind = ids("\n") + ids(task) + ids("<|im_end|>\n<|im_start|>assistant\n")
    question = ids("\n".join([*([f"instruction: {instruction}"] if instruction else []), f"query: {query}"]))
    one, zero = ids("1")[0], ids("0")[0]
    values = []
    for document in documents:
        logits = _logits_after(folder, [*before, *question, *ids("\n"), *ids(f"document: {document}"), *behind])
        values.append(logits[one] - logits[zero])
    return np.array(values, dtype=np.float32)


def bge_gemma_logits(folder: Path, query: str, documents: Sequence[str]) -> FloatArray:
    """bge-reranker-v2-gemma as its model card reads it: the logit of "Yes", shape [documents]."""
    tokenizer, _ = _loaded(folder)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    before = [tokenizer.convert_tokens_to_ids("<bos>"), *ids(f"A: {query}"), *ids("\n")]
    behind = [*ids("\n"), *ids(_BGE_TASK)]
    yes = ids("Yes")[0]
    rows = [_logits_after(folder, [*before, *ids(f"B: {document}"), *behind])[yes] for document in documents]
    return np.array(rows, dtype=np.float32)


def prompted_logits(folder: Path, prompt: str, query: str, documents: Sequence[str], *, token: str | int) -> FloatArray:
    """One token's logit behind a prompt that is tokenized as one text, shape [documents]."""
    tokenizer, _ = _loaded(folder)
    number = token if isinstance(token, int) else tokenizer.convert_tokens_to_ids(token)
    values = []
    for document in documents:
        text = prompt.replace("{query}", query).replace("{document}", document)
        values.append(_logits_after(folder, tokenizer(text, add_special_tokens=False).input_ids)[number])
    return np.array(values, dtype=np.float32)


def first_step_logits(
    folder: Path, prompt: str, query: str, documents: Sequence[str], *, tokens: Sequence[str]
) -> FloatArray:
    """What an encoder-decoder would write first, as monoT5's makers read it: the logits of some word pieces behind the
    padding token, shape [documents, tokens]. Its tokenizer ends the prompt.
    """
    import torch  # noqa: PLC0415 - only slow tests have torch

    tokenizer, model = _seq2seq(folder)
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    rows = []
    for document in documents:
        inputs = tokenizer(prompt.format(query=query, document=document), return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs, decoder_input_ids=torch.tensor([[tokenizer.pad_token_id]])).logits
        rows.append(logits[0, 0, ids].numpy())
    return np.stack(rows)


def gte_logits(folder: Path, query: str, documents: Sequence[str]) -> FloatArray:
    """gte-multilingual-reranker as its authors' code computes it from the tensors that they name, shape [documents]."""
    import torch  # noqa: PLC0415 - as above
    from safetensors.torch import load_file  # noqa: PLC0415 - as above
    from torch.nn import functional  # noqa: PLC0415 - as above

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    tokenizer.enable_truncation(config["max_position_embeddings"], strategy="only_second")
    weights = load_file(folder / "model.safetensors")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size, factor = hidden // heads, config["rope_scaling"]["factor"]

    def dense(vectors: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(vectors, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(vectors: torch.Tensor, name: str) -> torch.Tensor:
        gain, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return functional.layer_norm(vectors, (hidden,), gain, shift, config["layer_norm_eps"])

    def turned(vectors: torch.Tensor) -> torch.Tensor:
        """With the positions' angles; shape [heads, tokens, size]."""
        base = config["rope_theta"] * factor
        frequencies = 1 / base ** (torch.arange(0, size, 2) / size) / factor ** (2 / size)
        angles = (torch.arange(vectors.shape[1])[:, None] * frequencies).repeat(1, 2)
        one, other = vectors.chunk(2, dim=-1)
        return vectors * angles.cos() + torch.cat((-other, one), dim=-1) * angles.sin()

    def logit(ids: Sequence[int]) -> float:
        embeddings = "new.embeddings"
        state = weights[f"{embeddings}.word_embeddings.weight"][list(ids)]
        state = norm(state + weights[f"{embeddings}.token_type_embeddings.weight"][0], f"{embeddings}.LayerNorm")
        for layer in (f"new.encoder.layer.{number}" for number in range(config["num_hidden_layers"])):
            query, key, value = (
                part.view(-1, heads, size).transpose(0, 1)
                for part in dense(state, f"{layer}.attention.qkv_proj").chunk(3, dim=-1)
            )
            attention = torch.softmax(turned(query) @ turned(key).transpose(1, 2) / size**0.5, dim=-1)
            mixed = dense((attention @ value).transpose(0, 1).reshape(-1, hidden), f"{layer}.attention.o_proj")
            state = norm(state + mixed, f"{layer}.attn_ln")
            up, gate = dense(state, f"{layer}.mlp.up_gate_proj").chunk(2, dim=-1)
            state = norm(state + dense(functional.gelu(gate) * up, f"{layer}.mlp.down_proj"), f"{layer}.mlp_ln")
        return float(dense(torch.tanh(dense(state[0], "new.pooler.dense")), "classifier"))

    return np.array([logit(tokenizer.encode(query, text).ids) for text in documents], dtype=np.float32)


@dataclass(frozen=True)
class Pruned:
    """What Provence's authors make of a document: its score, and which of its sentences are kept."""

    score: float
    kept: list[bool]


def provence(
    folder: Path,
    query: str,
    documents: Sequence[Sequence[str]],
    *,
    threshold: float,
    title: bool = True,
    max_length: int = MAX_LENGTH,
) -> list[Pruned]:
    """Provence's and XProvence's procedure on documents, each a list of its sentences. Where the authors split texts
    with NLTK the caller splits them.
    """
    import torch  # noqa: PLC0415 - as above
    from safetensors.torch import load_file  # noqa: PLC0415 - as above
    from transformers import AutoConfig, AutoModel  # noqa: PLC0415 - as above

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    multilingual = config["model_type"] == "XProvence"
    prefix, model_type, separator = (
        ("roberta.", "xlm-roberta", "</s>") if multilingual else ("deberta.", "deberta-v2", "[SEP]")
    )
    kept = {key: value for key, value in config.items() if key not in ("auto_map", "model_type", "architectures")}
    weights = load_file(folder / "model.safetensors")
    encoder = AutoModel.from_config(AutoConfig.for_model(model_type, **kept)).eval()
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    encoder.load_state_dict(own)

    def outputs(ids: list[int]) -> tuple[float, FloatArray]:
        output = encoder(input_ids=torch.tensor([ids]))
        if multilingual:
            pooled = output.pooler_output[0]
        else:
            dense = weights["pooler.dense.weight"] @ output.last_hidden_state[0, 0] + weights["pooler.dense.bias"]
            pooled = torch.nn.functional.gelu(dense)
        logits = output.last_hidden_state[0] @ weights["token_classifier.weight"].T + weights["token_classifier.bias"]
        kept = torch.softmax(logits, dim=-1)[:, 1].numpy()
        return float(weights["classifier.weight"][0] @ pooled + weights["classifier.bias"][0]), kept

    def ids_of(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    words = "".join(letter for letter in query.lower() if letter not in string.punctuation).split()
    first, *_, last = tokenizer.encode("a").ids
    beginning = [first, *ids_of(" ".join(words)), tokenizer.token_to_id(separator)]
    room = max_length - len(beginning) - 1
    found = []
    with torch.inference_mode():
        for sentences in documents:
            blocks: list[list[list[int]]] = [[]]
            for number, sentence in enumerate(sentences):
                ids = ids_of(f" {sentence}" if number else sentence)[:room]
                if blocks[-1] and sum(map(len, blocks[-1])) + len(ids) > room:
                    blocks.append([])
                blocks[-1].append(ids)
            decisions: list[bool] = []
            scores = []
            for number, block in enumerate(blocks):
                score, probabilities = outputs([*beginning, *(one for ids in block for one in ids), last])
                ends = len(beginning) + np.cumsum([len(ids) for ids in block])
                spans = zip([len(beginning), *ends[:-1]], ends, strict=True)
                chosen = [bool((probabilities[start:end] > threshold).mean() > threshold) for start, end in spans]
                if title and number == 0 and any(chosen):
                    chosen[0] = True
                scores.append(score)
                decisions += chosen
            found.append(Pruned(scores[0], decisions))
    return found


def provence_logits(folder: Path, query: str, documents: Sequence[str]) -> FloatArray:
    """The ranking scores, shape [documents]."""
    return np.array([one.score for one in provence(folder, query, [[text] for text in documents], threshold=0.5)])


def rank1_logits(
    folder: Path,
    query: str,
    documents: Sequence[str],
    *,
    tokens: int,
    answers: Sequence[str] = (" true", " false"),
    closing: str = "</think>",
) -> FloatArray:
    """Rank1 as its authors run it: a thought is written greedily until the answer, the answer's logits are those of its
    place. One that does not come to its end is cut, closed and asked. Log-odds, shape [documents].
    """
    tokenizer, _ = _loaded(folder)
    ids_of_answers = [tokenizer(answer, add_special_tokens=False).input_ids[0] for answer in answers]
    values = []
    for document in documents:
        prompt = (
            "Determine if the following passage is relevant to the query. Answer only with 'true' or 'false'.\n"
            f"Query: {query}\nPassage: {document}\n<think>"
        )
        begins = tokenizer(prompt).input_ids
        ids, logits, text = list(begins), np.zeros(0, dtype=np.float32), ""
        while len(ids) < len(begins) + tokens and not text.endswith(tuple(closing + answer for answer in answers)):
            logits = _logits_after(folder, ids)
            if int(logits.argmax()) == tokenizer.pad_token_id:
                break
            ids.append(int(logits.argmax()))
            text = tokenizer.decode(ids[len(begins) :])
        if not text.endswith(tuple(closing + answer for answer in answers)):
            thought = text.rstrip()
            if not thought.endswith((".", "!", "?")):
                last = max(thought.rfind("."), thought.rfind("!"), thought.rfind("?"))
                thought = thought if last == -1 else thought[: last + 1]
            logits = _logits_after(folder, tokenizer(f"{prompt}\n{thought.strip()}\n{closing}").input_ids)
        values.append(logits[ids_of_answers[0]] - logits[ids_of_answers[1]])
    return np.array(values, dtype=np.float32)


def nemotron_logits(folder: Path, query: str, documents: Sequence[str]) -> FloatArray:
    """llama-nemotron-rerank-1b-v2: every token sees all others, `score` of their mean over the temperature, shape
    [documents].
    """
    import torch  # noqa: PLC0415 - as above
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification  # noqa: PLC0415

    said = json.loads((folder / "config.json").read_text())
    config = LlamaConfig(**{key: value for key, value in said.items() if key not in ("model_type", "architectures")})
    tokenizer = AutoTokenizer.from_pretrained(folder, config=config)
    model = LlamaForSequenceClassification.from_pretrained(folder, config=config, attn_implementation="eager").eval()
    values = []
    for document in documents:
        ids = torch.tensor([tokenizer(f"question:{query} \n \n passage:{document}").input_ids])
        nothing_hidden = torch.zeros(1, 1, ids.shape[1], ids.shape[1])
        with torch.inference_mode():
            states = model.model(ids, attention_mask=nothing_hidden).last_hidden_state
            values.append(float(model.score(states.mean(dim=1))[0, 0] / said["temperature"]))
    return np.array(values, dtype=np.float32)


def reward_logits(folder: Path, query: str, documents: Sequence[str]) -> FloatArray:
    """Skywork-Reward-V2 by its card: the chat template over user and assistant, without the first token, which the
    tokenizer puts there itself; shape [documents].
    """
    import torch  # noqa: PLC0415 - as above
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: PLC0415 - as above

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    values = []
    for document in documents:
        messages = [{"role": "user", "content": query}, {"role": "assistant", "content": document}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        if tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token):
            text = text[len(tokenizer.bos_token) :]
        with torch.inference_mode():
            values.append(float(model(**tokenizer(text, return_tensors="pt")).logits[0][0]))
    return np.array(values, dtype=np.float32)


def jina_v3_scores(
    folder: Path, query: str, documents: Sequence[str], *, block: int, instruction: str | None = None
) -> FloatArray:
    """The cosines that jina-reranker-v3's `rerank` gives, a forward pass for each block; shape [documents]."""
    import torch  # noqa: PLC0415 - as above
    from safetensors.torch import load_file  # noqa: PLC0415 - as above
    from transformers import Qwen3Config, Qwen3Model  # noqa: PLC0415 - as above

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    weights = load_file(folder / "model.safetensors")
    model = Qwen3Model(Qwen3Config(**json.loads((folder / "config.json").read_text()))).eval()
    model.load_state_dict(
        {name.removeprefix("model."): tensor for name, tensor in weights.items() if name.startswith("model.")}
    )
    of_document, of_query = (tokenizer.token_to_id(marker) for marker in JINA_MARKERS)
    vectors, queries, weighted = [], [], []
    for start in range(0, len(documents), block):
        ids = torch.tensor(tokenizer.encode(_jina_v3_prompt(query, documents[start : start + block], instruction)).ids)
        with torch.inference_mode():
            hidden = model(input_ids=ids[None]).last_hidden_state[0]
            first, second = weights["projector.0.weight"].T, weights["projector.2.weight"].T
            own, asked = (torch.relu(hidden[ids == marker] @ first) @ second for marker in (of_document, of_query))
        scores = torch.nn.functional.cosine_similarity(own, asked)
        vectors.append(own.numpy())
        queries.append(asked[0].numpy())
        weighted.append(float(((1 + scores) / 2).max()))
    one = np.average(np.array(queries), axis=0, weights=weighted)
    all_vectors = np.concatenate(vectors)
    cosines = all_vectors @ one / np.linalg.norm(all_vectors, axis=1) / np.linalg.norm(one)
    return np.array(cosines, dtype=np.float32)


def qwen3_vl_logits(folder: Path, query: str, documents: Sequence[str], *, instruction: str) -> FloatArray:
    """Qwen3-VL-Reranker on texts: the last state times the difference of the head's rows yes and no; [documents]."""
    import torch  # noqa: PLC0415 - as above
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration  # noqa: PLC0415 - as above

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    row = model.lm_head.weight[yes] - model.lm_head.weight[no]
    values = []
    for document in documents:
        text = (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
            f"<Instruct>: {instruction}<Query>:{query}\n<Document>:{document}<|im_end|>\n<|im_start|>assistant\n"
        )
        with torch.inference_mode():
            state = model.model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
            values.append(float(state @ row))
    return np.array(values, dtype=np.float32)


def _jina_v3_prompt(query: str, documents: Sequence[str], instruction: str | None) -> str:
    for marker in JINA_MARKERS:
        query = query.replace(marker, "")
        documents = [document.replace(marker, "") for document in documents]
    passages = [
        f'<passage id="{number}">\n{document}<|embed_token|>\n</passage>' for number, document in enumerate(documents)
    ]
    return (
        "<|im_start|>system\nYou are a search relevance expert who can determine a ranking of the passages based on "
        "how relevant they are to the query. If the query is a question, how relevant a passage is depends on how well "
        "it answers the question. If not, try to analyze the intent of the query and assess how well each passage "
        "satisfies the intent. If an instruction is provided, you should follow the instruction when determining the "
        "ranking.<|im_end|>\n<|im_start|>user\n"
        f"I will provide you with {len(documents)} passages, each indicated by a numerical identifier. Rank the "
        f"passages based on their relevance to query: {query}\n"
        + (f"<instruct>\n{instruction}\n</instruct>\n" if instruction else "")
        + "\n".join(passages)
        + f"\n<query>\n{query}<|rerank_token|>\n</query><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def duot5_sums(folder: Path, query: str, documents: Sequence[str]) -> FloatArray:
    """duoT5 as its makers' package ranks with it: over all ordered pairs, the probability of "true" for the first and
    what is left for the second; shape [documents].
    """
    sums = np.zeros(len(documents))
    for first, second in permutations(range(len(documents)), 2):
        prompt = f"Query: {{query}} Document0: {documents[first]} Document1: {{document}} Relevant:"
        (row,) = first_step_logits(folder, prompt, query, [documents[second]], tokens=["▁false", "▁true"]).astype(float)
        probability = np.exp(row[1] - np.logaddexp(row[0], row[1]))
        sums[first] += probability
        sums[second] += 1 - probability
    return sums.astype(np.float32)


def minicpm_logits(folder: Path, query: str, documents: Sequence[str], *, layer: int) -> FloatArray:
    """bge-reranker-v2-minicpm-layerwise as its authors' code computes it from their tensors: what the layer of this
    index reads, or the last one gives, through the norm and that layer's head; shape [documents].
    """
    import torch  # noqa: PLC0415 - as above
    from safetensors.torch import load_file  # noqa: PLC0415 - as above
    from torch.nn.functional import silu  # noqa: PLC0415 - as above

    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    size, depth = config["hidden_size"] // heads, config["scale_depth"] / config["num_hidden_layers"] ** 0.5

    def norm(states: torch.Tensor, name: str) -> torch.Tensor:
        mean = states.square().mean(dim=-1, keepdim=True)
        return states * torch.rsqrt(mean + config["rms_norm_eps"]) * weights[f"{name}.weight"]

    def turned(states: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(states.shape[1])[:, None] / config["rope_theta"] ** (torch.arange(0, size, 2) / size)
        angles = torch.cat((angles, angles), dim=-1)
        one, other = states.chunk(2, dim=-1)
        return states * angles.cos() + torch.cat((-other, one), dim=-1) * angles.sin()

    def logit(ids: Sequence[int]) -> float:
        state = weights["model.embed_tokens.weight"][list(ids)] * config["scale_emb"]
        hidden = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
        for name in (f"model.layers.{number}" for number in range(layer)):
            read = norm(state, f"{name}.input_layernorm")
            query, key, value = (
                (read @ weights[f"{name}.self_attn.{part}_proj.weight"].T).view(len(ids), -1, size).transpose(0, 1)
                for part in "qkv"
            )
            key, value = (part.repeat_interleave(heads // shared, dim=0) for part in (turned(key), value))
            attention = torch.softmax(turned(query) @ key.transpose(1, 2) / size**0.5 + hidden, dim=-1)
            mixed = (attention @ value).transpose(0, 1).reshape(len(ids), -1)
            state = state + mixed @ weights[f"{name}.self_attn.o_proj.weight"].T * depth
            read = norm(state, f"{name}.post_attention_layernorm")
            gate, up = (read @ weights[f"{name}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
            state = state + (silu(gate) * up) @ weights[f"{name}.mlp.down_proj.weight"].T * depth
        head = weights[f"lm_head.{layer - config['start_layer']}.linear_head.weight"][0]
        return float(norm(state, "model.norm")[-1] @ head)

    return np.array([logit(ids) for ids in _bge_prompts(folder, query, documents, "<s>", _BGE_TASK)], dtype=np.float32)


def lightweight_logits(folder: Path, query: str, documents: Sequence[str], *, layer: int) -> FloatArray:
    """bge-reranker-v2.5-gemma2-lightweight without compression: the first head, whichever layer is asked for, on what
    the layer of this index reads, or the last one gives; shape [documents].
    """
    import torch  # noqa: PLC0415 - as above
    from safetensors.torch import load_file  # noqa: PLC0415 - as above
    from transformers import Gemma2Config, Gemma2Model  # noqa: PLC0415 - as above

    said = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    own = ("architectures", "auto_map", "model_type")
    config = Gemma2Config(**{key: value for key, value in said.items() if key not in own}, attn_implementation="eager")
    model = Gemma2Model(config).eval()
    prefix = "model."
    model.load_state_dict({key.removeprefix(prefix): one for key, one in weights.items() if key.startswith(prefix)})
    cap = config.final_logit_softcapping
    values = []
    task = "Predict whether passage B contains an answer to query A."
    for ids in _bge_prompts(folder, query, documents, "<bos>", task):
        with torch.inference_mode():
            output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
            last = layer == config.num_hidden_layers
            state = output.last_hidden_state if last else model.norm(output.hidden_states[layer])
            value = float(state[0, -1] @ weights["lm_head.0.linear_head.weight"][0])
        values.append(np.tanh(value / cap) * cap)
    return np.array(values, dtype=np.float32)


def compressed_logits(
    folder: Path, query: str, documents: Sequence[str], *, layer: int, ratio: int, before: Sequence[int]
) -> FloatArray:
    """bge-reranker-v2.5-gemma2-lightweight with compression before these layers, one pair at a time: sums of weighted
    groups, as its authors form them; shape [documents].
    """
    import torch  # noqa: PLC0415 - as above
    from safetensors.torch import load_file  # noqa: PLC0415 - as above
    from transformers import Gemma2Config, Gemma2Model  # noqa: PLC0415 - as above

    said = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    own = ("architectures", "auto_map", "model_type")
    config = Gemma2Config(**{key: value for key, value in said.items() if key not in own}, attn_implementation="eager")
    model = Gemma2Model(config).eval()
    prefix = "model."
    model.load_state_dict({key.removeprefix(prefix): one for key, one in weights.items() if key.startswith(prefix)})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    task = "Predict whether passage B contains an answer to query A."
    behind = len(tokenizer.encode("\n", add_special_tokens=False)) + len(
        tokenizer.encode(task, add_special_tokens=False)
    )
    cap = config.final_logit_softcapping
    values = []
    for ids, document in zip(_bge_prompts(folder, query, documents, "<bos>", task), documents, strict=True):
        passage = len(tokenizer.encode(f"B: {document}", add_special_tokens=False))
        start = len(ids) - behind - passage
        with torch.inference_mode():
            hidden = model.embed_tokens(torch.tensor([ids]))
            for number in range(layer):
                if number in before:
                    groups = -(-passage // ratio)
                    padded = torch.zeros(groups * ratio, config.hidden_size)
                    padded[:passage] = hidden[0, start : start + passage]
                    share = torch.zeros(groups * ratio)
                    share[:passage] = 1
                    share = share.view(groups, ratio) / share.view(groups, ratio).sum(dim=1, keepdim=True)
                    means = (padded.view(groups, ratio, -1) * share[:, :, None]).sum(dim=1)
                    hidden = torch.cat([hidden[0, :start], means, hidden[0, start + passage :]])[None]
                    passage = groups
                places = torch.arange(hidden.shape[1])
                distance = places[:, None] - places[None]
                hides = distance < 0
                if config.layer_types[number] == "sliding_attention":
                    hides |= distance >= config.sliding_window
                mask = torch.zeros(distance.shape).masked_fill(hides, torch.finfo(torch.float32).min)
                hidden = model.layers[number](
                    hidden,
                    position_embeddings=model.rotary_emb(hidden, places[None]),
                    attention_mask=mask[None, None],
                    position_ids=places[None],
                )
            value = float(model.norm(hidden)[0, -1] @ weights["lm_head.0.linear_head.weight"][0])
        values.append(np.tanh(value / cap) * cap)
    return np.array(values, dtype=np.float32)


def _bge_prompts(folder: Path, query: str, documents: Sequence[str], beginning: str, task: str) -> list[list[int]]:
    """The ids that FlagEmbedding joins from parts that it tokenizes one by one."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    start = [tokenizer.token_to_id(beginning), *ids(f"A: {query}"), *ids("\n")]
    return [[*start, *ids(f"B: {document}"), *ids("\n"), *ids(task)] for document in documents]


_VICUNA: Final = "{system} USER: {user} ASSISTANT:"
_REASONRANK: Final = (
    "You are RankLLM, an intelligent assistant that can rank passages based on their relevance to the query. Given a "
    "query and a passage list, you first thinks about the reasoning process in the mind and then provides the answer "
    "(i.e., the reranked passage list). The reasoning process and answer are enclosed within <think> </think> and "
    "<answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here "
    "</answer>."
)
_RANK_K: Final = """
Determine a ranking of the passages based on how relevant they are to the query.\x20
If the query is a question, how relevant a passage is depends on how well it answers the question.\x20
If not, try analyze the intent of the query and assess how well each passage satisfy the intent.\x20
The query may have typos and passages may contain contradicting information.\x20
However, we do not get into fact-checking. We just rank the passages based on they relevancy to the query.\x20

Sort them from the most relevant to the least.\x20
Answer with the passage number using a format of `[3] > [2] > [4] = [1] > [5]`.\x20
Ties are acceptable if they are equally relevant.\x20
I need you to be accurate but overthinking it is unnecessary.
Output only the ordering without any other text.

Query: {query}

{docs}
"""


def list_prompt(template: str, folder: Path, query: str, documents: Sequence[str]) -> list[int]:
    """The ids of a listwise prompt as the model's authors write it, with texts on one line and without identifiers."""
    tokenizer, _ = _loaded(folder)
    question, *texts = (_without_identifiers(" ".join(text.split())) for text in (query, *documents))
    count = len(texts)
    lines = [f"[{number}] {text}" for number, text in enumerate(texts, 1)]
    asked = (
        f"I will provide you with {count} passages, each indicated by a numerical identifier []. Rank the passages "
        f"based on their relevance to the search query: {question}.\n"
    )
    order = (
        f"Search Query: {question}.\nRank the {count} passages above based on their relevance to the search query. All "
        "the passages should be included and listed using identifiers, in descending order of relevance. The "
    )
    passages = "".join(f"{line}\n" for line in lines)
    if template == "rank-vicuna":
        user = f"{asked}{passages}{order}output format should be [] > [], e.g., [2] > [1], Answer concisely and "
        user += "directly and only respond with the ranking results, do not say any word or explain."
        return list(tokenizer(_VICUNA.format(system=_SYSTEM, user=user)).input_ids)
    messages = [{"role": "user", "content": _RANK_K.format(query=question, docs="\n\n".join(lines))}]
    if template == "reasonrank":
        user = f"{asked}\n{passages}{order}format of the answer should be [] > [], e.g., [2] > [1]."
        messages = [{"role": "system", "content": _REASONRANK}, {"role": "user", "content": user}]
    text = tokenizer.apply_chat_template(
        messages, chat_template=CHATS["qwen3"], tokenize=False, add_generation_prompt=True
    )
    # QwQ's template begins the thought, Qwen 2.5's does not.
    text += "<think>\n" if template == "rank-k" else ""
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def in_chat(family: str, messages: Sequence[dict[str, str]]) -> str:
    """A conversation by a family's own chat template, up to where the model answers."""
    from jinja2 import Template  # noqa: PLC0415 - comes with transformers

    return str(Template(CHATS[family]).render(messages=messages, add_generation_prompt=True))


def plain_ids(folder: Path, text: str) -> list[int]:
    """The ids of a finished prompt, without any token that the tokenizer adds."""
    tokenizer, _ = _loaded(folder)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def plain_text(folder: Path, ids: Sequence[int]) -> str:
    """The text of ids, control tokens included."""
    tokenizer, _ = _loaded(folder)
    return str(tokenizer.decode(list(ids)))


def rank_r1_messages(query: str, documents: Sequence[str]) -> list[dict[str, str]]:
    """The conversation in which Rank-R1's authors ask for the best document."""
    texts = "\n".join(f"[{number}] {text}" for number, text in enumerate(documents, 1))
    thinking = (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
        "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>."
    )
    asked = (
        f'Given the query: "{query}", which of the following documents is most relevant?\n{texts}\nAfter completing '
        "the reasoning process, please provide only the label of the most relevant document to the query, enclosed in "
        "square brackets, within the answer tags. For example, if the third document is the most relevant, the answer "
        "should be: <think> reasoning process here </think> <answer>[3]</answer>."
    )
    return [{"role": "system", "content": thinking}, {"role": "user", "content": asked}]


def rm_r1_prompt(query: str, answers: Sequence[str]) -> str:
    """The whole prompt with which RM-R1's authors ask a distilled model for the better of two answers."""
    shown = "\n\n".join(
        f"[The Start of Chatbot {name}'s Response]\n{text}\n[The End of Chatbot {name}'s Response]"
        for name, text in zip("AB", answers, strict=True)
    )
    user = (
        "Please act as an impartial judge and evaluate the quality of the responses provided by two AI Chatbots to the "
        f"Client question displayed below. \n\n[Client Question]\n{query}\n\n{shown}\n\nOutput your final verdict at "
        "last by strictly following this format: '<answer>[[A]]</answer>' if Chatbot A is better, or "
        "'<answer>[[B]]</answer>' if Chatbot B is better."
    )
    return f"<｜begin▁of▁sentence｜><｜User｜>{user}<｜Assistant｜><think>\n"  # noqa: RUF001 - DeepSeek's markup


def setwise_sort(
    documents: Sequence[T], best: Callable[[Sequence[T]], int | None], *, children: int, k: int
) -> list[T]:
    """The first k as the authors of Setwise sort: a heap whose nodes ask for the best of them and their children."""
    heap = list(documents)

    def heapify(size: int, node: int) -> None:
        below = list(range(children * node + 1, min(children * (node + 1) + 1, size)))
        if below:
            places = [node, *below]
            found = best([heap[place] for place in places])
            largest = places[found or 0]
            if largest != node:
                heap[node], heap[largest] = heap[largest], heap[node]
                heapify(size, largest)

    for node in range(len(heap) // children, -1, -1):
        heapify(len(heap), node)
    for taken, last in enumerate(range(len(heap) - 1, 0, -1), 1):
        heap[last], heap[0] = heap[0], heap[last]
        if taken == k:
            break
        heapify(last, 0)
    return heap[::-1][:k]


def setwise_labels(folder: Path, query: str, documents: Sequence[str]) -> FloatArray:
    """The logits of the labels in the prompt of the template `setwise-chatml`, behind "["."""
    tokenizer, _ = _loaded(folder)
    passages = "\n\n".join(
        f'[{label}] "{text}"' for label, text in zip(string.ascii_uppercase, documents, strict=False)
    )
    persona = (
        "You are an intelligent assistant that selects the most relevant passage from a set of passages, based on "
        "their relevance to the query."
    )
    user = (
        f'Given a query "{query}", which of the following {len(documents)} passages is the most relevant one to the '
        f"query?\n\n{passages}\n\nOutput only the label of the most relevant passage, in square brackets, e.g. [B]."
    )
    text = f"<|im_start|>system\n{persona}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n["
    ids = tokenizer(text, add_special_tokens=False).input_ids
    labels = [tokenizer.convert_tokens_to_ids(label) for label in string.ascii_uppercase[: len(documents)]]
    return _logits_after(folder, ids)[labels]


def greedy_logprobs(folder: Path, ids: Sequence[int], *, tokens: int) -> list[float]:
    """The log-probabilities of what transformers writes behind these tokens, greedily, up to its end."""
    import torch  # noqa: PLC0415 - as above

    _, model = _loaded(folder)
    written = list(ids)
    logprobs = []
    for _ in range(tokens):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([written]), use_cache=False).logits[0, -1].float()
        written.append(int(logits.argmax()))
        logprobs.append(float(logits.log_softmax(-1).max()))
        if written[-1] == model.generation_config.eos_token_id:
            break
    return logprobs


def drawn(
    folder: Path, ids: Sequence[int], numbers: Sequence[float], *, temperature: float, top_k: int | None
) -> tuple[list[int], list[float]]:
    """The tokens that are drawn behind these, one whole pass each: the first whose cumulative probability is above the
    token's number; and their log-probabilities at temperature 1.
    """
    tokenizer, _ = _loaded(folder)
    written: list[int] = []
    logprobs: list[float] = []
    for number in numbers:
        logits = _logits_after(folder, [*ids, *written]).astype(np.float64)
        likely = logits >= np.sort(logits)[-(top_k or len(logits))]
        weights = np.where(likely, np.exp((logits - logits.max()) / temperature), 0)
        token = int(np.flatnonzero(np.cumsum(weights) > number * weights.sum())[0])
        if token == tokenizer.pad_token_id:
            break
        written.append(token)
        logprobs.append(float(logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum())))
    return written, logprobs


def greedy_ids(folder: Path, ids: Sequence[int], *, tokens: int) -> list[int]:
    """What transformers writes behind these tokens, greedily."""
    import torch  # noqa: PLC0415 - as above

    _, model = _loaded(folder)
    with torch.inference_mode():
        whole = model.generate(torch.tensor([list(ids)]), max_new_tokens=tokens, do_sample=False)
    return [int(token) for token in whole[0, len(ids) :]]


def greedy_text(folder: Path, ids: Sequence[int], *, tokens: int) -> str:
    """The same as text."""
    tokenizer, _ = _loaded(folder)
    return str(tokenizer.decode(greedy_ids(folder, ids, tokens=tokens), skip_special_tokens=True))


def _without_identifiers(text: str) -> str:
    return re.sub(r"\[([A-Z]|\d+)\]", r"(\1)", text)


def _logits_after(folder: Path, ids: Sequence[int]) -> FloatArray:
    """The logits of the whole vocabulary behind these tokens."""
    import torch  # noqa: PLC0415 - as above

    _, model = _loaded(folder)
    with torch.inference_mode():
        logits: FloatArray = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].numpy()
    return logits


@cache
def _loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - as above

    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()


@cache
def _seq2seq(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer  # noqa: PLC0415 - as above

    return AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def attention_scores(
    folder: Path, query: str, documents: Sequence[str], *, opening: str, closing: str, separator: str
) -> FloatArray:
    """In-context reranking: for the query and for "N/A" a whole pass each that returns all attention, [documents]. The
    documents are in the prompt's order.
    """
    import torch  # noqa: PLC0415 - only slow tests have torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - as above

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    text = f"{opening} Here are some paragraphs:{separator}"
    places = []
    for number, document in enumerate(documents, start=1):
        start = len(text)
        text += f"[{number}] {document}"
        places.append((start, len(text)))
        text += separator
    late = "Please find information that are relevant to the following query in the paragraphs above."
    masses = []
    for asked in (query, "N/A"):
        encoded = tokenizer(
            f"{text}{late}{separator}Query: {asked}{closing}", add_special_tokens=False, return_offsets_mapping=True
        )
        ids, offsets = encoded.input_ids, encoded.offset_mapping
        with torch.inference_mode():
            attentions = model(input_ids=torch.tensor([ids]), output_attentions=True).attentions
        first = next(place for place, (_, end) in enumerate(offsets) if end > len(text))
        rows = torch.stack([layer[0, :, first:].double() for layer in attentions])
        mass = rows.sum(dim=(0, 1)).mean(dim=0).numpy()
        masses.append(
            [
                np.array([mass[place] for place, (begin, end) in enumerate(offsets) if end > start and begin < stop])
                for start, stop in places
            ]
        )
    scores = []
    for asked_of, without in zip(*masses, strict=True):
        difference = asked_of - without
        if len(difference) > 1:
            difference = difference[difference > difference.mean() - 2 * difference.std(ddof=1)]
        scores.append(difference.sum())
    return np.array(scores, dtype=np.float32)


def e2rank_scores(
    folder: Path, query: str, documents: Sequence[str], *, most: int, instruction: str | None = None
) -> FloatArray:
    """E2Rank as its eval.py does it: the prompt over the first documents ends without the token that ends a document;
    shape [documents].
    """
    import torch  # noqa: PLC0415 - only slow tests have torch
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415 - as above

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    told = instruction or (
        "Given a web search query and some relevant documents, rerank the documents that answer the query:"
    )
    texts = [_harmless(" ".join(document.split()[:1024])) for document in documents]
    listed = "\n".join(f"[{number}] {text}" for number, text in enumerate(texts[:most], start=1))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{told}\nDocuments:\n{listed}\nSearch Query: {query}"}],
        chat_template=CHATS["qwen3"],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )

    def vector(text: str) -> Any:
        with torch.inference_mode():
            last = model(input_ids=torch.tensor([tokenizer(text).input_ids])).last_hidden_state[0, -1]
        return torch.nn.functional.normalize(last, dim=0)

    asked = vector(prompt)
    return np.array([float(vector(f"{text}<|endoftext|>") @ asked) for text in texts], dtype=np.float32)


def _harmless(text: str) -> str:
    """With control tokens taken apart: what they would do to a prompt is no part of a method."""
    return text.replace("<|im_end|>", "< |im_end|>")
