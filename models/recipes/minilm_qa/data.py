"""Turns the training folders into groups: a query, a relevant text, and texts that BM25 took for relevant.

Only folders under `train/` and the train claims of scifact are read here; nothing else under `eval/` is.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.recipes.minilm_qa.ranking_data import Document, Query, read_documents, read_grades, read_queries, read_run
from rerankd.tools.training.texts import keywords_of, sentences_of

POOL_SIZE = 8
_LEAST_QUERIES = 4
RANDOM_NEGATIVES = 2
CHUNK_WORDS = 60
KEYWORD_QUERY_SHARE = 0.15
CLOZE_QUERY_SHARE = 0.12
CLOZE_SENTENCE_WORDS = (6, 40)
TITLED_SHARE = 0.3


@dataclass(frozen=True)
class Group:
    """A query with its relevant text first and the texts to tell it from: the harder, the earlier."""

    source: str
    query: str
    positive: str
    negatives: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A training set: where it lies, how many queries to take, and how many of them to hold out."""

    name: str
    folder: str
    queries: int
    held_out: int
    grades_file: str = "qrels.tsv"
    held_out_grades_file: str | None = None
    titled: bool = False
    repeats: int = 1


SOURCES = (
    Source("squad", "train/squad_train", queries=9000, held_out=300),
    Source("fever", "train/fever_dev", queries=2500, held_out=150),
    Source("medquad", "train/medquad", queries=2500, held_out=150),
    Source("selqa", "train/selqa", 784, 300, grades_file="qrels.dev.tsv", held_out_grades_file="qrels.tsv"),
    Source("pubmedqa", "train/pubmedqa", queries=900, held_out=100),
    Source("skeptics", "train/skeptics", queries=966, held_out=100),
    Source("scifact", "eval/scifact", 730, 79, grades_file="qrels.train.tsv", titled=True, repeats=2),
)


@dataclass(frozen=True)
class Corpus:
    """What the group builders of one source share."""

    documents: dict[str, Document]
    run: dict[str, dict[str, float]]
    ids: Sequence[str]
    titled: bool

    def text(self, document: str) -> str:
        found = self.documents[document]
        return found.full_text if self.titled else found.text


def read_groups(data: Path, *, seed: int, share: float = 1.0) -> tuple[list[Group], list[Group]]:
    """Return the groups to train on, shuffled, and the held-out groups of other queries.

    `share` scales every source down, for a smoke run.
    """
    rng = random.Random(seed)
    train: list[Group] = []
    held_out: list[Group] = []
    for source in SOURCES:
        scaled = replace(
            source,
            queries=max(_LEAST_QUERIES, int(source.queries * share)),
            held_out=max(_LEAST_QUERIES, int(source.held_out * share)),
        )
        ours, theirs = _source_groups(data, scaled, rng)
        train += ours * source.repeats
        held_out += theirs
    rng.shuffle(train)
    return train, held_out


def _source_groups(data: Path, source: Source, rng: random.Random) -> tuple[list[Group], list[Group]]:
    folder = data / source.folder
    documents = read_documents(folder)
    corpus = Corpus(documents, read_run(folder, depth=20), list(documents), source.titled)
    queries = read_queries(folder)
    grades = read_grades(folder, source.grades_file)
    chosen = sorted(query for query in grades if query in corpus.run and any(grades[query].values()))
    rng.shuffle(chosen)
    held_grades, held = grades, chosen[: source.held_out]
    rest = chosen[source.held_out :]
    if source.held_out_grades_file:
        held_grades, rest = read_grades(folder, source.held_out_grades_file), chosen
        held = sorted(query for query in held_grades if query in corpus.run and any(held_grades[query].values()))
        rng.shuffle(held)
        held = held[: source.held_out]
    ours = [_group(source.name, queries[q], grades[q], corpus, q, rng) for q in rest[: source.queries]]
    theirs = [_group(source.name, queries[q], held_grades[q], corpus, q, rng) for q in held]
    return [_with_other_query(group, rng) for group in ours if group.negatives], theirs


def _group(name: str, query: Query, grades: dict[str, int], corpus: Corpus, query_id: str, rng: random.Random) -> Group:
    relevant = [document for document, grade in grades.items() if grade > 0]
    gold = rng.choice(relevant)
    ranked = [document for document in corpus.run[query_id] if grades.get(document, 0) == 0]
    if name == "squad":
        return _squad_group(query, gold, ranked, corpus, rng)
    texts = [corpus.text(document) for document in ranked[:POOL_SIZE]]
    texts += [corpus.text(document) for document in rng.sample(corpus.ids, RANDOM_NEGATIVES) if document not in grades]
    positive = corpus.text(gold)
    return Group(name, query.text, positive, _distinct(texts, but=positive))


def _squad_group(query: Query, gold: str, ranked: Sequence[str], corpus: Corpus, rng: random.Random) -> Group:
    """Build a group of whole paragraphs, or of chunks of them for half of the articles.

    Another paragraph or chunk of the gold article that holds an answer may answer too, so it is left out.
    """
    home = corpus.documents[gold]
    drawn = [*ranked[:POOL_SIZE], *rng.sample(corpus.ids, RANDOM_NEGATIVES)]
    others = [corpus.documents[document] for document in drawn if document != gold]
    others = [other for other in others if other.title != home.title or not _holds(other.text, query.answers)]
    style = sum(map(ord, home.title)) % 100
    if style < 50:
        return _chunk_group(query, home, others)
    if style < 50 + 100 * TITLED_SHARE:
        return Group("squad", query.text, home.full_text, _distinct([o.full_text for o in others], but=home.full_text))
    return Group("squad", query.text, home.text, _distinct([other.text for other in others], but=home.text))


def _chunk_group(query: Query, home: Document, others: Sequence[Document]) -> Group:
    """The gold paragraph's chunk with the answer against its other chunks and the best chunks elsewhere."""
    own = chunks(home.text)
    positive = max(own, key=lambda chunk: (_holds(chunk, query.answers), _overlap(query.text, chunk)))
    siblings = [chunk for chunk in own if not _holds(chunk, query.answers)][:2]
    best = [max(chunks(other.text), key=lambda chunk: _overlap(query.text, chunk)) for other in others]
    return Group("squad", query.text, positive, _distinct([*siblings, *best], but=positive))


def chunks(text: str, *, words: int = CHUNK_WORDS) -> list[str]:
    """Cut a text at sentence ends into pieces of about `words` words."""
    pieces: list[str] = []
    for sentence in sentences_of(text):
        if pieces and len(pieces[-1].split()) + len(sentence.split()) <= words:
            pieces[-1] = f"{pieces[-1]} {sentence}"
        else:
            pieces.append(sentence)
    return pieces


def _with_other_query(group: Group, rng: random.Random) -> Group:
    """Vary the kind of query for a share of the groups: keywords, or a sentence of the relevant text itself."""
    drawn = rng.random()
    if drawn < KEYWORD_QUERY_SHARE:
        return _as_keywords(group)
    return _as_cloze(group, rng) if drawn < KEYWORD_QUERY_SHARE + CLOZE_QUERY_SHARE else group


def _as_cloze(group: Group, rng: random.Random) -> Group:
    """Ask for the text that a sentence was taken from (inverse cloze task, Lee et al. 2019, arXiv 1906.00300).

    It stands for the long topical queries that question sets lack.
    """
    sentences = sentences_of(group.positive)
    fewest, most = CLOZE_SENTENCE_WORDS
    usable = [n for n, sentence in enumerate(sentences) if fewest <= len(sentence.split()) <= most]
    if len(sentences) < 3 or not usable:
        return group
    query = sentences.pop(rng.choice(usable))
    return replace(group, query=query, positive=" ".join(sentences))


def _as_keywords(group: Group) -> Group:
    """Make a keyword query of a question, as classic collections and search boxes have them."""
    words = keywords_of(group.query)
    return replace(group, query=words) if len(words.split()) >= 2 else group


def _holds(text: str, answers: Sequence[str]) -> bool:
    lowered = text.lower()
    return any(answer.lower() in lowered for answer in answers)


def _overlap(query: str, text: str) -> int:
    return len(set(re.findall(r"\w{3,}", query.lower())) & set(re.findall(r"\w{3,}", text.lower())))


def _distinct(texts: Sequence[str], *, but: str) -> tuple[str, ...]:
    return tuple(text for text in dict.fromkeys(texts) if text != but)
