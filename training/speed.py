"""What makes the inner language model faster: Liger's kernels, compiled layers, attention over packed rows.

All of them act on the language model inside the composite, because none of them knows the composite.
"""

import logging
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from training.arguments import TrainingArguments
from training.packing import check_packable, use_packed_sdpa

logger = logging.getLogger(__name__)

# The loss is computed in the composite, from logits that exist only where labels stand: Liger's losses would replace
# the language model's forward, or torch's cross entropy for every model of the process.
NO_LIGER_LOSS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def speed_up(language_model: PreTrainedModel, training: TrainingArguments, packing: bool) -> None:
    """Does what `--packing`, `--use_liger_kernel` and `--torch_compile` ask for.

    Args:
        language_model: the one inside the composite, with its adapters if there are any.
        training: its `use_liger_kernel` and `torch_compile` are switched off, as the Trainer would apply them to the
            composite.
        packing: samples share rows.
    """
    if packing:
        check_packable(language_model)
        use_packed_sdpa(language_model)
    if training.use_liger_kernel:
        apply_liger(language_model, training.liger_kernel_config or {})
        training.use_liger_kernel = False
    if training.torch_compile:
        compile_layers(language_model, training.torch_compile_backend, training.torch_compile_mode)
        training.torch_compile, training.torch_compile_backend, training.torch_compile_mode = False, None, None


def apply_liger(language_model: PreTrainedModel, settings: dict[str, Any]) -> None:
    """Liger's rotary embedding, norms and MLPs in the language model, as far as it has them; none of its losses.

    Args:
        language_model: a kind that Liger knows.
        settings: of `--liger_kernel_config`, such as `{"rope": false}`.

    Raises:
        ValueError: Liger has nothing for this language model.
    """
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = language_model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(f"--use_liger_kernel: Liger has no kernels for a language model of type {kind!r}. Leave it "
                         "out.")  # fmt: skip
    _apply_liger_kernel_to_instance(model=language_model, **settings | NO_LIGER_LOSS)


def compile_layers(language_model: PreTrainedModel, backend: str, mode: str | None) -> None:
    """Compiles each layer where it stands; names of parameters stay, and layers of one kind share what is compiled.

    The composite itself has sizes that depend on the data (graph tokens, columns with labels), where a compiled graph
    would break and be made again; the layers see tensors of any length.

    Raises:
        ValueError: the language model has no layers that can be told apart.
    """
    layers = [module for module in language_model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        name = type(language_model).__name__
        raise ValueError(f"--torch_compile: the layers of {name} cannot be told from the rest of it. Leave it out.")
    for layer in layers:
        nn.Module.compile(layer, backend=backend, mode=mode, dynamic=True)
    logger.info("%d layers are compiled by %s when they first run.", len(layers), backend)
