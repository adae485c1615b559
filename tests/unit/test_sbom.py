"""What an image contains is written down in a form that others' tools read, with every hash that pins it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

_ROOT = Path(__file__).resolve().parents[2]


def _written(image: str) -> str:
    command = [sys.executable, "scripts/sbom.py", image]
    return subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("image", ["cpu", "torch", "gpu"])
def test_the_bill_of_materials_is_valid_and_names_every_pinned_file(image: str) -> None:
    document = json.loads(_written(image))
    # The others have the same form, and the schema compares each file with each other.
    few = json.dumps({**document, "components": document["components"][:6]})
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(few) is None
    locked = (_ROOT / "requirements" / f"{image}.txt").read_text()
    packages = [one for one in document["components"] if one["type"] == "library"]
    assert len(packages) == locked.count("==") - locked.count(" == '")
    files = [reference for package in packages for reference in package["externalReferences"]]
    assert {one["hashes"][0]["content"] for one in files} == {part[:64] for part in locked.split("sha256:")[1:]}
    assert document["components"][0]["type"] == "container"
