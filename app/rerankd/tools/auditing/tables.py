"""An audit as a table, on a terminal or in Markdown."""

from collections.abc import Sequence
from typing import Final

from rerankd.tools.auditing.auditing import Audit, Row

HEAD: Final = ("change", "of", "nDCG@10", "±", "p", "rank shift", "flips of the top 10")
_OF: Final = {
    "query": "the query",
    "all": "all documents",
    "irrelevant": "irrelevant ones",
    "relevant": "relevant ones",
}


def lines(audit: Audit) -> list[Sequence[str]]:
    """The rows as texts; the first is the model without any change."""
    return [("none", "", f"{audit.ndcg:.4f}", "", "", "", ""), *map(_line, audit.rows)]


def _line(row: Row) -> Sequence[str]:
    p = f"{row.change.p:.3f}" if row.change.p >= 0.001 else "<.001"
    return (
        row.perturbation,
        _OF[row.of],
        f"{row.ndcg:.4f}",
        f"{row.change.mean:+.4f}",
        p,
        f"{row.rank_shift:.1f}" if row.of == "query" else f"{row.rank_shift:+.1f}",
        f"{row.flips:.0%}",
    )


def markdown(audit: Audit) -> str:
    table = [
        f"| {' | '.join(HEAD)} |",
        "|---|---|" + "---:|" * 5,
        *(f"| {' | '.join(line)} |" for line in lines(audit)),
    ]
    details = [f"- {name}: {value}" for name, value in audit.details.items()]
    return "\n".join([*table, *(["", certificate(audit)] if audit.certified else []), "", *details]) + "\n"


def certificate(audit: Audit) -> str:
    """One sentence; "" where nothing was to be certified."""
    found = audit.certified
    if found is None:
        return ""
    return (
        f"For {found.certified} of {found.questions} queries the best {found.k} are certified against any "
        f"{found.words} substitutions of synonyms in a document ({found.samples} samples, error {found.error:.2f})."
    )
