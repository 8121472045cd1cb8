"""What is refused about engines, number formats and quantisation: rows of checks.py."""

import importlib.util
from argparse import Namespace

from training.alignments import is_alignment
from training.deepspeed_file import deepspeed_config, zero_stage
from training.engines import SHARDED, TAKES_FROM_BASE, asked_engine, offloads, refusal
from training.machine import Check


def fixed_batch(flags: Namespace) -> int | None:
    """The train_batch_size that the DeepSpeed file fixes, if it does."""
    size = deepspeed_config(flags).get("train_batch_size", "auto")
    return None if size == "auto" else int(size)


ENGINE_CHECKS = (
    Check(
        "ZeRO-3 of a graph retriever",
        lambda f, m: f.stage != "qa" and zero_stage(f) == 3,
        "{deepspeed} would partition a model of a few million parameters, which --stage {stage} does not support. Use "
        "ds_configs/zero1.json or zero2.json, or no DeepSpeed.",
    ),
    Check(
        "no GPU",
        lambda f, m: f.use_cpu is False and m.gpus == 0,
        "A GPU was asked for (--use_cpu False), but this process sees none. Leave the flag out for the CPU, or "
        "check the driver and CUDA_VISIBLE_DEVICES.",
    ),
    Check(
        "several GPUs without torchrun",
        lambda f, m: m.gpus > 1 and not m.launched and not f.use_cpu and not f.dry_run,
        "{gpus} GPUs are visible to one process, whose batches of graphs would be cut by row. Start with `torchrun "
        "--nproc_per_node {gpus} finetune.py ...` or shells/finetune_lora_ds.sh, or set CUDA_VISIBLE_DEVICES.",
    ),
    Check(
        "no deepspeed",
        lambda f, m: f.deepspeed and importlib.util.find_spec("deepspeed") is None,
        "--deepspeed {deepspeed} needs deepspeed, which is not installed. Run `pip install deepspeed`, or leave the "
        "flag out.",
    ),
    Check(
        "DeepSpeed by accelerate",
        lambda f, m: m.accelerate_deepspeed and not f.deepspeed,
        "The configuration of accelerate asks for DeepSpeed, whose batch and steps would not be those of the flags. "
        "Take it out there and give --deepspeed ds_configs/zero2.json here.",
    ),
    Check(
        "DeepSpeed without ZeRO",
        lambda f, m: f.deepspeed and zero_stage(f) not in (1, 2, 3),
        "{deepspeed} sets no stage of ZeRO from 1 to 3. Set zero_optimization.stage, or leave --deepspeed out: "
        "torchrun alone gives every process a whole copy.",
    ),
    Check(
        "DeepSpeed batch",
        lambda f, m: fixed_batch(f) not in (None, f.per_device_train_batch_size * m.accumulation(f) * m.processes),
        "{deepspeed} fixes a train_batch_size that is not --per_device_train_batch_size "
        "{per_device_train_batch_size} x --gradient_accumulation_steps x {processes} processes. Set it to \"auto\".",
    ),
    Check(
        "batch that does not divide",
        lambda f, m: f.total_batch_size and f.total_batch_size % (f.per_device_train_batch_size * m.processes),
        "--total_batch_size {total_batch_size} does not divide into {processes} processes of "
        "--per_device_train_batch_size {per_device_train_batch_size}. Choose a multiple of their product, or another "
        "number of processes.",
    ),
    Check(
        "batch said twice",
        lambda f, m: f.total_batch_size and f.gradient_accumulation_steps != 1,
        "--total_batch_size {total_batch_size} sets the steps of accumulation, and --gradient_accumulation_steps "
        "{gradient_accumulation_steps} does too. Leave one of them out.",
    ),
    Check(
        "bf16 on this hardware",
        lambda f, m: f.bf16 and not f.use_cpu and not m.bf16,
        "--bf16 needs a GPU that calculates in bfloat16 (Ampere or newer), this one does not. Use --fp16 True, or "
        "leave both out.",
    ),
    Check(
        "DeepSpeed optimizer",
        lambda f, m: "optimizer" in deepspeed_config(f),
        "{deepspeed} has an optimizer block, which would override --optim, --learning_rate and --graph_learning_rate. "
        "Remove the block.",
    ),
    Check(
        "DeepSpeed scheduler",
        lambda f, m: "scheduler" in deepspeed_config(f),
        "{deepspeed} has a scheduler block, which would override --lr_scheduler_type. Remove the block.",
    ),
    Check(
        "ZeRO-3 save",
        lambda f, m: (
            zero_stage(f) == 3
            and not deepspeed_config(f)["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save")
        ),
        "{deepspeed} would save empty weights under ZeRO-3. Set stage3_gather_16bit_weights_on_model_save to true.",
    ),
    Check(
        "ZeRO-3 prediction",
        lambda f, m: zero_stage(f) == 3 and f.do_predict,
        "--do_predict does not run on weights partitioned by ZeRO-3. Leave it out, and run `python -m evaluation "
        "generate` on the output.",
    ),
    Check(
        "FSDP on CPU",
        lambda f, m: f.fsdp and (f.use_cpu or m.gpus == 0),
        "--fsdp has no effect on a CPU: training would fall back to whole copies. Leave it out, or use a GPU.",
    ),
    Check("fp16 and bf16", lambda f, m: f.fp16 and f.bf16, "--fp16 and --bf16 exclude each other. Set one of them."),
    Check(
        "fp16 on CPU",
        lambda f, m: f.fp16 and (f.use_cpu or m.gpus == 0),
        "--fp16 does not train on a CPU. Use --bf16 True, or leave both out.",
    ),
    Check(
        "quantised without adapters",
        lambda f, m: f.q_lora and (f.freeze_lm or not f.use_lora),
        "--q_lora trains adapters on a quantised model. Set --use_lora True and --freeze_lm False.",
    ),
    Check(
        "quantised without bitsandbytes",
        lambda f, m: f.q_lora and importlib.util.find_spec("bitsandbytes") is None,
        "--q_lora needs bitsandbytes. Run `pip install bitsandbytes`.",
    ),
    Check(
        "quantised with init_from",
        lambda f, m: f.q_lora and f.init_from and not is_alignment(f.init_from),
        "--q_lora quantises a base model when it is first loaded. Pass --model_name_or_path instead of --init_from.",
    ),
    Check(
        "optimizer off the GPU",
        lambda f, m: offloads(f) and "8bit" in f.optim,
        "{deepspeed} keeps the optimizer on the CPU, where DeepSpeed would take its own Adam, without AdamW's decay, "
        "for --optim {optim}. Use adamw_torch, or leave the offload out.",
    ),
    Check(
        "engine",
        lambda f, m: refusal(f, m.processes),
        "This engine does not train that: {reason}. README.md has the table of what each engine trains.",
    ),
    Check(
        "start of adapters on a quantised model",
        lambda f, m: f.q_lora and f.lora_init in TAKES_FROM_BASE,
        "--lora_init {lora_init} takes a part out of the base model's weights, which are quantised here. Use loftq, "
        "or leave --q_lora out.",
    ),
    Check(
        "start of partitioned adapters",
        lambda f, m: f.lora_init in (*TAKES_FROM_BASE, "loftq") and asked_engine(f, m.processes) in SHARDED,
        "--lora_init {lora_init} reads whole weights while the model is built, and this engine partitions them. Use "
        "ZeRO-2, or another start.",
    ),
    Check(
        "start with DoRA",
        lambda f, m: f.lora_init in TAKES_FROM_BASE and f.use_dora,
        "--lora_init {lora_init} and --use_dora True both change what the base model's weights stand for. Set one of "
        "them.",
    ),
    Check(
        "loftq without 4 bits",
        lambda f, m: f.lora_init == "loftq" and not (f.q_lora and f.q_bits == 4),
        "--lora_init loftq makes up for what 4 bits lose. Set --q_lora True and --q_bits 4, or use another start.",
    ),
    Check(
        "step of a graph retriever",
        lambda f, m: f.inspect_step is not None and f.stage != "qa",
        "--inspect_step shows the examples of a language model, and --stage {stage} has batches of questions. Leave "
        "it out.",
    ),
    Check(
        "step without training",
        lambda f, m: f.inspect_step is not None and not f.do_train,
        "--inspect_step {inspect_step} is a step of training. Leave --do_train False out.",
    ),
)
