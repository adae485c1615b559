"""Writes the card of an adapted model: what it learnt from, how, and how good it was on held-out queries."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from rerankd.tools.adapting.proving import Proof
from rerankd.tools.evaluation.tables import markdown

_CARD = """# {name}

`{base}`, adapted to a corpus with `rerankd adapt`: {kind} was trained. Serve it with `rerankd serve {folder}`.

{verdict}

## Data and training

{facts}

The same command with the same inputs makes the same weights again on the same machine:

    {command}

Scores are not calibrated again; `rerankd calibrate` does that on judged questions.

{report}
## Files

| file | bytes | sha256 |
|---|---|---|
{files}
"""


def write_card(
    folder: Path, proof: Proof, *, base: str, kind: str, output: Path, facts: Mapping[str, object], command: str
) -> None:
    """Write README.md into the folder."""
    files = sorted(path for path in folder.iterdir() if path.name != "README.md")
    verdict = f"On held-out queries it is {'better' if proof.is_better else 'not shown to be better'}: {proof}."
    text = _CARD.format(
        name=output.name,
        base=base,
        kind=kind,
        folder=output,
        verdict=verdict,
        facts="\n".join(f"- {name}: {value}" for name, value in facts.items()),
        command=command,
        report=_below(markdown(proof.report)),
        files="\n".join(f"| {path.name} | {path.stat().st_size:,} | {_hash(path)} |" for path in files),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _below(report: str) -> str:
    """The report's headings, one level deeper."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in report.splitlines()) + "\n"


def _hash(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()
