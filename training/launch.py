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
    # PEFT, before the first save, and of its own use of transformers
    warnings.filterwarnings("ignore", message="Could not find a config file in")
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    if training.use_cpu and not torch.accelerator.is_available():
        logger.info("No GPU is present: training on the CPU.")
    if training.use_cpu and training.deepspeed and not torch.distributed.is_initialized():
        # ZeRO-3 reads the world size while the model is built; the Trainer starts the group only afterwards
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    set_seed(training.seed)
