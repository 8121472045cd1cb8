"""The flags of finetune.py, one dataclass a room; training/arguments.py reads them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import transformers
from transformers.hf_argparser import HfArg

from training.machine import Machine


@dataclass
class RunArguments:
    stage: Literal["qa", "align", "graph", "gfm_pretrain", "gfm_finetune"] = HfArg(
        default="qa", help="What is trained: see training/stages.py."
    )
    init_from: str | None = HfArg(default=None, help="Output folder of a run whose weights this one starts from.")
    dry_run: bool = HfArg(default=False, help="Build everything, print parameters, one example and memory, and stop.")
    json: str | None = HfArg(default=None, help="With --dry_run: also write its figures to this file.")
    publish: str | None = HfArg(
        default=None, help="Train nothing: push this folder, an earlier output, to --hub_model_id."
    )
    hub_license: str | None = HfArg(default=None, help="Licence of what is pushed, in the Hub's words: mit, ...")
    include_base: bool = HfArg(default=False, help="Copy the base model into base/ of the output folder.")
    use_wandb: bool = HfArg(default=False, help="Log to Weights & Biases (WANDB_MODE=offline works without a key).")
    wandb_project: str = HfArg(default="graphllm", help="Project name at Weights & Biases.")
    wandb_run_name: str | None = HfArg(default=None, help="Run name there; by default the output folder.")


@dataclass
class ModelArguments:
    model_name_or_path: str | None = HfArg(default=None, help="Base language model: a Hub id or a local folder.")
    model_revision: str | None = HfArg(default=None, help="Branch, tag or commit of the base model.")
    cache_dir: str | None = HfArg(default=None, help="Where downloads are kept.")
    dtype: str | None = HfArg(
        default=None,
        help="float32, bfloat16, float16 or auto (the checkpoint's). By default float32, or auto where --bf16 or "
        "--fp16 is set and the language model itself is not trained.",
    )
    attn_implementation: str | None = HfArg(
        default=None, help="sdpa (the default), eager, flash_attention_2 (needs a GPU and flash-attn; not verified)."
    )
    freeze_lm: bool = HfArg(default=False, help="Train the graph modules only: no LoRA, no language-model weight.")
    prompt_tuning: int = HfArg(
        default=0, help="Learned tokens in front of the prompt, where graph tokens would stand; with --freeze_lm True "
        "they are all that is trained."
    )
    chat_template: str | None = HfArg(default=None, help="Jinja file to use instead of the tokenizer's template.")
    model_max_length: int = HfArg(default=8192, help="Longest example in tokens; the prompt is cut, never the answer.")
    max_new_tokens: int = HfArg(default=32, help="Longest answer of --do_predict, in tokens.")


@dataclass
class GraphArguments:
    """What is left out keeps the default of GraphConfig in modeling_graphllm.py."""

    graph_encoder: str | None = HfArg(default=None, help="gcn, gat, graph_transformer, sage, mpnn or none.")
    graph_hidden_dim: int | None = HfArg(default=None, help="Width of the encoder.")
    graph_num_layers: int | None = HfArg(default=None, help="Layers of message passing.")
    graph_num_heads: int | None = HfArg(default=None, help="Attention heads of gat and graph_transformer.")
    graph_dropout: float | None = HfArg(default=None, help="Dropout inside the encoder.")
    graph_norm: str | None = HfArg(default=None, help="layer or graph.")
    graph_aggregations: list[str] | None = HfArg(default=None, help="Of mpnn: any of sum max mean var.")
    graph_bidirectional: bool | None = HfArg(default=None, help="True or False: messages also against the edges.")
    graph_readout: str | None = HfArg(
        default=None, help="mean (a fixed number of tokens), nodes (one per node), qformer (learned queries), ho or "
        "nd (the neighbourhood of the asked node, hop by hop or as a tree, without parameters)."
    )  # fmt: skip
    num_graph_tokens: int | None = HfArg(default=None, help="Of one graph: readout mean 8, qformer 32, ho 5, nd 111.")
    max_graph_nodes: int | None = HfArg(default=None, help="Most nodes that readout nodes and qformer look at.")
    qformer_dim: int | None = HfArg(default=None, help="Width of the Q-Former.")
    qformer_num_layers: int | None = HfArg(default=None, help="Its layers.")
    qformer_num_heads: int | None = HfArg(default=None, help="Its attention heads.")
    qformer_intermediate_dim: int | None = HfArg(default=None, help="Inner width of its feed-forward networks.")
    qformer_dropout: float | None = HfArg(default=None, help="Its dropout.")
    cross_attention_every: int | None = HfArg(default=None, help="Every so many of its layers read the graph.")
    state_layers: str | None = HfArg(
        default=None, help="Of the qformer: last (a node has one state) or all (one after each layer of the encoder)."
    )
    states_per_vector: int | None = HfArg(
        default=None, help="Linear images of each state that queries choose from; above 1 where graphs have one node."
    )
    graph_projector: str | None = HfArg(default=None, help="mlp, ffn or linear.")
    projector_hidden_dim: int | None = HfArg(default=None, help="Inner width of the projector.")
    projector_dropout: float | None = HfArg(default=None, help="Dropout of the ffn projector.")
    projector_scale: float | None = HfArg(
        default=None, help="Size that the ffn projector's tokens start with: best that of the language model's own."
    )
    graph_token_dropout: float | None = HfArg(
        default=None, help="Share of graphs whose tokens are zeroed in training: the model learns what no graph is."
    )
    graph_token: str = HfArg(default="<|graph|>", help="Placeholder of a graph in the rendered prompt.")


@dataclass
class LoraArguments:
    use_lora: bool = HfArg(default=True, help="Train adapters of the language model; False trains it in full.")
    q_lora: bool = HfArg(
        default=False, help="Hold the frozen base model in --q_bits; --optim is then adamw_8bit if it is not given."
    )
    q_bits: Literal[4, 8] = HfArg(default=4, help="4 (NF4, double quantisation) or 8 (LLM.int8).")
    lora_r: int = HfArg(default=64, help="Rank.")
    lora_alpha: int = HfArg(default=16, help="Scale: the update is multiplied by alpha / r.")
    lora_dropout: float = HfArg(default=0.05, help="Dropout before the adapters.")
    lora_target_modules: list[str] | None = HfArg(
        default=None,
        help="Names such as q_proj v_proj, or one regular expression, inside the language model. By default every "
        "linear layer of it but the output head.",
    )
    use_dora: bool = HfArg(default=False, help="DoRA: the update's length is trained beside its direction.")
    use_rslora: bool = HfArg(default=False, help="rsLoRA: the update is multiplied by alpha / sqrt(r) instead.")
    lora_init: Literal["default", "gaussian", "orthogonal", "olora", "pissa", "loftq"] = HfArg(
        default="default",
        help="What the adapters start as. pissa and olora take over a part of the base model's weights and are saved "
        "as plain LoRA of twice the rank; loftq makes up for what 4 bits lose.",
    )
    loraplus_lr_ratio: float | None = HfArg(
        default=None, help="LoRA+: the learning rate of the adapters' second matrix as a multiple of --learning_rate."
    )


@dataclass
class DataArguments:
    data_path: list[str] | None = HfArg(
        default=None,
        help="A dataset folder, a table (CSV, JSON, Parquet), a data set's name on the Hub, conversation JSON or chat "
        "JSON lines. The stages of a graph retriever take several dataset folders.",
    )
    columns: list[str] | None = HfArg(
        default=None,
        help="Of a table: ROLE=COLUMN with a role of question, answer, id, type, group (rows of a group stay in one "
        "split). By default question=question answer=answer.",
    )
    dataset_config: str | None = HfArg(default=None, help="Configuration of a data set of the Hub.")
    dataset_revision: str | None = HfArg(default=None, help="Branch, tag or commit of a data set of the Hub.")
    test_rows: str | None = HfArg(default=None, help="Of a table: COLUMN=VALUE of the rows that are tested on.")
    test_size: int = HfArg(
        default=0, help="Rows that are tested on, taken out of a table that has no --test_split and no --test_rows."
    )
    subset: int | None = HfArg(default=None, help="Of a table: train on so many rows of those left.")
    split_seed: int = HfArg(default=0, help="Of the draw of a table's splits and --subset.")
    train_split: str = HfArg(default="train", help="Split that is trained on.")
    validation_split: str = HfArg(default="validation", help="Split that --do_eval and --eval_strategy read.")
    test_split: str = HfArg(default="test", help="Split that --do_predict answers.")
    validation: bool = HfArg(
        default=True, help="Data without a validation split: take --validation_size rows out of the training rows."
    )
    validation_size: int = HfArg(
        default=1000, help="Rows taken out of training; a tenth, with a warning, if that would leave none."
    )
    context: Literal["none", "documents", "text", "graph", "both"] | None = HfArg(
        default=None,
        help="What stands beside the question: nothing, the nearest documents, the subgraph as text, as graph tokens, "
        "or both. Sets --use_graph and --use_text.",
    )
    use_graph: bool = HfArg(default=True, help="Give the model graph tokens.")
    use_text: bool = HfArg(default=True, help="Write the subgraph's facts into the prompt.")
    documents: str | None = HfArg(
        default=None, help="A folder of texts, a text or documents.jsonl; by default documents.jsonl of the data set, "
        "or the documents of its graph."
    )
    document_encoder: str = HfArg(default="hashing", help="What embeds them, as for `python -m data_processor embed`.")
    top_documents: int = HfArg(default=5, help="Chunks of documents that a question is shown.")
    chunk_tokens: int = HfArg(default=256, help="Longest chunk of a document.")
    document_index: Literal["exact", "hnsw", "ivf"] = HfArg(default="exact", help="exact; by FAISS hnsw, ivf.")
    text_style: str = HfArg(default="triples", help="triples or tables.")
    max_text_tokens: int | None = HfArg(default=None, help="Budget for the facts in the prompt; the worst go first.")
    lazy_preprocess: bool = HfArg(default=False, help="Tokenise each time a row is read, instead of once before.")
    no_cache: bool = HfArg(default=False, help="Tokenise and embed anew, and keep nothing of it.")
    preprocess_cache: str | None = HfArg(default=None, help="Folder of tokenised rows, reused while nothing changed.")
    packing: bool = HfArg(
        default=False, help="Put the examples of a batch into one row instead of padding them to the longest."
    )

    @property
    def path(self) -> str:
        """The one path of a stage that takes one; of a collection without a graph, its conversations."""
        (path,) = self.data_path
        conversations = Path(path) / "conversations.json"
        if self.context or not conversations.is_file() or (Path(path) / "graph").exists():
            return path
        return str(conversations)


@dataclass
class AlignArguments:
    """Of the stage align; the Q-Former's own shape is a matter of the graph's flags."""

    align_text_tokens: int = HfArg(default=512, help="Longest text, in tokens; the end of a longer one is not read.")
    align_dim: int = HfArg(default=256, help="Width of the space that graphs and texts share.")
    align_temperature: float = HfArg(default=0.07, help="That similarities are divided by at first; it is learned.")
    align_smoothing: float = HfArg(default=0.1, help="Share of the contrast's targets that is spread over all pairs.")
    contrastive_weight: float = HfArg(default=1.0, help="Of telling a pair from all others; 0 leaves it out.")
    matching_weight: float = HfArg(default=1.0, help="Of telling a pair from hard negatives; 0 leaves it out.")
    captioning_weight: float = HfArg(default=1.0, help="Of writing the text of a graph; 0 leaves it out.")
    qformer_init: Literal["random", "bert"] = HfArg(
        default="random", help="What the Q-Former starts as: random, or the BERT that --model_name_or_path names."
    )
    hide_node: bool = HfArg(
        default=False, help="Zeros for a node's own vector, where it was made of the very text that is to be found."
    )


@dataclass
class GFMArguments:
    """Of a graph retriever. What is left out keeps the default of GFMConfig in modeling_gfm.py, and of the stage."""

    gfm_hidden_dim: int | None = HfArg(default=None, help="Width of the states.")
    gfm_num_layers: int | None = HfArg(default=None, help="Steps of message passing.")
    gfm_message: str | None = HfArg(default=None, help="distmult, transe or rotate.")
    gfm_aggregation: str | None = HfArg(default=None, help="sum, mean, max, min or pna.")
    gfm_messages: str | None = HfArg(default=None, help="along the edges, or against them.")
    gfm_relation_source: str | None = HfArg(
        default=None, help="text (embedded relation texts), or graph (relations that meet; needs no text)."
    )
    gfm_question_relations: bool | None = HfArg(default=None, help="Relation vectors made from the question, too.")
    gfm_question_gates: bool | None = HfArg(
        default=None, help="With gfm_question_relations: the question only says how much each relation counts."
    )
    gfm_question_attention: bool | None = HfArg(
        default=None, help="Each layer reads its own words of the question; with gfm_question_relations, fine-tuning."
    )
    gfm_hold_unreached: bool | None = HfArg(default=None, help="Nodes that no message has reached stay at zero.")
    gfm_seed_weights: bool | None = HfArg(default=None, help="Seeds start with 1 / number of documents naming them.")
    gfm_concat_hidden: bool | None = HfArg(default=None, help="The read-out sees the states of all layers.")
    gfm_bce_weight: float | None = HfArg(default=None, help="Of the binary cross-entropy (1, fine-tuning .3).")
    gfm_list_ce_weight: float | None = HfArg(default=None, help="Of the list cross-entropy (0, fine-tuning .7).")
    gfm_softmax_weight: float | None = HfArg(default=None, help="Of the softmax cross-entropy.")
    gfm_adversarial_temperature: float | None = HfArg(
        default=None, help="Of the weights of negatives (1, fine-tuning .2); 0 for equal weights."
    )
    gfm_document_weight: float | None = HfArg(default=None, help="Share of the loss that is taken over documents.")
    gfm_ranker: str | None = HfArg(default=None, help="simple, idf, topk or idf_topk.")
    gfm_top_entities: int | None = HfArg(default=None, help="Entities that the last two rankers look at.")
    questions_per_batch: int = HfArg(default=8, help="Questions, or triples, that a batch asks of one graph.")
    num_negatives: int = HfArg(
        default=256, help="Wrong nodes that a triple is compared with in pre-training; 0 for every node."
    )
    max_batches_per_epoch: int | None = HfArg(default=None, help="Most batches of each graph in an epoch.")
    validation_sample: int | None = HfArg(default=None, help="Most triples or questions of each graph to evaluate on.")
    target_nodes: Literal["answers", "documents"] | None = HfArg(
        default=None,
        help="What is right: answer nodes, or the nodes that supporting documents name. By default the first that a "
        "question has.",
    )
    mask_seeds: bool | None = HfArg(
        default=None, help="Hide the names of seed nodes from the text encoder. Default: as --init_from did, or False."
    )
    on_subgraphs: bool = HfArg(default=False, help="Score the nodes of subgraphs/ instead of the whole graph.")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """Hugging Face's, with the settings that flat graph batches need, and a CPU where there is no GPU."""

    output_dir: str | None = HfArg(default="output/run", help="Where the model, run.json and checkpoints are written.")
    do_train: bool = HfArg(default=True, help="Train. Default True.")
    use_cpu: bool | None = HfArg(default=None, help="Train on the CPU. Default: where no GPU is present.")
    optim: str = HfArg(default="adamw_torch", help="Optimizer, by its name in Hugging Face's Trainer.")
    graph_learning_rate: float | None = HfArg(
        default=None, help="Learning rate of the graph encoder and projector. Default: --learning_rate."
    )
    total_batch_size: int | None = HfArg(
        default=None,
        help="Examples of an optimizer step over all processes; sets --gradient_accumulation_steps, so that the same "
        "flags give the same steps on any number of GPUs.",
    )
    inspect_step: int | None = HfArg(default=None, help="Show the examples of this optimizer step, and stop.")
    resume_from_checkpoint: str | None = HfArg(
        default="auto", help="auto (the last whole checkpoint of --output_dir), none, or a folder."
    )
    remove_unused_columns: bool = HfArg(default=False, help="Must stay False: the collator needs the graphs.")
    label_names: list[str] | None = HfArg(default_factory=lambda: ["labels"], help="Keys of a batch that are labels.")
    prediction_loss_only: bool = HfArg(default=True, help="Evaluation keeps the loss, not the logits. Default True.")
    ddp_find_unused_parameters: bool | None = HfArg(default=False, help="False: every parameter runs in every step.")
    accelerator_config: dict | str | None = HfArg(
        default_factory=lambda: {"dispatch_batches": False}, help="JSON. Batches must not be cut by row."
    )

    hub_strategy: str = HfArg(
        default="end", help="When --push_to_hub pushes: end (the whole folder), or every_save (also each checkpoint)."
    )
    use_liger_kernel: bool = HfArg(
        default=False,
        help="Liger's norms, MLPs and rotary embedding in the language model (not verified: needs a GPU).",
    )
    torch_compile: bool = HfArg(
        default=False, help="Compile the layers of the language model (verified on a CPU; not verified on a GPU)."
    )

    def __post_init__(self) -> None:
        if self.use_cpu is None:
            self.use_cpu = not torch.accelerator.is_available()
        if self.use_cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        self.gradient_accumulation_steps = Machine.here().accumulation(self)
        super().__post_init__()
