"""GraphLLM: a graph encoder and a projector in front of any causal or encoder-decoder language model of the Hub.

Self-contained: this file is copied into every published model and imports installed packages only.

Shapes: B samples, T tokens, H width of the language model, G graphs of a batch, N nodes, E edges, F and F' features
of a node and of an edge, D width of the encoder, K graph tokens of a sample.

    model = GraphLLMForConditionalGeneration.from_components(
        "Qwen/Qwen2.5-0.5B-Instruct", GraphConfig(feature_dim=384), graph_token_id=processor.graph_token_id)
    model = GraphLLMForConditionalGeneration.from_pretrained(folder_or_repo)
"""

import contextlib
import inspect
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GraphNorm, MessagePassing, SAGEConv, TransformerConv
from torch_geometric.nn.dense.linear import Linear as PyGLinear
from torch_geometric.typing import OptTensor
from torch_geometric.utils import scatter, to_dense_batch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import ModelOutput
from transformers.utils import cached_file

IGNORE_INDEX = -100
ONE_STATE = (
    "{}, so that a Q-Former would attend to a single state: its attention is constant then and its queries see one "
    "affine image of the vector. Use --graph_readout mean with --graph_projector linear or mlp, which say as much for "
    "a thirtieth of the work, or --states_per_vector 8."
)
GRAPH_INPUTS = ("graph_node_features", "graph_edge_index", "graph_edge_features", "graph_batch", "graph_embeds")
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
QUANTIZATION_ATTRIBUTES = (
    "is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "hf_quantizer", "quantization_method", "hf_device_map",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ configuration
class GraphConfig(PreTrainedConfig):
    """What reads the graph: encoder, read-out and projector.

    Args:
        encoder: `graph_transformer` (TransformerConv, arXiv 2009.03509), `gat` (1710.10903), `gcn` (1609.02907),
            `sage` (1706.02216), `mpnn` (edge convolution, 1801.07829, with several aggregations) or `none`: the node
            features are embeddings already.
        feature_dim: F, width of the node features.
        edge_feature_dim: F', width of the edge features; None: edges have none. `gcn`, `sage` and `none` do not read
            them.
        hidden_dim: D.
        num_layers, num_heads, dropout: of the encoder; heads for `graph_transformer` and `gat`.
        norm: `layer` (LayerNorm) or `graph` (GraphNorm, arXiv 2009.03294). Never batch norm: a batch must equal its
            samples.
        aggregations: how `mpnn` gathers messages.
        bidirectional: messages also flow against the edges; the features of a reversed edge are shifted by a learned
            vector.
        readout: `mean` over the nodes of a graph to `num_tokens` tokens; `nodes`: one token for each of its first
            `max_nodes` nodes; `qformer`: `num_tokens` learned queries over the states of these nodes (`GraphQFormer`);
            `ho` and `nd`: the neighbourhood of its first node in a fixed order without parameters (LLaGA, arXiv
            2402.08170, section 3.1), see `hop_states` and `tree_states`.
        num_tokens: of one graph; by default 8 with `mean`, 32 with `qformer`, 5 with `ho` (four hops), 111 with `nd`
            (ten neighbours and ten of each of them).
        projector: `linear`; `mlp` (Linear, sigmoid, Linear: G-Retriever); `ffn` (LayerNorm, Linear, GELU, dropout,
            Linear, dropout, LayerNorm whose weight starts at `projector_scale`: qlora_graphrag).
        projector_hidden_dim, projector_dropout, projector_scale: of the projector.
        qformer_dim, qformer_num_layers, qformer_num_heads, qformer_intermediate_dim, qformer_dropout: of the Q-Former.
        cross_attention_every: every so many layers of it, from the first on, read the graph.
        state_layers: `last`: a node has one state, that after the last layer of the encoder; `all`: one after each
            layer, the first projection included.
        states_per_vector: linear images of each state that the queries choose from; more than 1 where graphs have one
            node, as attention over a single state is constant.
        token_dropout: share of graphs whose tokens are all zeroed in training, so that the model knows what a missing
            graph looks like, and evaluation with zeroed tokens measures what graphs say.

    Raises:
        ValueError: a name that is not in the lists above, or heads that do not divide `hidden_dim`.
    """

    model_type = "graphllm_graph"

    encoder: str = "graph_transformer"
    feature_dim: int = 384
    edge_feature_dim: int | None = None
    hidden_dim: int = 256
    num_layers: int = 4
    num_heads: int = 4
    dropout: float = 0.0
    norm: str = "layer"
    aggregations: list[str] | None = None
    bidirectional: bool = True
    readout: str = "mean"
    num_tokens: int | None = None
    max_nodes: int = 64
    projector: str = "mlp"
    projector_hidden_dim: int = 1024
    projector_dropout: float = 0.05
    projector_scale: float = 0.1
    token_dropout: float = 0.0
    qformer_dim: int = 768
    qformer_num_layers: int = 12
    qformer_num_heads: int = 12
    qformer_intermediate_dim: int = 3072
    qformer_dropout: float = 0.1
    cross_attention_every: int = 2
    state_layers: str = "last"
    states_per_vector: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.aggregations = self.aggregations or ["sum", "max", "mean", "var"]
        self.num_tokens = self.num_tokens or {"qformer": 32, "ho": 5, "nd": 111}.get(self.readout, 8)
        for name, value, allowed in (
            ("encoder", self.encoder, [*CONVOLUTIONS, "none"]),
            ("norm", self.norm, ["layer", "graph"]),
            ("readout", self.readout, ["mean", "nodes", "qformer", "ho", "nd"]),
            ("projector", self.projector, ["linear", "mlp", "ffn"]),
            ("state_layers", self.state_layers, ["last", "all"] if self.readout == "qformer" else ["last"]),
        ):
            if value not in allowed:
                raise ValueError(f"The graph {name} {value!r} is not known. Choose one of {', '.join(allowed)}.")
        if self.encoder in ("graph_transformer", "gat") and self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} cannot be split over {self.num_heads} heads. Choose a multiple of "
                f"num_heads."
            )
        if self.readout == "qformer" and self.max_nodes * self.num_states * self.states_per_vector == 1:
            raise ValueError(ONE_STATE.format("max_nodes is 1"))

        if self.readout == "nd" and 1 + self.branches + self.branches**2 != self.num_tokens:
            raise ValueError(
                f"readout nd is a tree of 1 + k + k * k nodes, and num_tokens {self.num_tokens} is no such number. "
                "Choose 7, 21, 43, 73, 111 or leave it out."
            )

    @property
    def branches(self) -> int:
        """k of the tree of `nd`: 1 + k + k * k nodes."""
        return round((self.num_tokens - 0.75) ** 0.5 - 0.5)

    @property
    def output_dim(self) -> int:
        return self.feature_dim if self.encoder == "none" else self.hidden_dim

    @property
    def num_states(self) -> int:
        """States of a node that the Q-Former reads."""
        return self.num_layers + 1 if self.state_layers == "all" and self.encoder != "none" else 1

    @property
    def tokens_per_vector(self) -> int:
        """Tokens that the projector makes of one vector of the read-out."""
        return self.num_tokens if self.readout == "mean" else 1


class GraphLLMConfig(PreTrainedConfig):
    """A language model and what reads its graphs.

    Args:
        text_config: the language model's own configuration.
        graph_config: see `GraphConfig`.
        text_model_name_or_path: where the language model's weights are: a name on the Hub, a path, or `./base`,
            inside this very folder or repository.
        text_model_revision: branch, tag or commit of that repository.
        graph_token: the placeholder's text.
        graph_token_id: the placeholder's id, usually just past the language model's vocabulary.
        feature_encoder: the text encoder that made the node and edge features; new graphs must use the same.
        lean: the folder holds no weights of the language model; `from_pretrained` takes them from
            `text_model_name_or_path`.
    """

    model_type = "graphllm"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "graph_config": SubConfigSpec(config_class=GraphConfig),
    }

    text_config: dict | PreTrainedConfig | None = None
    graph_config: dict | PreTrainedConfig | None = None
    text_model_name_or_path: str | None = None
    text_model_revision: str | None = None
    graph_token: str = "<|graph|>"
    graph_token_id: int | None = None
    feature_encoder: str | None = None
    lean: bool = False
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.is_encoder_decoder = self.text_config.is_encoder_decoder
        self.tie_word_embeddings = self.text_config.tie_word_embeddings

    @property
    def hidden_size(self) -> int:
        return self.text_config.hidden_size


# ------------------------------------------------------------------------------------------------------ graph encoders
class EdgeConvolution(MessagePassing):
    r"""Edge convolution with several aggregations, the layer of qlora_graphrag's MPNN.

    .. math:: h'_i = U\big(\Vert_{a} \bigoplus^{a}_{j \to i} M(h_i \,\Vert\, h_j - h_i \,\Vert\, e_{ji})\big)

    after EdgeConv (arXiv 1801.07829, eq. 8) with the aggregations :math:`a` side by side; :math:`M, U` are two-layer
    networks with LayerNorm.

    Args:
        dim: D.
        edge_dim: width of the edge features, None if there are none.
        aggregations: any of PyG's names.

    Shapes: (N, D), (2, E), (E, edge_dim) -> (N, D)
    """

    def __init__(self, dim: int, edge_dim: int | None, aggregations: list[str]) -> None:
        super().__init__(aggr=list(aggregations))
        self.message_network = _two_layers(2 * dim + (edge_dim or 0), dim, dim)
        self.update_network = _two_layers(len(aggregations) * dim, dim, dim)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        gathered = self.propagate(edge_index, x=x, edge_attr=edge_attr)  # (N, D * aggregations)
        return self.update_network(gathered)

    def message(self, x_i: Tensor, x_j: Tensor, edge_attr: OptTensor) -> Tensor:  # PyG reads this signature
        parts = [x_i, x_j - x_i] if edge_attr is None else [x_i, x_j - x_i, edge_attr]
        return self.message_network(torch.cat(parts, dim=-1))


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


CONVOLUTIONS = {
    "graph_transformer": lambda c: TransformerConv(
        c.hidden_dim, c.hidden_dim // c.num_heads, c.num_heads, edge_dim=_edge_width(c), dropout=c.dropout
    ),
    "gat": lambda c: GATConv(
        c.hidden_dim, c.hidden_dim // c.num_heads, c.num_heads, edge_dim=_edge_width(c), dropout=c.dropout
    ),
    "gcn": lambda c: GCNConv(c.hidden_dim, c.hidden_dim),
    "sage": lambda c: SAGEConv(c.hidden_dim, c.hidden_dim),
    "mpnn": lambda c: EdgeConvolution(c.hidden_dim, _edge_width(c), c.aggregations),
}
READS_EDGES = ("graph_transformer", "gat", "mpnn")


def _edge_width(config: GraphConfig) -> int | None:
    """Edge features enter a layer at width D, after one shared projection."""
    return config.hidden_dim if config.edge_feature_dim else None


class GraphEncoder(nn.Module):
    """Node features and edges -> one vector a node: projection, then residual layers of convolution, norm, ReLU,
    dropout.

    A node whose features are all zero starts from a learned null vector; an empty graph travels as one such node.

    Shapes: (N, F), (2, E), (E, F') or None, (N,) -> (N, D); with `encoder="none"` (N, F) -> (N, F); with
    `state_layers="all"` the states after all layers side by side, (N, S * D)
    """

    def __init__(self, config: GraphConfig) -> None:
        super().__init__()
        self.config = config
        self.null_node = nn.Parameter(torch.empty(config.output_dim))
        self.convolutions, self.layer_norm = nn.ModuleList(), nn.ModuleList()
        if config.encoder == "none":
            return
        self.node_projection = nn.Linear(config.feature_dim, config.hidden_dim)
        if config.edge_feature_dim and config.encoder in READS_EDGES:
            self.edge_projection = nn.Linear(config.edge_feature_dim, config.hidden_dim)
            if config.bidirectional:
                self.reverse_edge = nn.Parameter(torch.empty(config.hidden_dim))
        norm = {"layer": nn.LayerNorm, "graph": GraphNorm}[config.norm]
        for _ in range(config.num_layers):
            self.convolutions.append(CONVOLUTIONS[config.encoder](config))
            self.layer_norm.append(norm(config.hidden_dim))

    def forward(self, x: Tensor, edge_index: Tensor, edge_features: Tensor | None, batch: Tensor) -> Tensor:
        self._check(x, edge_index, edge_features)
        has_features = x.any(dim=-1, keepdim=True)  # (N, 1)
        hidden = x if self.config.encoder == "none" else self.node_projection(x)  # (N, D)
        hidden = torch.where(has_features, hidden, self.null_node.to(hidden.dtype))
        edges, states = self._edges(edge_index, edge_features), [hidden]
        for convolution, layer_norm in zip(self.convolutions, self.layer_norm, strict=True):
            update = convolution(hidden, *edges)
            if self.config.norm == "graph":  # counts nodes, see _read_out
                update = layer_norm(update.float(), batch).to(hidden.dtype)
            else:
                update = layer_norm(update)
            hidden = hidden + F.dropout(F.relu(update), self.config.dropout, self.training)
            states.append(hidden)
        return torch.cat(states, dim=-1) if self.config.state_layers == "all" else hidden

    def _edges(self, edge_index: Tensor, edge_features: Tensor | None) -> tuple[Tensor, ...]:
        """The convolution's edge arguments, reversed edges included."""
        both = torch.cat([edge_index, edge_index.flip(0)], dim=1) if self.config.bidirectional else edge_index
        if not (self.config.edge_feature_dim and self.config.encoder in READS_EDGES):
            return (both,)
        if edge_features is None:
            edge_features = self.null_node.new_zeros(0, self.config.edge_feature_dim)
        forward = self.edge_projection(edge_features)  # (E, D)
        backward = [forward + self.reverse_edge] if self.config.bidirectional else []
        return both, torch.cat([forward, *backward])  # (2, 2E), (2E, D)

    def _check(self, x: Tensor, edge_index: Tensor, edge_features: Tensor | None) -> None:
        if x.shape[-1] != self.config.feature_dim:
            raise ValueError(
                f"Node features are {x.shape[-1]} wide, the encoder was built for {self.config.feature_dim}. "
                "Use the text encoder that config.feature_encoder names."
            )
        if not self.config.edge_feature_dim or self.config.encoder not in READS_EDGES:
            return
        given = (0, self.config.edge_feature_dim) if edge_features is None else tuple(edge_features.shape)
        needed = (edge_index.shape[1], self.config.edge_feature_dim)
        if given != needed:
            raise ValueError(f"Edge features have shape {given}, the encoder needs {needed}: one row per edge.")


class QFormerModel(Blip2QFormerModel):
    _no_split_modules = ["Blip2QFormerLayer"]  # the inherited list names classes that a Q-Former alone does not have


class GraphQFormer(nn.Module):
    """Learned queries over the set of a graph's states: the Q-Former of BLIP-2 (arXiv 2301.12597, section 3.1).

    A learned vector marks the states of the first node, which the graph is about, and one each layer of the encoder.

    Args:
        config: of the graph.
        reads_text: with the feed-forward networks of text, for the passes of the alignment.

    Shapes: (M, S * D), (M,) -> (G, K, W)
    """

    def __init__(self, config: GraphConfig, reads_text: bool = False) -> None:
        super().__init__()
        self.config = config
        width, spread = config.output_dim, config.states_per_vector
        self.queries = nn.Parameter(torch.empty(config.num_tokens, config.qformer_dim))
        self.marks = nn.Parameter(torch.empty(config.num_states + 1, width))
        self.layer_norm = nn.LayerNorm(width)
        self.spread = nn.Linear(width, width * spread) if spread > 1 else nn.Identity()
        settings = Blip2QFormerConfig(
            hidden_size=config.qformer_dim,
            num_hidden_layers=config.qformer_num_layers,
            num_attention_heads=config.qformer_num_heads,
            intermediate_size=config.qformer_intermediate_dim,
            hidden_dropout_prob=config.qformer_dropout,
            attention_probs_dropout_prob=config.qformer_dropout,
            cross_attention_frequency=config.cross_attention_every,
            encoder_hidden_size=width,
            use_qformer_text_input=reads_text,
            # BERT's .02 at its width of 768; at a small width it would all but silence every layer
            initializer_range=0.02 * (768 / config.qformer_dim) ** 0.5,
        )
        self.model = QFormerModel(settings)

    def forward(self, vectors: Tensor, graph_of_vector: Tensor) -> Tensor:
        states, mask = self.states(vectors, graph_of_vector)
        queries = self.queries.expand(len(states), -1, -1)
        return self.model(queries, encoder_hidden_states=states, encoder_attention_mask=mask).last_hidden_state

    def states(self, vectors: Tensor, graph_of_vector: Tensor) -> tuple[Tensor, Tensor]:
        """The states of each graph, padded, and which are some. (M, S * D), (M,) -> (G, L, D), (G, L) bool"""
        first = torch.ones_like(graph_of_vector, dtype=torch.bool)  # (M,)
        first[1:] = graph_of_vector[1:] != graph_of_vector[:-1]
        states = self.layer_norm(vectors.unflatten(-1, (self.config.num_states, -1)))  # (M, S, D)
        states = states + self.marks[1:] + first[:, None, None] * self.marks[0]
        states = self.spread(states).reshape(-1, self.config.output_dim)  # (M * S * spread, D)
        return to_dense_batch(states, graph_of_vector.repeat_interleave(len(states) // len(vectors)))


class GraphProjector(nn.Module):
    """Vectors of the read-out -> tokens of the language model.

    Shapes: (M, D), (M,) -> (M * tokens_per_vector, H); with `readout="qformer"` (M, S * D), (M,) -> (G * K, H)
    """

    def __init__(self, config: GraphConfig, output_dim: int) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.qformer = GraphQFormer(config) if config.readout == "qformer" else None
        inputs = config.qformer_dim if config.readout == "qformer" else config.output_dim
        inner, outputs = config.projector_hidden_dim, config.tokens_per_vector * output_dim
        self.layer_norm = None
        if config.projector == "linear":
            self.layers = nn.Sequential(nn.Linear(inputs, outputs))
        elif config.projector == "mlp":
            self.layers = nn.Sequential(nn.Linear(inputs, inner), nn.Sigmoid(), nn.Linear(inner, outputs))
        else:
            drop = config.projector_dropout
            self.layers = nn.Sequential(
                nn.LayerNorm(inputs), nn.Linear(inputs, inner), nn.GELU(), nn.Dropout(drop),
                nn.Linear(inner, outputs), nn.Dropout(drop),
            )  # fmt: skip
            self.layer_norm = ScaledLayerNorm(output_dim, config.projector_scale)

    def forward(self, vectors: Tensor, graph_of_vector: Tensor) -> Tensor:
        if self.qformer is not None:
            vectors = self.qformer(vectors, graph_of_vector).flatten(0, 1)  # (G * K, W)
        tokens = self.layers(vectors).view(-1, self.output_dim)  # (M * tokens_per_vector, H)
        return tokens if self.layer_norm is None else self.layer_norm(tokens)


class ScaledLayerNorm(nn.LayerNorm):
    """A LayerNorm whose weight starts at `scale`, so that new tokens are about as long as the language model's own."""

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__(dim)
        self.scale = scale


@contextlib.contextmanager
def _whole_parameters() -> Iterator[None]:
    """Under ZeRO-3, lets a block build modules with whole parameters; the engine partitions them later.

    PyG layers touch their children's weights while they are built, which fails on partitioned ones.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    try:
        from deepspeed.runtime.zero.partition_parameters import restore_init_context, shutdown_init_context
    except ImportError as error:
        raise ImportError("ZeRO-3 is on, but deepspeed is not installed: pip install deepspeed.") from error
    shutdown_init_context()
    try:
        yield
    finally:
        restore_init_context()


# --------------------------------------------------------------------------------------------------- the model
class GraphLLMPreTrainedModel(PreTrainedModel):
    config: GraphLLMConfig
    config_class = GraphLLMConfig
    base_model_prefix = "graphllm"
    main_input_name = "input_ids"
    input_modalities = ("graph", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]
    _keep_in_fp32_modules_strict = ["graph_encoder", "graph_projector"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises the leaves that PreTrainedModel does not know; only through guarded functions, so that what was
        loaded stays."""
        if isinstance(module, GraphEncoder):
            init.normal_(module.null_node, std=module.config.output_dim**-0.5)
            if "reverse_edge" in module._parameters:
                init.normal_(module.reverse_edge, std=module.config.hidden_dim**-0.5)
        elif isinstance(module, GraphQFormer):
            init.normal_(module.queries, std=0.02)
            init.normal_(module.marks)
        elif isinstance(module, ScaledLayerNorm):
            init.constant_(module.weight, module.scale)
            init.zeros_(module.bias)
        elif isinstance(module, (PyGLinear, MessagePassing, GraphNorm)):
            for name, parameter in module.named_parameters(recurse=False):
                _init_pyg_parameter(name, parameter)
        elif isinstance(module, nn.Linear):  # of the encoder or the projector: a language model initialises its own
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)


def _init_pyg_parameter(name: str, parameter: nn.Parameter) -> None:
    if "bias" in name:
        init.zeros_(parameter)
    elif parameter.dim() >= 2:
        init.xavier_uniform_(parameter)
    else:
        init.ones_(parameter)


class GraphLLMForConditionalGeneration(GraphLLMPreTrainedModel, GenerationMixin):
    """A language model that reads graphs: `language_model`, `graph_encoder`, `graph_projector`.

    Args:
        config: the whole configuration.
        language_model: an already loaded language model; without it one is built from `config.text_config` with new
            weights.
    """

    def __init__(self, config: GraphLLMConfig, language_model: PreTrainedModel | None = None) -> None:
        if language_model is not None:
            config.text_config = language_model.config
        super().__init__(config)
        if language_model is None:
            auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            language_model = auto.from_config(config.text_config)
        self.language_model = language_model
        with _whole_parameters():
            self.graph_encoder = GraphEncoder(config.graph_config)
            self.graph_projector = GraphProjector(config.graph_config, config.hidden_size)
        self._language_model_arguments = set(inspect.signature(language_model.forward).parameters)
        self.post_init()

    # ------------------------------------------------------------------------------------------- building and loading
    @classmethod
    def from_components(
        cls,
        language_model: PreTrainedModel | str,
        graph_config: GraphConfig | dict[str, Any],
        graph_token_id: int,
        graph_token: str = "<|graph|>",
        feature_encoder: str | None = None,
        revision: str | None = None,
        **language_model_kwargs: Any,
    ) -> "GraphLLMForConditionalGeneration":
        """The first build: a pretrained language model with a new encoder and projector.

        Args:
            language_model: a loaded model, or a name or path for `AutoModelForCausalLM` / `AutoModelForSeq2SeqLM`.
            graph_config: a `GraphConfig` or its fields.
            graph_token_id: the placeholder's id, `processor.graph_token_id`.
            graph_token: the placeholder's text.
            feature_encoder: the text encoder that made the features, kept in the configuration.
            revision: of the language model's repository.
            language_model_kwargs: for the language model's `from_pretrained` (dtype, quantization_config, device_map,
                attn_implementation, token, ...).
        """
        source = language_model if isinstance(language_model, str) else language_model.name_or_path
        if isinstance(language_model, str):
            language_model = _load_language_model(language_model, revision=revision, **language_model_kwargs)
        config = cls.config_class(
            text_config=language_model.config,
            graph_config=graph_config,
            text_model_name_or_path=source or None,
            text_model_revision=revision,
            graph_token=graph_token,
            graph_token_id=graph_token_id,
            feature_encoder=feature_encoder,
            # A composite configuration hands its own attention setting down to its parts.
            attn_implementation=language_model.config._attn_implementation,
        )
        return cls._from_language_model(config, language_model)

    @classmethod
    def _from_language_model(
        cls, config: GraphLLMConfig, language_model: PreTrainedModel
    ) -> "GraphLLMForConditionalGeneration":
        model = cls(config, language_model)
        _keep_unpacked(model)
        for name in QUANTIZATION_ATTRIBUTES:  # PEFT and the Trainer look for them on the outermost model
            if name in language_model.__dict__:
                setattr(model, name, language_model.__dict__[name])
        device = language_model.get_input_embeddings().weight.device
        model.graph_encoder.to(device)
        model.graph_projector.to(device)
        model.generation_config = language_model.generation_config
        return model

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, config: Any = None, **kwargs: Any
    ) -> PreTrainedModel:
        """Loads a folder or repository, whole or lean.

        A lean one holds the configuration, the encoder and projector, and possibly a LoRA adapter; the language model
        is loaded from `config.text_model_name_or_path`. Keyword arguments are those of transformers'
        `from_pretrained`; in a lean load all but the Hub's go to the language model.

        Raises:
            ValueError: a lean folder lacks a weight of the encoder, the projector or the adapter.
        """
        path = os.fspath(pretrained_model_name_or_path)
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        if config is None:
            config = cls.config_class.from_pretrained(path, **hub)
        if not config.lean:
            loaded = super().from_pretrained(path, *args, config=config, **kwargs)
            _keep_unpacked(loaded[0] if isinstance(loaded, tuple) else loaded)  # two with output_loading_info
            return loaded
        language_model_kwargs = {name: value for name, value in kwargs.items() if name not in HUB_ARGUMENTS}
        return cls._from_lean(path, config, hub, language_model_kwargs)

    @classmethod
    def _from_lean(
        cls, path: str, config: GraphLLMConfig, hub: dict[str, Any], language_model_kwargs: dict[str, Any]
    ) -> "GraphLLMForConditionalGeneration":
        for name in ("adapter_kwargs", "trust_remote_code", "state_dict", "_from_auto", "weights_only"):
            language_model_kwargs.pop(name, None)
        source = config.text_model_name_or_path
        if ".." in source.split("/") and (source.startswith("./") or not os.path.isdir(path)):
            raise ValueError(f"{path} names a base model outside itself, {source}: damaged, or not to be trusted.")
        shared = {name: hub[name] for name in HUB_ARGUMENTS[:4] if name in hub}
        if source.startswith("./") and os.path.isdir(path):
            source = os.path.abspath(os.path.join(path, source))
            config.text_model_name_or_path = source  # so that the model can be saved elsewhere
        elif source.startswith("./"):
            source, shared = path, {**shared, "revision": hub.get("revision"), "subfolder": source[2:]}
        else:
            shared["revision"] = config.text_model_revision
        language_model = _load_language_model(source, **shared, **language_model_kwargs)
        model = cls._from_language_model(config, language_model)
        model.config.name_or_path = path
        model._load_graph_parts(path, hub)
        return model.eval()

    def _load_graph_parts(self, path: str, hub: dict[str, Any]) -> None:
        """Encoder and projector from model.safetensors, or with LoRA from the adapter."""
        optional = {**hub, "_raise_exceptions_for_missing_entries": False}
        adapter = cached_file(path, "adapter_config.json", **optional)
        if adapter is not None:
            # as a folder: load_adapter cannot be told of local_files_only, and asks the Hub again
            folder = os.path.dirname(cached_file(path, "adapter_model.safetensors", **hub))
            missing = self.load_adapter(folder).missing_keys
        else:
            state = load_file(cached_file(path, "model.safetensors", **hub))
            missing = self.load_state_dict(state, strict=False).missing_keys
            missing = [name for name in missing if not name.startswith("language_model.")]
        if missing:
            raise ValueError(
                f"{path} lacks {len(missing)} weights, first {sorted(missing)[0]}. The folder is damaged or was "
                "written for another configuration: save or download it again."
            )

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """As in transformers; with `config.lean` the language model's weights are left out."""
        if self.config.lean and not self._hf_peft_config_loaded:
            whole = self.state_dict() if state_dict is None else state_dict
            state_dict = {name: value for name, value in whole.items() if not name.startswith("language_model.")}
        super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)
        if self._hf_peft_config_loaded:  # transformers writes the adapter alone
            self.config.save_pretrained(save_directory)

    # transformers 5.24 writes loaded adapters only with PEFT 0.22, which is not there yet; 0.21 gives it the same
    def active_adapters(self) -> list[str]:
        if not self._hf_peft_config_loaded:
            raise ValueError("This model was loaded or built without adapters: there are none to name or save.")
        return list(self.peft_config)

    def get_adapter_state_dict(
        self, adapter_name: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        try:
            from peft import get_peft_model_state_dict
        except ImportError as error:
            raise ImportError("The adapters of this model are peft's: pip install peft.") from error
        return get_peft_model_state_dict(self, state_dict, adapter_name or self.active_adapters()[0])

    # -------------------------------------------------------------------------------------- the language model's parts
    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.language_model.get_encoder()

    # ------------------------------------------------------------------------------------------------ graphs to tokens
    def get_graph_features(
        self,
        graph_node_features: Tensor,
        graph_edge_index: Tensor,
        graph_edge_features: Tensor | None,
        graph_batch: Tensor,
    ) -> Tensor:
        """The tokens of all graphs of a batch, one after another.

        Args:
            graph_node_features: (N, F) float.
            graph_edge_index: (2, E) int64, source and target rows of `graph_node_features`.
            graph_edge_features: (E, F') float or None.
            graph_batch: (N,) int64, ascending; every graph has at least one node.

        Returns:
            (tokens of all graphs, H)
        """
        dtype = next(self.graph_encoder.parameters()).dtype
        if graph_edge_features is not None:
            graph_edge_features = graph_edge_features.to(dtype)
        hidden = self.graph_encoder(graph_node_features.to(dtype), graph_edge_index, graph_edge_features, graph_batch)
        vectors, graph_of_vector = self._read_out(hidden, graph_edge_index, graph_batch)
        return self._drop_graphs(self.graph_projector(vectors, graph_of_vector), graph_of_vector)

    def _read_out(self, hidden: Tensor, edge_index: Tensor, graph_batch: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors that become tokens, and the graph of each. (N, D), (2, E), (N,) -> (M, D), (M,)"""
        graph = self.config.graph_config
        if graph.readout in ("ho", "nd"):
            sizes = torch.bincount(graph_batch)  # (G,)
            first = sizes.cumsum(0) - sizes
            if graph.readout == "ho":
                states = hop_states(hidden, edge_index, graph.num_tokens - 1)[first]  # (G, K, D)
            else:
                states = tree_states(hidden, edge_index, first, graph.branches, self.graph_encoder.null_node)
            return states.flatten(0, 1), torch.arange(len(sizes), device=hidden.device).repeat_interleave(
                graph.num_tokens)  # fmt: skip
        if self.config.graph_config.readout == "mean":
            # in float32: a count of ones in bfloat16 stops at 256 nodes
            pooled = scatter(hidden.float(), graph_batch, dim=0, reduce="mean").to(hidden.dtype)  # (G, D)
            return pooled, torch.arange(len(pooled), device=hidden.device)
        kept = first_nodes(graph_batch, self.config.graph_config.max_nodes)  # (N,)
        return hidden[kept], graph_batch[kept]

    def _drop_graphs(self, tokens: Tensor, graph_of_vector: Tensor) -> Tensor:
        """In training, zeroes all tokens of a share of the graphs. (tokens, H) -> (tokens, H)"""
        graph = self.config.graph_config
        if not self.training or graph.token_dropout == 0:
            return tokens
        stays = torch.rand(int(graph_of_vector[-1]) + 1, device=tokens.device) >= graph.token_dropout  # (G,)
        if graph.readout == "nodes":
            return tokens * stays[graph_of_vector].unsqueeze(-1)
        return tokens * stays.repeat_interleave(graph.num_tokens).unsqueeze(-1)

    def encode_graphs(self, input_ids: Tensor, **graph_inputs: Tensor | None) -> Tensor:
        """The graph tokens of each sample, batch first: what `generate` computes once and beams may repeat.

        Args:
            input_ids: (B, T), with the placeholders.
            graph_inputs: as for `get_graph_features`.

        Returns:
            (B, K, H): row b holds the tokens of sample b in placeholder order, zero-padded.
        """
        tokens = self.get_graph_features(**graph_inputs)
        counts = (input_ids == self.config.graph_token_id).sum(dim=1)  # (B,)
        _check_counts(int(counts.sum()), len(tokens))
        return nn.utils.rnn.pad_sequence(tokens.split(counts.tolist()), batch_first=True)

    def get_merged_embeddings(
        self, input_ids: Tensor, graph_embeds: Tensor | None = None, **graph_inputs: Tensor | None
    ) -> Tensor:
        """Embeds the text and puts graph tokens where the placeholders stand. (B, T) -> (B, T, H)

        Raises:
            ValueError: there are more or fewer placeholders than graph tokens.
        """
        mask = input_ids == self.config.graph_token_id
        # The id is masked before the look-up: it lies outside the vocabulary, which never grows.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(mask, 0))
        if graph_embeds is not None:
            counts = mask.sum(dim=1, keepdim=True)
            _check_counts(int(counts.max()), graph_embeds.shape[1])
            tokens = graph_embeds[torch.arange(graph_embeds.shape[1], device=mask.device) < counts]
        elif graph_inputs["graph_node_features"] is not None:
            tokens = self.get_graph_features(**graph_inputs)
        else:
            _check_counts(int(mask.sum()), 0)
            # Every rank must use every trained parameter in every step, or data-parallel training hangs.
            return embeds + self._unused_graph_tokens(embeds).sum() * 0 if self.training else embeds
        _check_counts(int(mask.sum()), len(tokens))
        return embeds.masked_scatter(mask.unsqueeze(-1), tokens.to(embeds))

    def _unused_graph_tokens(self, embeds: Tensor) -> Tensor:
        graph = self.config.graph_config
        nodes = torch.zeros(1, graph.feature_dim, device=embeds.device)
        edge_index = torch.zeros(2, 1, dtype=torch.long, device=embeds.device)
        edges = torch.zeros(1, graph.edge_feature_dim, device=embeds.device) if graph.edge_feature_dim else None
        return self.get_graph_features(nodes, edge_index, edges, edge_index[0]).to(embeds)

    # --------------------------------------------------------------------------------------------------------- forward
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        graph_node_features: Tensor | None = None,
        graph_edge_index: Tensor | None = None,
        graph_edge_features: Tensor | None = None,
        graph_batch: Tensor | None = None,
        graph_embeds: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """One pass over text and graphs.

        Args:
            input_ids: (B, T) int64 with `config.graph_token_id` once per graph token.
            attention_mask: (B, T), 0 on padding; left padding is what the processor's `pad` makes.
            position_ids: (B, T); without a mask, (1, S) of a packed row, beginning again with each sample.
            past_key_values, use_cache, logits_to_keep: as in transformers.
            inputs_embeds: (B, T, H) instead of `input_ids`, with the graph tokens already in place.
            graph_node_features, graph_edge_index, graph_edge_features, graph_batch: see `get_graph_features`.
            graph_embeds: (B, K, H) from `encode_graphs`; the encoder is not run.
            decoder_input_ids, encoder_outputs: for an encoder-decoder language model.
            labels: (B, T) next to `input_ids`, or (B, L) for an encoder-decoder; -100 where nothing is to be learnt.
            num_items_in_batch: the count that the summed loss is divided by; by default the labels of this batch.
            cache: another name of `past_key_values`, see `cache_argument`.
            kwargs: handed to the language model.

        Returns:
            The language model's own output. With `labels`, `loss` is the cross entropy and `logits` are only those of
            the columns in which some sample has a label.
        """
        if inputs_embeds is None and encoder_outputs is None:
            inputs_embeds = self.get_merged_embeddings(
                input_ids,
                graph_embeds,
                graph_node_features=graph_node_features,
                graph_edge_index=graph_edge_index,
                graph_edge_features=graph_edge_features,
                graph_batch=graph_batch,
            )
        elif graph_node_features is not None or graph_embeds is not None:
            raise ValueError("With inputs_embeds the placeholders of graphs cannot be found. Give input_ids instead.")
        if use_cache is None:  # a loss needs none, and with one transformers takes a packed row for a single sequence
            use_cache = self.config.use_cache and not self.training and labels is None
        arguments = {
            **kwargs,
            "attention_mask": attention_mask,
            self.cache_argument: past_key_values if cache is None else cache,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            "return_dict": True,
        }
        if self.config.is_encoder_decoder:
            arguments |= {"decoder_input_ids": decoder_input_ids, "encoder_outputs": encoder_outputs}
            return self._forward_encoder_decoder(arguments, labels, num_items_in_batch)
        if position_ids is None and past_key_values is None and cache is None and attention_mask is not None:
            position_ids = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)  # (B, T)
        if "position_ids" in self._language_model_arguments:
            arguments["position_ids"] = position_ids
        return self._forward_decoder(arguments, labels, logits_to_keep, num_items_in_batch)

    @property
    def cache_argument(self) -> str:
        """The language model's own name for past keys and values: `cache` from transformers 5.24 on."""
        return "cache" if "cache" in self._language_model_arguments else "past_key_values"

    def _forward_decoder(
        self,
        arguments: dict[str, Any],
        labels: Tensor | None,
        logits_to_keep: int | Tensor,
        num_items_in_batch: Tensor | int | None,
    ) -> ModelOutput:
        can_keep_some = "logits_to_keep" in self._language_model_arguments
        if labels is None:
            keep = {"logits_to_keep": logits_to_keep} if can_keep_some else {}
            return self.language_model(**arguments, **keep)
        columns = (labels[:, 1:] != IGNORE_INDEX).any(dim=0).nonzero().squeeze(-1)  # where the next token has a label
        if can_keep_some:
            outputs = self.language_model(**arguments, logits_to_keep=columns)
        else:
            outputs = self.language_model(**arguments)
            outputs["logits"] = outputs.logits[:, columns]
        return _with_loss(outputs, labels[:, columns + 1], num_items_in_batch)

    def _forward_encoder_decoder(
        self, arguments: dict[str, Any], labels: Tensor | None, num_items_in_batch: Tensor | int | None
    ) -> ModelOutput:
        if labels is not None and arguments["decoder_input_ids"] is None:
            arguments["decoder_input_ids"] = self.language_model.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.language_model(**arguments)
        return outputs if labels is None else _with_loss(outputs, labels, num_items_in_batch)

    # ------------------------------------------------------------------------------------------------------ generation
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """As in transformers, with the graph arguments of `forward` beside `input_ids`; graphs are encoded once."""
        if not self.config.is_encoder_decoder:
            return super().generate(inputs, **kwargs)
        # An encoder-decoder's generate hands only its encoder's own arguments on, so graphs are merged here.
        graph_inputs = {name: kwargs.pop(name, None) for name in GRAPH_INPUTS}
        merged = self.get_merged_embeddings(kwargs.pop("input_ids", inputs), **graph_inputs)
        return super().generate(inputs_embeds=merged, **kwargs)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Beams repeat rows; packed graphs have none, so they become `graph_embeds`, batch first, before that."""
        raw = {name: model_kwargs.pop(name, None) for name in GRAPH_INPUTS if name != "graph_embeds"}
        if raw["graph_node_features"] is not None:
            model_kwargs["graph_embeds"] = self.encode_graphs(input_ids, **raw)
        return super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **model_kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool = False, use_cache: bool = True, **kwargs: Any
    ) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, use_cache=use_cache, **kwargs
        )
        if use_cache and not is_first_iteration:  # the placeholders are in the cache
            for name in GRAPH_INPUTS:
                inputs.pop(name, None)
        return inputs


def _load_language_model(name_or_path: str, **kwargs: Any) -> PreTrainedModel:
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
    if "subfolder" in hub:  # else the adapter at the root of the repository would be taken for this model's
        kwargs["adapter_kwargs"] = {"subfolder": hub["subfolder"]}
    config = AutoConfig.from_pretrained(name_or_path, **hub)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_pretrained(name_or_path, **kwargs)


def _keep_unpacked(model: PreTrainedModel) -> None:
    """On a CPU with bfloat16 units bitsandbytes would pack 4-bit weights at the first evaluation: widths that 32 does
    not divide fail, and a packed weight passes no gradient on and is dequantized wrongly."""
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            module.support_avx512bf16_for_cpu = False


def first_nodes(graph_batch: Tensor, most: int) -> Tensor:
    """Which nodes are among the first `most` of their graph. (N,) ascending -> (N,) bool"""
    sizes = torch.bincount(graph_batch)  # (G,)
    position = torch.arange(len(graph_batch), device=graph_batch.device) - (sizes.cumsum(0) - sizes)[graph_batch]
    return position < most


def hop_states(hidden: Tensor, edge_index: Tensor, hops: int) -> Tensor:
    r"""The states around each node, hop by hop, without parameters: LLaGA's hop-field overview.

    .. math:: x^{(k)} = D^{-1/2} A D^{-1/2} x^{(k-1)}, \quad k = 1, \dots, K

    with edges in both directions, each pair once, and no self-loops. A node without neighbours is zero from hop 1 on.

    Shapes: (N, D), (2, E) -> (N, K + 1, D)
    """
    source, target = _both_ways(edge_index)
    degree = torch.bincount(target, minlength=len(hidden)).clamp(min=1).to(hidden.dtype)
    weight = (degree[source] * degree[target]).rsqrt().unsqueeze(-1)
    states = [hidden]
    for _ in range(hops):
        states.append(torch.zeros_like(hidden).index_add(0, target, weight * states[-1][source]))
    return torch.stack(states, dim=1)


def tree_states(hidden: Tensor, edge_index: Tensor, roots: Tensor, branches: int, empty: Tensor) -> Tensor:
    """The states of a node, its first k neighbours and their first k neighbours: LLaGA's neighbourhood detail.

    Neighbours come in the order of their ids, in a retrieved subgraph the best first. Every tree has all places, so
    that a token's place in the sequence says which it is; those without a node hold `empty`.

    Shapes: (N, D), (2, E), (G,), k, (D,) -> (G, 1 + k + k * k, D)
    """
    source, target = _both_ways(edge_index)  # sorted by source, then by target
    nodes = len(hidden)
    counts = torch.bincount(source, minlength=nodes)
    place = torch.arange(len(source), device=source.device) - (counts.cumsum(0) - counts)[source]
    table = source.new_full((nodes + 1, branches), nodes)  # (N + 1, k) neighbours; N: none
    kept = place < branches
    table[source[kept], place[kept]] = target[kept]
    near = table[roots]  # (G, k)
    tree = torch.cat([roots.unsqueeze(1), near, table[near].flatten(1)], dim=1)
    return torch.cat([hidden, empty.to(hidden.dtype).unsqueeze(0)])[tree]


def _both_ways(edge_index: Tensor) -> Tensor:
    """Edges in both directions, each pair once, without self-loops, sorted. (2, E) -> (2, E')"""
    both = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    return torch.unique(both[:, both[0] != both[1]], dim=1)


def _check_counts(placeholders: int, tokens: int) -> None:
    if placeholders != tokens:
        raise ValueError(
            f"Graph placeholders and graph tokens do not match: {placeholders} placeholders in input_ids, {tokens} "
            "tokens from the graphs. Build the batch with the processor that was saved with this model."
        )


def _with_loss(outputs: ModelOutput, targets: Tensor, num_items_in_batch: Tensor | int | None) -> ModelOutput:
    """Cross entropy summed over targets and divided by `num_items_in_batch`. logits (B, L, V), targets (B, L)"""
    logits = outputs.logits.float().flatten(0, 1)
    loss = F.cross_entropy(logits, targets.flatten().to(logits.device), ignore_index=IGNORE_INDEX, reduction="sum")
    count = (targets != IGNORE_INDEX).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    fields = {name: value for name, value in outputs.items() if name != "loss"}
    return type(outputs)(loss=loss / torch.as_tensor(count, device=loss.device), **fields)


GraphLLMConfig.register_for_auto_class()
GraphLLMForConditionalGeneration.register_for_auto_class("AutoModelForCausalLM")
if __name__ == "modeling_graphllm":  # not for the copy inside a published model, which AutoConfig finds by itself
    AutoConfig.register("graphllm", GraphLLMConfig, exist_ok=True)
    AutoModelForCausalLM.register(GraphLLMConfig, GraphLLMForConditionalGeneration, exist_ok=True)
