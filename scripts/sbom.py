"""Writes what is in an image as CycloneDX 1.6: each pinned package with the hashes of the files that may be installed,
and the image that it is built on (`make sbom`). Needs no network and no packages.

    python3 scripts/sbom.py cpu >dist/sbom-cpu.cdx.json
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).resolve().parents[1]
_PACKAGE: Final = re.compile(r"([\w.-]+)==([\w.+-]+)\s*(?:;\s*([^\\]*?))?\s*\\?$")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_IMAGE: Final = re.compile(r"^ARG PYTHON_IMAGE=(\S+)$", re.MULTILINE)


def bill_of_materials(image: str) -> dict[str, Any]:
    """The document of one of the images: cpu, torch or gpu. The same inputs give the same bytes."""
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": "rerankd", "version": _version(), "bom-ref": "rerankd"}
        },
        "components": [*_base(), *_packages((_ROOT / "requirements" / f"{image}.txt").read_text(encoding="utf-8"))],
    }


def _version() -> str:
    told = (_ROOT / "app" / "rerankd" / "__init__.py").read_text(encoding="utf-8")
    return re.findall(r'__version__ = "(.+)"', told)[0]


def _base() -> Iterator[dict[str, Any]]:
    for image in _IMAGE.findall((_ROOT / "Dockerfile").read_text(encoding="utf-8")):
        name, _, digest = image.partition("@")
        name, _, tag = name.partition(":")
        hashes = {"hashes": [_sha256(digest.removeprefix("sha256:"))]} if digest else {}
        yield {"type": "container", "name": name, "version": tag, "bom-ref": image, **hashes}


def _packages(locked: str) -> Iterator[dict[str, Any]]:
    for block in re.split(r"\n(?=[\w])", locked):
        found = _PACKAGE.match(block.partition("\n")[0])
        if found is None:
            continue
        name, version, condition = found.groups()
        url = f"pkg:pypi/{re.sub('[-_.]+', '-', name).lower()}@{version.replace('+', '%2B')}"
        files = [{"type": "distribution", "url": url, "hashes": [_sha256(one)]} for one in _HASH.findall(block)]
        package = {"type": "library", "name": name, "version": version, "purl": url, "bom-ref": url}
        if condition:  # a package that only some machines install
            package["description"] = f"only if {condition}"
        yield {**package, "externalReferences": files}


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


if __name__ == "__main__":
    json.dump(bill_of_materials(sys.argv[1]), sys.stdout, indent=1)
    sys.stdout.write("\n")
