"""Makes one whole model of a base model, its adapters and what reads its graphs: a checkpoint that needs no other."""

import logging
from pathlib import Path

from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from modeling_graphllm import GraphLLMConfig, GraphLLMForConditionalGeneration
from processing_graphllm import GraphLLMProcessor
from serving.card import read_config
from serving.publish import save_output

logger = logging.getLogger(__name__)


def merged_checkpoint(model: str, output: str | Path, revision: str | None = None, dtype: str = "auto") -> Path:
    """Writes the folder `output`, which loads without the base model and without PEFT.

    Args:
        model: a folder that finetune.py wrote, or a repository.
        output: a new or empty folder.
        revision: of that repository.
        dtype: of the base model's weights and of what is written: `auto` is as they are stored. Adapters trained on
            four bits are added to the whole weights, which differ a little from those that they were trained on.

    Returns:
        The folder.

    Raises:
        ValueError: there is nothing to merge, the base model is stored in few bits, or `output` is not empty.
    """
    output = Path(output)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty. Choose another folder for the merged model.")
    folder = Path(model) if Path(model).is_dir() else Path(snapshot_download(model, revision=revision))
    config = read_config(folder)
    if not isinstance(config, GraphLLMConfig) or not config.lean:
        raise ValueError(f"{model} is whole already: all of its weights are in it. There is nothing to merge.")
    merged = merged_model(folder, config, dtype)
    merged.config.lean = False
    return save_output(merged, GraphLLMProcessor.from_pretrained(folder), output)


def merged_model(folder: Path, config: GraphLLMConfig, dtype: str) -> PreTrainedModel:
    """The model with its adapters added to the language model's weights."""
    source = check_whole(folder, config)
    if not (folder / "adapter_config.json").is_file():
        return GraphLLMForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    base = GraphLLMForConditionalGeneration.from_components(
        source,
        config.graph_config,
        graph_token_id=config.graph_token_id,
        graph_token=config.graph_token,
        feature_encoder=config.feature_encoder,
        revision=config.text_model_revision,
        dtype=dtype,
    )
    base.generation_config = GenerationConfig.from_pretrained(folder)
    adapted = PeftModel.from_pretrained(base, folder)
    logger.info("Adding the adapters of %s to %s", folder, source)
    return adapted.merge_and_unload(safe_merge=True)


def check_whole(folder: Path, config: GraphLLMConfig) -> str:
    """Where the base model is.

    Raises:
        ValueError: its weights are stored in four or eight bits, where what adapters add would be rounded away.
    """
    source = config.text_model_name_or_path
    source = str(folder / source) if source.startswith("./") else source
    stored = AutoConfig.from_pretrained(source, revision=config.text_model_revision).to_dict()
    if stored.get("quantization_config"):
        raise ValueError(
            f"The base model {source} is stored in few bits: adding the adapters to it would round most of them away. "
            "Train them on the release it was made from (with --q_lora True as small), or use them as they are."
        )
    return source
