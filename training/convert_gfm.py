"""Weights published elsewhere as a folder that `GFMForRetrieval.from_pretrained` reads: GFM-RAG (version 1), ULTRA.

    python -m training.convert_gfm --input GFM-RAG-8M/ --output output/gfm_rag_8m
    python -m training.convert_gfm --input ultra_3g.safetensors --output output/ultra_3g
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from modeling_gfm import GFMConfig, GFMForRetrieval

# (ours, theirs): prefixes of parameter names; what none of them begins is unknown
INSIDE_LAYERS = {"relation_projection.": "relation_mlp.", "layer_norm.": "norm.", "relation.": "relation_table."}
ROOMS = {
    "entity_model.layers.": "layers.",
    "entity_model.mlp.": "readout.",
    "relation_model.layers.": "relation_network.layers.",
    "rel_mlp.": "relation_projection.",
    "question_mlp.": "question_projection.",
}


def renamed(name: str) -> str:
    """Our name of a parameter of theirs.

    Raises:
        ValueError: no room for it.
    """
    for theirs, ours in ROOMS.items():
        if name.startswith(theirs):
            rest = name.removeprefix(theirs)
            for part, new in INSIDE_LAYERS.items():
                rest = rest.replace(f".{part}", f".{new}")
            return ours + rest
    raise ValueError(
        f"The weight {name!r} belongs to no part of a GFM-RAG (version 1) or ULTRA model. G-Reasoner's and other "
        "weights cannot be converted."
    )


def settings_of(weights: dict[str, Tensor], encoder: str | None) -> dict[str, Any]:
    """The configuration that the shapes (our names) and the published recipes leave no choice about.

    Both programs trained with a kernel whose messages run against the edges; see `GFMConfig.messages`.
    """
    width = weights["layers.0.norm.weight"].shape[0]
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
    from_text = "relation_projection.weight" in weights
    return {
        "hidden_dim": width,
        "num_layers": layers,
        "messages": "against",
        "relation_source": "text" if from_text else "graph",
        "feature_dim": weights["relation_projection.weight"].shape[1] if from_text else 1,
        "feature_encoder": encoder,
        "concat_hidden": weights["readout.0.weight"].shape[1] != 2 * width,
        "aggregation": "pna" if weights["layers.0.linear.weight"].shape[1] == 13 * width else "sum",
    }


def convert(weights: dict[str, Tensor], published: dict[str, Any]) -> GFMForRetrieval:
    """A model with published weights.

    Args:
        weights: parameters by their names there.
        published: the config.json beside them, or {}: what shapes do not show is read from it.

    Raises:
        ValueError: a weight that has no place here, or a place without a weight.
    """
    ours = {renamed(name): value for name, value in weights.items()}
    entity = published.get("model_config", {}).get("entity_model", {})
    said = {
        "message": entity.get("message_func", "distmult"),
        "aggregation": entity.get("aggregate_func"),
        "seed_weights": published.get("model_config", {}).get("init_entities_weight"),
    }
    encoder = published.get("text_emb_model_config", {}).get("text_emb_model_name")
    settings = settings_of(ours, encoder) | {name: value for name, value in said.items() if value is not None}
    model = GFMForRetrieval(GFMConfig(**settings))
    missing, unexpected = model.load_state_dict(ours, strict=False)
    if missing or unexpected:
        raise ValueError(f"The weights do not fill the model: missing {missing[:5]}, left over {unexpected[:5]}.")
    return model


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, config.json or {}) of a file, or of a folder with model.pth."""
    folder, file = (path, path / "model.pth") if path.is_dir() else (path.parent, path)
    if not file.is_file():
        raise ValueError(f"There is no file {file}. Give a .pth or .safetensors file, or a folder with model.pth.")
    if file.suffix == ".safetensors":
        return load_file(file), {}
    state = torch.load(file, map_location="cpu", weights_only=True)
    config = folder / "config.json"
    published = json.loads(config.read_text(encoding="utf-8")) if path.is_dir() and config.is_file() else {}
    return state.get("model", state), published


def main(argv: list[str] | None = None) -> None:
    """Reads, converts, writes."""
    parser = argparse.ArgumentParser(prog="python -m training.convert_gfm", description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="model.pth, its folder, or a .safetensors file")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args(argv)
    model = convert(*read(arguments.input))
    model.save_pretrained(arguments.output)
    sys.stdout.write(f"{sum(one.numel() for one in model.parameters()):,} parameters in {arguments.output}\n")


if __name__ == "__main__":
    main()
