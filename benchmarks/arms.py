"""The four arms of train_step.py on the same prompts, graphs and LoRA: how each is built and what its step does."""

import contextlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY = 256, 688, 4, 32_000
FEATURES, GRAPH_TOKENS, GNN_LAYERS, HEADS, BATCH = 384, 4, 4, 4, 8
SYSTEM = "w1 w2 w3 w4 w5 w6"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Sample:
    """A question over a random graph; texts are random words, one token each."""

    context: str
    question: str
    answer: str
    graph: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Arm:
    """`prepare` is what a data loader does before the step and is not timed; `step` returns the loss."""

    prepare: Callable[[list[Sample]], Any]
    step: Callable[[Any], torch.Tensor]
    parameters: list[torch.nn.Parameter]


def write_language_model(folder: Path) -> None:
    """A random Llama and a word-level tokenizer, as a local folder; nothing is downloaded."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<unk>"]
    words = [*special, *(f"w{i}" for i in range(VOCABULARY - len(special)))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(special)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="<|end|>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def make_batches(count: int, seed: int) -> list[list[Sample]]:
    """Batches of BATCH questions of about 100 to 240 tokens with answers of 2 to 4 and graphs of 8 to 24 nodes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def text(length: int) -> str:
        return " ".join(f"w{i}" for i in torch.randint(VOCABULARY - 100, (length,), generator=generator).tolist())

    def sample() -> Sample:
        nodes = draw(8, 24)
        features = torch.randn(nodes, FEATURES, generator=generator)
        edge_index = torch.randint(nodes, (2, 2 * nodes), generator=generator)
        graph = {"node_features": features, "edge_index": edge_index}
        return Sample(text(draw(70, 205)), text(draw(8, 16)), text(draw(2, 4)), graph)

    return [[sample() for _ in range(BATCH)] for _ in range(count)]


def lora(target_modules: Any, modules_to_save: list[str] | None = None) -> Any:
    """The LoRA that GRetriever has built in: r 8, alpha 16, dropout .05."""
    from peft import LoraConfig

    return LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.05, target_modules=target_modules, modules_to_save=modules_to_save
    )


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def build_pyg(folder: Path) -> Arm:
    """GRetriever with a GAT of the same width, depth and heads, and an MLP to as many tokens."""
    from torch_geometric.data import Batch, Data
    from torch_geometric.llm.models import LLM, GRetriever
    from torch_geometric.nn import GAT

    warnings.filterwarnings("ignore", message="LLM is being used on CPU")
    with contextlib.redirect_stdout(sys.stderr):
        llm = LLM(str(folder), num_params=0.001, dtype=torch.float32, sys_prompt=SYSTEM)
    gnn = GAT(FEATURES, HIDDEN, GNN_LAYERS, HIDDEN, v2=False, heads=HEADS, norm="layer")
    model = GRetriever(llm, gnn, use_lora=True, mlp_out_tokens=GRAPH_TOKENS).train()

    def prepare(samples: list[Sample]) -> dict[str, Any]:
        graphs = [Data(x=one.graph["node_features"], edge_index=one.graph["edge_index"]) for one in samples]
        union = Batch.from_data_list(graphs)
        return {
            "question": [one.question for one in samples],
            "label": [one.answer for one in samples],
            "additional_text_context": [one.context for one in samples],
            "x": union.x, "edge_index": union.edge_index, "batch": union.batch,
        }  # fmt: skip

    return Arm(prepare, lambda batch: model(**batch), trainable(model))


def build_ours(folder: Path, every_logit: bool = False) -> Arm:
    """Our model under PEFT. `prepare` tokenises, as `EncodedDataset` does once before training; the step pads."""
    from peft import get_peft_model
    from transformers import AutoTokenizer

    from modeling_graphllm import GraphConfig, GraphLLMForConditionalGeneration
    from processing_graphllm import GraphLLMProcessor

    graph_config = GraphConfig(
        encoder="gat", feature_dim=FEATURES, hidden_dim=HIDDEN, num_layers=GNN_LAYERS, num_heads=HEADS,
        num_tokens=GRAPH_TOKENS, projector="mlp", projector_hidden_dim=HIDDEN,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = GraphLLMProcessor.from_tokenizer(tokenizer, num_graph_tokens=GRAPH_TOKENS)
    model = GraphLLMForConditionalGeneration.from_components(str(folder), graph_config, processor.graph_token_id)
    targets = r"language_model\..*\.(q_proj|v_proj)"
    model = get_peft_model(model, lora(targets, ["graph_encoder", "graph_projector"])).train()

    def prepare(samples: list[Sample]) -> list[dict[str, Any]]:
        return [processor.encode(messages_of(one)) for one in samples]

    def step(encoded: list[dict[str, Any]]) -> torch.Tensor:
        batch = dict(processor.pad(encoded))
        if not every_logit:
            return model(**batch).loss
        targets = F.pad(batch.pop("labels")[:, 1:], (0, 1), value=-100)  # shifting the logits would copy them all
        return F.cross_entropy(model(**batch).logits.flatten(0, 1), targets.flatten())

    return Arm(prepare, step, trainable(model))


def messages_of(sample: Sample) -> list[dict[str, Any]]:
    """The prompt as GRetriever words it, with the graph in front of the text."""
    text = {"type": "text", "text": f"{sample.context} -  - {sample.question}"}
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": [{"type": "graph", "graph": sample.graph}, text]},
        {"role": "assistant", "content": sample.answer},
    ]


def build_lm(folder: Path) -> Arm:
    """The bare language model under PEFT on the ids that ours gets, with the same columns of logits."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from processing_graphllm import GraphLLMProcessor

    processor = GraphLLMProcessor.from_tokenizer(AutoTokenizer.from_pretrained(folder), num_graph_tokens=GRAPH_TOKENS)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora(["q_proj", "v_proj"])).train()

    def prepare(samples: list[Sample]) -> dict[str, torch.Tensor]:
        batch = processor.pad([processor.encode(messages_of(one)) for one in samples])
        ids = batch["input_ids"].masked_fill(batch["input_ids"] == processor.graph_token_id, 0)
        return {"input_ids": ids, "attention_mask": batch["attention_mask"], "labels": batch["labels"]}

    def step(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels, mask = batch["labels"], batch["attention_mask"]
        columns = (labels[:, 1:] != -100).any(dim=0).nonzero().squeeze(-1)
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        logits = model(
            input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions, logits_to_keep=columns,
            use_cache=False,
        ).logits  # fmt: skip
        return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, columns + 1].flatten())

    return Arm(prepare, step, trainable(model))


BUILDERS: dict[str, Callable[[Path], Arm]] = {
    "pyg": build_pyg,
    "ours": build_ours,
    "all_logits": lambda folder: build_ours(folder, every_logit=True),
    "lm": build_lm,
}
