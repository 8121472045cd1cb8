"""Writes a graph retriever as a folder that loads by itself: weights, configuration, code and card."""

from collections.abc import Callable
from pathlib import Path

from transformers import TrainingArguments
from transformers.dynamic_module_utils import custom_object_save

from modeling_gfm import GFMForRetrieval

CARD = """---
library_name: transformers
tags:
- custom_code
- graphllm
---

# {name}

A graph retriever: a question and its entities -> a score for every node and document of a graph. {layers} layers of
width {width}, {message} messages, {aggregation}. Questions and relations were embedded by `{encoder}`; use the same
for new graphs.

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
```
"""


def save_retriever(
    model: GFMForRetrieval, training: TrainingArguments, save_weights: Callable[[str], None], write: bool
) -> None:
    """Writes the folder --output_dir.

    Args:
        model: what was trained.
        training: names the folder, and the repository that it will be pushed to.
        save_weights: writes the weights, on every process.
        write: false on processes that only take part in that.
    """
    folder = Path(training.output_dir)
    for path in folder.glob("model*.safetensors*") if write else ():
        path.unlink()
    save_weights(str(folder))
    if write:
        write_companions(model, folder)
        write_card(model, folder, training.hub_model_id or str(folder.resolve()))


def write_companions(model: GFMForRetrieval, folder: Path) -> None:
    """What makes a folder of weights loadable: configuration and code."""
    custom_object_save(model, folder, config=model.config)
    model.config.save_pretrained(folder)
    # the Trainer's pickled copy of its arguments: run.json says the same as text
    (folder / "training_args.bin").unlink(missing_ok=True)


def write_card(model: GFMForRetrieval, folder: Path, name: str) -> None:
    """README.md: what the model is and how it is loaded."""
    config = model.config
    card = CARD.format(
        name=name,
        layers=config.num_layers,
        width=config.hidden_dim,
        message=config.message,
        aggregation=config.aggregation,
        encoder=config.feature_encoder,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
