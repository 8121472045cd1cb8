"""What an output of the stage `align` is known by."""

import json
from pathlib import Path

ALIGNER = "graphllm_aligner"  # the model_type in its config.json


def is_alignment(folder: str | None) -> bool:
    """Whether a folder holds a reader of graphs that was aligned with texts, and no language model."""
    path = Path(folder or "") / "config.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("model_type") == ALIGNER
