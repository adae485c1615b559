"""rerankd: a query and candidate documents go in, the documents come back in order of relevance."""

import os
import sys

__version__ = "0.1.0"

# Libraries read these when they are first imported, wherever that is: a service that sees private texts reports to
# nobody unless its operator says so.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# OpenVINO reports that it was imported through a package of its own, and goes without where that cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # None: importing it raises ImportError
