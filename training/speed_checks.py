"""What is refused about options for speed: rows of checks.py."""

import importlib.util

from training.machine import Check

SPEED_CHECKS = (
    Check(
        "speed of a graph retriever",
        lambda f, m: (
            f.stage != "qa"
            and (f.packing or f.use_liger_kernel or f.torch_compile or f.torch_compile_backend or f.torch_compile_mode)
        ),
        "--packing, --use_liger_kernel and --torch_compile act on a language model, which --stage {stage} has none "
        "of. Leave them out.",
    ),
    Check(
        "flash attention without a GPU",
        lambda f, m: "flash" in (f.attn_implementation or "") and (f.use_cpu or m.gpus == 0),
        "--attn_implementation {attn_implementation} runs on GPUs only. Leave it out: sdpa is the default.",
    ),
    Check(
        "flash attention in float32",
        lambda f, m: (
            "flash" in (f.attn_implementation or "") and not (f.bf16 or f.fp16 or f.dtype in ("bfloat16", "float16"))
        ),
        "--attn_implementation {attn_implementation} computes in 16 bits. Add --bf16 True.",
    ),
    Check(
        "Liger without a GPU",
        lambda f, m: f.use_liger_kernel and (f.use_cpu or m.gpus == 0),
        "--use_liger_kernel runs kernels that are written for GPUs. Leave it out on a CPU.",
    ),
    Check(
        "Liger not installed",
        lambda f, m: f.use_liger_kernel and importlib.util.find_spec("liger_kernel") is None,
        "--use_liger_kernel needs Liger. Run `pip install liger-kernel`.",
    ),
    Check(
        "lengths of lazy rows",
        lambda f, m: f.lazy_preprocess and f.train_sampling_strategy == "group_by_length",
        "--train_sampling_strategy group_by_length needs every length before the first step, which --lazy_preprocess "
        "puts off. Leave one of them out.",
    ),
)
