"""The Translator's first stage: graphs and texts in one space, by a Q-Former that reads either and both.

Beside modeling_graphllm.py, whose encoder and Q-Former it trains: stage 2 is a GraphLLM that starts from them.

Shapes: B pairs of a graph and a text, A pairs of all processes, K queries of width W, L states of a graph of width D,
T tokens of a text, P width of the common space.

Three losses on one Q-Former (BLIP-2, arXiv 2301.12597, section 3.2), which differ in who may attend to whom:
contrast (queries and text apart), matching (queries and text together), captioning (text sees queries and its past).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, BertModel, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import ModelOutput

from modeling_graphllm import GraphConfig, GraphEncoder, GraphLLMPreTrainedModel, GraphQFormer, first_nodes

LARGEST_SCALE = math.log(100)  # of similarities, as in CLIP (arXiv 2103.00020, section 2.5)
# parts of BERT by their names in a Q-Former
BERT_NAMES = {"attention.self.": "attention.attention.", "embeddings.LayerNorm.": "layernorm."}


class GraphAlignerConfig(PreTrainedConfig):
    """How graphs and texts are aligned.

    Args:
        graph_config: encoder and Q-Former; its read-out is `qformer`.
        vocab_size: tokens of the tokenizer; three more ids begin a text, begin a caption and end both.
        max_text_tokens: longest text, with beginning and end.
        contrastive_dim: P.
        temperature: that similarities are divided by at first; it is learned.
        label_smoothing: share of the contrast's targets that is spread over all pairs.
        contrastive_weight, matching_weight, captioning_weight: of the losses; 0 leaves one out.
        feature_encoder: made the node and edge features.
        hide_node: zeros stood for the vector of the node whose text was told.
    """

    model_type = "graphllm_aligner"
    sub_configs_defaults = {"graph_config": SubConfigSpec(config_class=GraphConfig)}

    graph_config: dict | PreTrainedConfig | None = None
    vocab_size: int = 30522
    max_text_tokens: int = 512
    contrastive_dim: int = 256
    temperature: float = 0.07
    label_smoothing: float = 0.1
    contrastive_weight: float = 1.0
    matching_weight: float = 1.0
    captioning_weight: float = 1.0
    initializer_range: float = 0.02
    feature_encoder: str | None = None
    hide_node: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        weights = self.contrastive_weight, self.matching_weight, self.captioning_weight
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                f"The weights of contrast, matching and captioning are {weights}: all must be 0 or more, and one "
                "above 0. Set --contrastive_weight, --matching_weight, --captioning_weight."
            )

    @property
    def text_start(self) -> int:
        """Id that begins a text."""
        return self.vocab_size

    @property
    def caption_start(self) -> int:
        """Id that begins a text that is to be written."""
        return self.vocab_size + 1

    @property
    def text_end(self) -> int:
        """Id that ends a text."""
        return self.vocab_size + 2


@dataclass
class AlignerOutput(ModelOutput):
    """The weighted sum and its parts, each a mean over the pairs (captioning: tokens) of all processes."""

    loss: Tensor | None = None
    contrastive: Tensor | None = None
    matching: Tensor | None = None
    captioning: Tensor | None = None


class GraphAligner(GraphLLMPreTrainedModel):
    """Graph encoder, Q-Former, text embeddings and the heads of the three losses.

    Args:
        config: its configuration.
    """

    config: GraphAlignerConfig
    config_class = GraphAlignerConfig
    accepts_loss_kwargs = False  # the losses are means: the Trainer divides them by the accumulation
    _keep_in_fp32_modules_strict = None

    def __init__(self, config: GraphAlignerConfig) -> None:
        super().__init__(config)
        width, common = config.graph_config.qformer_dim, config.contrastive_dim
        self.graph_encoder = GraphEncoder(config.graph_config)
        self.qformer = GraphQFormer(config.graph_config, reads_text=True)
        self.word_embeddings = nn.Embedding(config.vocab_size + 3, width)
        self.position_embeddings = nn.Embedding(config.max_text_tokens, width)
        self.graph_projection, self.text_projection = nn.Linear(width, common), nn.Linear(width, common)
        self.scale = nn.Parameter(torch.empty(1))  # logarithm of 1 / temperature; FSDP takes no scalars
        self.matching_head = nn.Linear(width, 2)
        self.caption_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.caption_bias = nn.Parameter(torch.empty(config.vocab_size + 3))
        self.post_init()
        self._rest_unused()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GraphAligner):
            init.constant_(module.scale, -math.log(self.config.temperature))
            init.zeros_(module.caption_bias)

    def _rest_unused(self) -> None:
        """No gradient for what only a loss of weight 0 would use: data parallel training waits for every gradient."""
        heads = {
            "contrastive_weight": (self.graph_projection, self.text_projection),
            "matching_weight": (self.matching_head,),
            "captioning_weight": (self.caption_head,),
        }
        for name, modules in heads.items():
            if self.config.to_dict()[name] == 0:
                for module in modules:
                    module.requires_grad_(False)
        self.scale.requires_grad_(self.config.contrastive_weight > 0)
        self.caption_bias.requires_grad_(self.config.captioning_weight > 0)

    @torch.no_grad()
    def start_from_bert(self, name_or_path: str, start: int, end: int) -> None:
        """Takes the layers and embeddings of a BERT of the same width and number of layers; what a BERT does not have
        (queries, cross-attention, heads) keeps its random start.

        Args:
            name_or_path: of the BERT.
            start, end: ids of its [CLS] and [SEP].

        Raises:
            ValueError: it is no BERT, or one of other sizes.
        """
        check_bert(name_or_path, self.config)
        bert = BertModel.from_pretrained(name_or_path, add_pooling_layer=False)
        words, table = bert.embeddings.word_embeddings.weight, self.word_embeddings.weight
        # BERT adds its embedding of "first sentence" to every token
        table[: len(words)] = words + bert.embeddings.token_type_embeddings.weight[0]
        table[-3:] = table[[start, start, end]]
        positions = bert.embeddings.position_embeddings.weight
        self.position_embeddings.weight[: len(positions)] = positions[: self.config.max_text_tokens]
        own, taken = self.qformer.model.state_dict(), {}
        for name, value in bert.state_dict().items():
            for theirs, ours in BERT_NAMES.items():
                name = name.replace(theirs, ours)
            both = name, name.replace("intermediate.", "intermediate_query.")
            if ".attention.output." not in name:
                both = name, both[1].replace(".output.", ".output_query.")
            taken |= {one: value for one in both if one in own}
        self.qformer.model.load_state_dict(taken, strict=False)

    # ------------------------------------------------------------------------------------------------ the three passes
    def graph_states(self, graph_node_features: Tensor, graph_edge_index: Tensor, graph_edge_features: Tensor | None,
                     graph_batch: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What queries attend to, padded, and where there is some; arguments as `get_graph_features`.

        Returns:
            (B, L, D), (B, L) bool
        """
        hidden = self.graph_encoder(graph_node_features, graph_edge_index, graph_edge_features, graph_batch)
        kept = first_nodes(graph_batch, self.config.graph_config.max_nodes)
        return self.qformer.states(hidden[kept], graph_batch[kept])

    def read_graphs(self, states: Tensor, mask: Tensor) -> Tensor:
        """Queries over states, without text. (B, L, D), (B, L) -> (B, K, W)"""
        queries = self.qformer.queries.expand(len(states), -1, -1)
        return self.qformer.model(queries, encoder_hidden_states=states, encoder_attention_mask=mask).last_hidden_state

    def embed_graphs(self, states: Tensor, mask: Tensor) -> Tensor:
        """Graphs in the common space, a unit vector each query. -> (B, K, P)"""
        return F.normalize(self.graph_projection(self.read_graphs(states, mask)), dim=-1)

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Texts in the common space, without graphs. (B, T), (B, T) -> (B, P) unit vectors"""
        tokens = self._embed(input_ids)
        hidden = self.qformer.model(tokens, query_length=0, attention_mask=attention_mask).last_hidden_state
        return F.normalize(self.text_projection(hidden[:, 0]), dim=-1)

    def match(self, states: Tensor, mask: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Whether graph and text belong together, every query and token seeing all of them. -> (B, 2) logits"""
        seen = torch.cat([attention_mask.new_ones(len(states), self.qformer.queries.shape[0]), attention_mask], dim=1)
        hidden = self._read_both(states, mask, input_ids, seen)
        return self.matching_head(hidden[:, : self.qformer.queries.shape[0]]).mean(dim=1)

    def caption(self, states: Tensor, mask: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The next token of each place of a text, from the queries and the tokens up to it. -> (B, T, vocabulary)"""
        first = torch.full_like(input_ids[:, :1], self.config.caption_start)
        seen = caption_mask(self.qformer.queries.shape[0], attention_mask, states.dtype)
        hidden = self._read_both(states, mask, torch.cat([first, input_ids[:, 1:]], dim=1), seen)
        hidden = self.caption_head(hidden[:, self.qformer.queries.shape[0] :])
        return hidden @ self.word_embeddings.weight.T + self.caption_bias

    def _embed(self, input_ids: Tensor) -> Tensor:
        return self.word_embeddings(input_ids) + self.position_embeddings.weight[: input_ids.shape[1]]

    def _read_both(self, states: Tensor, mask: Tensor, input_ids: Tensor, seen: Tensor) -> Tensor:
        """(B, L, D), (B, L), (B, T), a mask of queries and text -> (B, K + T, W)"""
        queries = self.qformer.queries.expand(len(states), -1, -1)
        both = torch.cat([queries, self._embed(input_ids)], dim=1)
        # only queries attend to states, so the mask must not have a row for each query and token: one serves all
        reads = {"encoder_hidden_states": states, "encoder_attention_mask": added(mask[:, None, None], states.dtype)}
        return self.qformer.model(both, query_length=queries.shape[1], attention_mask=seen, **reads).last_hidden_state

    # ------------------------------------------------------------------------------------------------------ the losses
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        graph_node_features: Tensor,
        graph_edge_index: Tensor,
        graph_batch: Tensor,
        text_index: Tensor,
        graph_edge_features: Tensor | None = None,
    ) -> AlignerOutput:
        """The losses of B pairs; in training contrast and negatives reach over the pairs of all processes.

        Args:
            input_ids, attention_mask: (B, T), `text_start`, the text, `text_end`, right-padded.
            graph_node_features, graph_edge_index, graph_edge_features, graph_batch: as for GraphLLM, one graph a pair.
            text_index: (B,) int64, equal where texts are: these are no negatives of each other.
        """
        states, mask = self.graph_states(graph_node_features, graph_edge_index, graph_edge_features, graph_batch)
        graphs, texts = self.embed_graphs(states, mask), self.embed_texts(input_ids, attention_mask)
        scale = self.scale.clamp(max=LARGEST_SCALE).exp()
        to_texts = similarity(graphs, self._together(texts)) * scale  # (B, A)
        to_graphs = similarity(self._together(graphs), texts).T * scale  # (B, A)
        same = text_index[:, None] == self._together(text_index)  # (B, A)
        out = AlignerOutput(loss=states.new_zeros(()))
        if self.config.contrastive_weight:
            losses = [contrast(one, same, self.config.label_smoothing) for one in (to_texts, to_graphs)]
            out.contrastive = mean_of_all(sum(losses) / 2)
            out.loss = out.loss + self.config.contrastive_weight * out.contrastive
        if self.config.matching_weight:
            pairs = states, mask, input_ids, attention_mask
            out.matching = mean_of_all(self._matching(*pairs, to_texts, to_graphs, same))
            out.loss = out.loss + self.config.matching_weight * out.matching
        if self.config.captioning_weight:
            logits = self.caption(states, mask, input_ids, attention_mask)[:, :-1]
            targets = input_ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, -100)
            losses = F.cross_entropy(logits[targets != -100].float(), targets[targets != -100], reduction="none")
            out.captioning = mean_of_all(losses)
            out.loss = out.loss + self.config.captioning_weight * out.captioning
        return out

    def _together(self, tensor: Tensor) -> Tensor:
        """Of all processes in training; of this one alone in evaluation, where processes may see the same pairs."""
        return gathered(tensor) if self.training else tensor

    def _matching(self, states: Tensor, mask: Tensor, input_ids: Tensor, attention_mask: Tensor, to_texts: Tensor,
                  to_graphs: Tensor, same: Tensor) -> Tensor:  # fmt: skip
        """Cross entropy of each pair, and of its graph and its text with a hard negative each. -> up to (3B,)"""
        graph_of, text_of = hard_negatives(to_graphs, same), hard_negatives(to_texts, same)  # (B,) of all, -1: none
        some = graph_of >= 0  # (B,): there is another text than its own
        all_states, all_masks = self._together(states), self._together(mask)
        all_ids, all_attention = self._together(input_ids), self._together(attention_mask)
        own_states, own_ids = as_wide(states, all_states), as_wide(input_ids, all_ids)
        own_mask, own_attention = as_wide(mask, all_masks), as_wide(attention_mask, all_attention)
        logits = self.match(
            torch.cat([own_states, all_states[graph_of[some]], own_states[some]]),
            torch.cat([own_mask, all_masks[graph_of[some]], own_mask[some]]),
            torch.cat([own_ids, own_ids[some], all_ids[text_of[some]]]),
            torch.cat([own_attention, own_attention[some], all_attention[text_of[some]]]),
        )
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        labels[: len(states)] = 1
        return F.cross_entropy(logits.float(), labels, reduction="none")


def check_bert(name_or_path: str, config: GraphAlignerConfig) -> None:
    """Raises ValueError unless a BERT is as wide and deep as the Q-Former and knows the same words."""
    bert, graph = AutoConfig.from_pretrained(name_or_path), config.graph_config
    if bert.model_type != "bert":
        raise ValueError(
            f"{name_or_path} is a {bert.model_type}, and the Q-Former can start from a BERT only. Name one, or set "
            "--qformer_init random."
        )
    theirs = (bert.hidden_size, bert.num_hidden_layers, bert.num_attention_heads, bert.intermediate_size)
    ours = (graph.qformer_dim, graph.qformer_num_layers, graph.qformer_num_heads, graph.qformer_intermediate_dim)
    if theirs != ours or bert.vocab_size > config.vocab_size:
        raise ValueError(
            f"{name_or_path} has {theirs} (width, layers, heads, inner width) and {bert.vocab_size} words, the "
            f"Q-Former {ours} and {config.vocab_size}. Set --qformer_dim, --qformer_num_layers, --qformer_num_heads "
            "and --qformer_intermediate_dim to the first four, and read texts with its own tokenizer."
        )


def caption_mask(queries: int, attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Queries see queries, a token sees queries and the tokens up to itself (UniLM, arXiv 1905.03197).

    Args:
        queries: K.
        attention_mask: (B, T), 0 on padding.
        dtype: of the scores.

    Returns:
        (B, 1, K + T, K + T), to be added to attention scores: eager attention misreads a boolean mask of this shape.
    """
    tokens = attention_mask.shape[1]
    seen = torch.ones(queries + tokens, queries + tokens, dtype=torch.bool, device=attention_mask.device).tril()
    seen[:queries] = False
    seen[:, :queries] = True
    known = F.pad(attention_mask.bool(), (queries, 0), value=True)  # (B, K + T)
    seen = (seen & known[:, None]) | torch.eye(queries + tokens, dtype=torch.bool, device=known.device)
    return added(seen[:, None], dtype)


def added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to be added to attention scores: 0 where something is seen, all but minus infinity elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def similarity(graphs: Tensor, texts: Tensor) -> Tensor:
    """Cosine of each text with the nearest query of each graph. (B, K, P), (A, P) -> (B, A)"""
    return torch.einsum("bkp,ap->bka", graphs, texts).amax(dim=1)


def contrast(scores: Tensor, same: Tensor, smoothing: float) -> Tensor:
    """Cross entropy of each row with targets spread evenly over its positives. (B, A), (B, A) bool -> (B,)"""
    targets = same / same.sum(dim=1, keepdim=True)
    targets = targets * (1 - smoothing) + smoothing / same.shape[1]
    return -(targets * scores.float().log_softmax(dim=1)).sum(dim=1)


@torch.no_grad()
def hard_negatives(scores: Tensor, same: Tensor) -> Tensor:
    """One column a row that is no positive, the likelier the higher its score; -1 where there is none.

    (B, A), (B, A) bool -> (B,)
    """
    weights = (scores.float().softmax(dim=1) + 1e-4).masked_fill(same, 0)
    none = same.all(dim=1)
    drawn = torch.multinomial(weights + none[:, None], 1).squeeze(1)
    return drawn.masked_fill(none, -1)


# --------------------------------------------------------------------------------------------------- several processes
class _Gather(torch.autograd.Function):
    """All processes' tensors of one shape; the gradient of each comes back from all of them."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def gathered(tensor: Tensor) -> Tensor:
    """The rows of all processes one after another, second axes padded with zeros to the longest; with gradients.

    A loss that every process takes as a mean over its own rows, averaged over the processes as data parallel training
    does, then has the gradients of one process with all rows.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    kind, tensor = tensor.dtype, tensor.to(torch.int8) if tensor.dtype == torch.bool else tensor
    shapes = [torch.zeros(2, dtype=torch.long, device=tensor.device) for _ in range(dist.get_world_size())]
    own = torch.tensor([*tensor.shape[:2], 1][:2], device=tensor.device)
    dist.all_gather(shapes, own)
    rows, width = torch.stack(shapes).amax(dim=0).tolist()
    if tensor.dim() > 1:
        tensor = as_wide(tensor, tensor.new_empty(0, width))
    padded = torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])
    parts = _Gather.apply(padded) if tensor.is_floating_point() else _Gather.forward(None, padded)
    return torch.cat([part[: int(shape[0])] for part, shape in zip(parts, shapes, strict=True)]).to(kind)


def as_wide(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor with its second axis padded with zeros to that of another.

    (B, L, ...), (A, L', ...) -> (B, L', ...)
    """
    return F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, other.shape[1] - tensor.shape[1]))


def mean_of_all(losses: Tensor) -> Tensor:
    """The sum of this process's losses over their number in all processes, times the processes. (n,) -> ()

    The average of that over the processes is the mean of all losses, whatever each of them holds.
    """
    count = torch.tensor(float(len(losses)), device=losses.device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return losses.sum() / count


AutoConfig.register(GraphAlignerConfig.model_type, GraphAlignerConfig, exist_ok=True)  # for the tokenizer beside it
