"""What a model was shown in training, so that evaluation and serving show it the same."""

import json
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Row = dict[str, Any]

# what stands beside the question -> (graph tokens, facts as text)
CONTEXTS = {
    "none": (False, False), "documents": (False, False), "text": (False, True), "graph": (True, False),
    "both": (True, True),
}  # fmt: skip


def trained_with(model: str, **hub: Any) -> Row:
    """The flags of the model's training, from the run.json of its folder or repository; without one, none.

    Args:
        model: folder or repository. hub: `revision`, `token` and the like, as for `from_pretrained`.
    """
    from transformers.utils import cached_file

    absent = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    record = cached_file(model, "run.json", **absent, **hub)
    if record is None:
        logger.warning("%s has no run.json: what flags do not say is as training has it by default.", model)
        return {}
    return json.loads(Path(record).read_text(encoding="utf-8"))["arguments"]


def shown_in_training(trained: Row, text_style: str | None = None, max_text_tokens: int | None = None) -> Row:
    """How `PromptWriter` wrote the prompts of training; the two arguments override.

    Args:
        trained: the flags of the training. text_style, max_text_tokens: as for `PromptWriter`.
    """
    use = trained.get("use_graph", True), trained.get("use_text", True)
    use_graph, use_text = CONTEXTS[trained["context"]] if trained.get("context") else use
    return {
        "use_graph": use_graph,
        "use_text": use_text,
        "soft_prompt": trained.get("prompt_tuning", 0) > 0,
        "text_style": text_style or trained.get("text_style", "triples"),
        "max_text_tokens": max_text_tokens or trained.get("max_text_tokens"),
    }


def longest_prompt(model: Any, trained: Row, max_new_tokens: int) -> int | None:
    """Training's limit in tokens and, with room for the answer, that of the language model's positions."""
    positions = model.config.text_config.to_dict().get("max_position_embeddings")
    if positions and not model.config.is_encoder_decoder:
        positions -= max_new_tokens
    return min((limit for limit in (trained.get("model_max_length"), positions) if limit), default=None)
