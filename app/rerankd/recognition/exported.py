"""Reads and writes what `rerankd export` says beside a graph: how the model was exported, so that it is served so.

A graph is made for one scorer and its options, such as the prompt template. With them in its folder, the folder's name
is enough to serve it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rerankd.errors import ConfigError
from rerankd.recognition.files import read_json, table_of
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.recognised import Asked, Evidence, Outcome, Recognised, Refused

EXPORT_FILE: Final = "rerankd.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The scorer that the graphs of a folder were made for, and its options."""

    scorer: str
    options: Mapping[str, Any]

    @classmethod
    def read(cls, files: ModelFiles) -> "Exported | None":
        """What a folder says; None for a folder that says nothing.

        Raises:
            ConfigError: the file says something else, too, or cannot be read.
        """
        path = files.folder / EXPORT_FILE
        if not path.is_file():
            return None
        said = read_json(path)
        if set(said) != {"scorer", "options"} or not isinstance(said["scorer"], str):
            raise ConfigError(f"{path} says {', '.join(said)}, not scorer and options; export the model again")
        return cls(scorer=said["scorer"], options=table_of(said, "options", of=path))

    def write(self, folder: Path) -> None:
        """Write it beside the graphs."""
        said = {"scorer": self.scorer, "options": dict(self.options)}
        (folder / EXPORT_FILE).write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def asked(self, asked: Asked) -> Asked:
        """The same, with the options of the export where the operator names none."""
        return replace(asked, scorer=self.scorer, options={**self.options, **asked.options})

    def checked(self, outcome: Outcome) -> Outcome:
        """The outcome with this as evidence, refused if the graph would be read otherwise than it was made for."""
        evidence = [*outcome.evidence, Evidence(EXPORT_FILE, f"scorer = {self.scorer!r}, options = {self.options}")]
        if not isinstance(outcome, Recognised) or outcome.scorer == self.scorer:
            return replace(outcome, evidence=evidence)
        return Refused(
            family=outcome.family,
            reason=f"{EXPORT_FILE} says that the graph was made for scorer {self.scorer!r}, and this is served with "
            f"{outcome.scorer!r}",
            way_out="export the model again with `rerankd export`",
            evidence=evidence,
        )
