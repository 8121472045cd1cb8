"""The start of a run's processes: logging, the process group where the Trainer would come too late, the seed."""

import logging
import warnings

import torch
import transformers
from transformers import set_seed

from training.arguments import TrainingArguments

logger = logging.getLogger(__name__)


def start(training: TrainingArguments) -> None:
    """Sets logging and the seed; on a CPU under DeepSpeed, starts the process group before any model is built."""
    main = training.process_index == 0
    logging.basicConfig(
        level=logging.INFO if main else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )  # fmt: skip
    for noisy in ("httpx", "DeepSpeed", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    transformers.logging.set_verbosity(logging.WARNING if main else logging.ERROR)
    for said_by_libraries_of_each_other in (
        "Could not find a config file in",  # PEFT, before the first save
        "`is_gradient_checkpointing` is deprecated",  # PEFT of transformers
        "`torch.distributed.",  # DeepSpeed of torch, at every step
    ):
        warnings.filterwarnings("ignore", message=said_by_libraries_of_each_other)
    if training.use_cpu and not torch.accelerator.is_available():
        logger.info("No GPU is present: training on the CPU.")
    if training.use_cpu:
        # numbers too small for float32's usual form make a CPU many times slower and change nothing
        torch.set_flush_denormal(True)
    if training.use_cpu and training.deepspeed:
        # ZeRO-3 asks DeepSpeed for the world size while the model is built; the Trainer tells it only afterwards
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    set_seed(training.seed)
