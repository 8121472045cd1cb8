"""Low-rank adapters of the language model: their shape, what they start as, the quantised weights below them."""

import json
import logging
import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from data_processor.schema import atomic_write, write_json
from training.arguments import Arguments, LoraArguments
from training.deepspeed_file import zero_stage
from training.engines import FSDP, TAKES_FROM_BASE, asked_engine

logger = logging.getLogger(__name__)

GRAPH_MODULES = ["graph_encoder", "graph_projector"]
# full names of modules, as PEFT matches them
INSIDE = r"language_model\.(?:.*\.)?"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def with_adapters(model: PreTrainedModel, arguments: Arguments) -> PeftModel:
    """The composite with new adapters in its language model; encoder and projector are trained whole beside them."""
    flags = arguments.lora
    adapted = get_peft_model(model, lora_config(flags, model))
    if flags.lora_init == "loftq":
        make_up_for_quantization(adapted, base_files(model))
    return adapted


def quantization(arguments: Arguments) -> BitsAndBytesConfig:
    """NF4 (see `four_bits`) or LLM.int8 (arXiv 2208.07339), as the flags say."""
    if arguments.lora.q_bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    training = arguments.training
    sharded = zero_stage(training) == 3 or asked_engine(training, training.world_size) == FSDP
    return four_bits(training.bf16, sharded)


def four_bits(bf16: bool, sharded: bool = False) -> BitsAndBytesConfig:
    """NF4 with double quantisation (QLoRA, arXiv 2305.14314); the language model is quantised as it is loaded.

    Args:
        bf16: calculate in bfloat16, else in float32.
        sharded: the engine divides weights, which it does with numbers of one floating-point type only: the bits are
            stored inside numbers of the type that is calculated in.
    """
    compute = torch.bfloat16 if bf16 else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=compute if sharded else torch.uint8,
    )


def lora_config(flags: LoraArguments, model: PreTrainedModel) -> LoraConfig:
    """Adapters inside the language model only; encoder and projector are trained whole and saved in the same file."""
    pattern = target_pattern(flags.lora_target_modules, model)
    warn_of_full_rank(flags.lora_r, pattern, model)
    return LoraConfig(
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        init_lora_weights={"default": True, "loftq": True}.get(flags.lora_init, flags.lora_init),
        use_dora=flags.use_dora,
        use_rslora=flags.use_rslora,
        r=flags.lora_r,
        lora_alpha=flags.lora_alpha,
        lora_dropout=flags.lora_dropout,
        target_modules=pattern,
        modules_to_save=GRAPH_MODULES,
    )


def target_pattern(names: list[str] | None, model: PreTrainedModel) -> str:
    """A regular expression over full module names, anchored on the language model.

    Args:
        names: module names, one regular expression, or None for every linear layer but the output head.

    Raises:
        ValueError: nothing in the language model matches.
    """
    head = model.get_output_embeddings()
    linear = {
        name: name.rpartition(".")[2]
        for name, module in model.named_modules()
        if name.startswith("language_model.") and isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }
    if names is None or names == ["all-linear"]:
        words = sorted({re.escape(last) for last in linear.values()})
    elif len(names) == 1 and re.escape(names[0]) != names[0]:
        words = [names[0]]
    else:
        words = [re.escape(name) for name in names]
    pattern = f"{INSIDE}(?:{'|'.join(words)})"
    if not any(re.fullmatch(pattern, name) for name in linear):
        raise ValueError(
            f"--lora_target_modules {' '.join(names or [])} matches no linear layer of the language model. It has: "
            f"{', '.join(sorted(set(linear.values())))}."
        )
    return pattern


def warn_of_full_rank(rank: int, pattern: str, model: PreTrainedModel) -> None:
    """One line that names the matrices whose smaller side the rank reaches: they have no more ranks to train."""
    sides = {
        name: min((module.in_features, module.out_features) if isinstance(module, nn.Linear) else module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and re.fullmatch(pattern, name)
    }
    full = sorted({f"{name.rpartition('.')[2]} ({side})" for name, side in sides.items() if side <= rank})
    if full:
        logger.warning("--lora_r %d reaches the smaller side of: %s. A lower rank is enough.", rank, ", ".join(full))


# ------------------------------------------------------------------------------------------------ starts of adapters
def base_files(model: PreTrainedModel) -> Path:
    """The folder of the base model's safetensors, downloaded already when the model was loaded."""
    source = model.config.text_model_name_or_path
    if Path(source).is_dir():
        return Path(source)
    return Path(snapshot_download(source, revision=model.config.text_model_revision, allow_patterns="*.safetensors*"))


@torch.no_grad()
def make_up_for_quantization(model: PeftModel, folder: Path) -> None:
    """Adapters that start as the best approximation of what quantising their matrix lost; in place.

    LoftQ (arXiv 2310.08659, algorithm 1 with one round): B A = the first r singular values of W - Q, divided by the
    adapters' scale.

    Args:
        model: on a base model in four bits.
        folder: with the safetensors of that base model, not quantised.
    """
    from bitsandbytes.functional import dequantize_4bit

    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        held = layer.get_base_layer().weight
        whole = read_tensor(folder, f"{name.partition('language_model.')[2]}.weight")
        lost = whole.to(held.device, torch.float32) - dequantize_4bit(held.data, held.quant_state).float()
        left, sizes, right = torch.linalg.svd(lost, full_matrices=False)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        rank = min(layer.r["default"], len(sizes))  # a rank past the smaller side has nothing left to make up for
        root = sizes[:rank].sqrt()
        down[:rank] = root[:, None] * right[:rank]
        up[:, :rank] = left[:, :rank] * root / layer.scaling["default"]


def read_tensor(folder: Path, name: str) -> Tensor:
    """One tensor of a folder of safetensors; a file of the bare decoder lacks the first part of its names.

    Raises:
        ValueError: no file of the folder has it.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            known = set(file.keys())
            for one in (name, name.partition(".")[2]):
                if one in known:
                    return file.get_tensor(one)
    raise ValueError(f"{folder} holds no safetensors with {name!r}, which --lora_init loftq reads. Use another start.")


def takes_from_base(model: PreTrainedModel | PeftModel) -> bool:
    """Whether the adapters of a model just built took weights out of its base model."""
    return isinstance(model, PeftModel) and model.peft_config["default"].init_lora_weights in TAKES_FROM_BASE


def first_factors(model: PeftModel) -> dict[str, Tensor]:
    """Copies of the adapters' matrices as they are now, by their names in an adapter file."""
    state = get_peft_model_state_dict(model)
    return {name: value.detach().cpu().clone() for name, value in state.items() if ".lora_" in name}


def save_as_plain_lora(folder: Path, first: dict[str, Tensor]) -> None:
    """Rewrites an adapter file whose start took B0 A0 out of the base model as plain LoRA on the base model itself.

    The trained model is W - B0 A0 + B A = W + [B, -B0] [A; A0]: twice the rank, the same scale.

    Args:
        folder: with the adapter file and its configuration.
        first: A0 and B0, see `first_factors`.
    """
    state, config = load_file(folder / ADAPTER), json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    for name, start in first.items():
        if ".lora_A." in name:
            state[name] = torch.cat([state[name], start.to(state[name])])
        else:
            state[name] = torch.cat([state[name], -start.to(state[name])], dim=1)
    growth = 2**0.5 if config["use_rslora"] else 2
    write_json(folder / ADAPTER_CONFIG, config | {
        "r": 2 * config["r"], "lora_alpha": growth * config["lora_alpha"], "init_lora_weights": True,
    })  # fmt: skip
    with atomic_write(folder / ADAPTER) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
