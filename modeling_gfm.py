"""GFMForRetrieval: a graph network that reads a question at its entities and scores every node, then every document.

Self-contained: this file is copied into every published model and imports installed packages only.

Shapes: B questions, N nodes, E edges of a graph as it is stored, R relations (2R with the inverses that are added
here), D width of the states, F width of the embeddings of questions and relations, P pairs (question, node) that are
scored. States lie node by node, (N, B, D), so that one message is one contiguous row.

    model = GFMForRetrieval.from_pretrained(folder_or_repo)
    model.attach_graphs([GFMGraph.from_arrays(edges, num_nodes, relation_embeds)])
    scores = model(graph_index, question_embeds=..., seed_nodes=..., seed_batch=...).logits      # (B, N)
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput

MESSAGES = ("distmult", "transe", "rotate")
AGGREGATIONS = ("sum", "mean", "max", "min", "pna")
RANKERS = ("simple", "idf", "topk", "idf_topk")
CHUNK_BYTES = 64 * 2**20  # of messages that exist at one moment
SHORT_ROW = 256  # numbers below which a loop over one state costs more to enter than to run
POSITIVE, NEGATIVE, LEFT_OUT = 1, 0, -1  # labels of pairs


# ------------------------------------------------------------------------------------------------------ configuration
class GFMConfig(PreTrainedConfig):
    """Shape and loss of a graph retriever; the defaults are the published GFM-RAG-8M (arXiv 2502.01113).

    Args:
        feature_dim: F. feature_encoder: the text encoder of questions and relations; new graphs must use the same.
        mask_seeds: the names of a question's entities were hidden from that encoder, and must be again.
        hidden_dim: D. num_layers: steps of message passing.
        message: what an edge (u, r, v) sends from state h_u and relation vector x_r: `distmult` h_u * x_r
            (arXiv 1412.6575), `transe` h_u + x_r (Bordes et al. 2013), `rotate` the product of complex numbers whose
            real parts are the first half of the vector (1902.10197).
        aggregation: of the messages at a node and its start state: `sum`, `mean`, `max`, `min`, or `pna` (2004.05718).
        messages: `along` the edges (source to target, as written), or `against` them: relations and their inverses
            change places. Weights trained with the fused kernel of NBFNet, ULTRA and GFM-RAG are `against`.
        relation_source: `text`: x_r comes from the relation's embedding; `graph`: from a second network over the graph
            of relations, as in ULTRA (2310.04562), which needs no text.
        question_relations: the relation vectors of every layer are made from the question, too.
        question_gates: then the question only says how much each relation counts in a layer, by shares that sum to 1:
            each step is chosen by itself, so that steps known from several paths can be put together to a new one.
        question_attention: then each layer reads its own words of the question: it attends over the embeddings of
            tokens, so that a path that no training question asked for can be put together from known steps.
        hold_unreached: a node's state stays zero until a message from a seed has reached it. Scores inside the ball of
            `num_layers` steps around the seeds then do not depend on the rest of the graph. For sums of `distmult` or
            `rotate` messages, which are zero from a node whose state is zero.
        seed_weights: a seed starts with 1 / (number of documents that name it) of the question's vector.
        concat_hidden: the read-out sees the states of all layers.
        bce_weight, list_ce_weight, softmax_weight: of the three losses. adversarial_temperature: of the weights of the
            negatives in the first, 0 for equal ones.
        document_weight: share of the loss that is taken over documents, 0 to 1.
        ranker, top_entities: how entity scores become an order of documents: see `rank_documents`.

    Raises:
        ValueError: a name that is not in the lists above, or an odd hidden_dim with `rotate`.
    """

    model_type = "graphllm_gfm"
    keys_to_ignore_at_inference = ["logits"]  # an evaluation would gather a score for every node

    feature_dim: int = 768
    feature_encoder: str | None = None
    mask_seeds: bool = False
    hidden_dim: int = 512
    num_layers: int = 6
    message: str = "distmult"
    aggregation: str = "sum"
    messages: str = "along"
    relation_source: str = "text"
    question_relations: bool = False
    question_gates: bool = False
    question_attention: bool = False
    hold_unreached: bool = False
    seed_weights: bool = False
    concat_hidden: bool = False
    bce_weight: float = 0.3
    list_ce_weight: float = 0.7
    softmax_weight: float = 0.0
    adversarial_temperature: float = 0.2
    document_weight: float = 0.0
    ranker: str = "idf_topk"
    top_entities: int = 20

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name, value, allowed in (
            ("message", self.message, MESSAGES),
            ("aggregation", self.aggregation, AGGREGATIONS),
            ("messages", self.messages, ("along", "against")),
            ("relation_source", self.relation_source, ("text", "graph")),
            ("ranker", self.ranker, RANKERS),
        ):
            if value not in allowed:
                raise ValueError(f"The {name} {value!r} is not known. Choose one of {', '.join(allowed)}.")
        for name, given in (("question_attention", self.question_attention), ("question_gates", self.question_gates)):
            if given and not self.question_relations:
                raise ValueError(f"{name} is a way of question_relations. Set both, or neither.")
        if self.hold_unreached and (self.message == "transe" or self.aggregation != "sum"):
            given = f"{self.aggregation} of {self.message}"
            raise ValueError(f"hold_unreached is for sums of distmult or rotate messages, not for {given}.")
        if self.message == "rotate" and self.hidden_dim % 2:
            raise ValueError(f"rotate pairs numbers, but hidden_dim is {self.hidden_dim}. Choose an even one.")


# -------------------------------------------------------------------------------------------------------------- edges
@dataclass
class RelationalEdges:
    """Edges sorted once by target, by source and by relation: what message passing and its backward walk along.

    Attributes:
        order: (E,) place among the sorted edges -> edge as it was given.
        sources, relations, targets: (E,) int64, sorted by target; a message goes from source to target.
        offsets: (N + 1,) where the edges of each target begin.
        num_nodes, num_relations: how many there are.
        hidden: (E,) bool in the given order: edges that `from_pairs` passes over.
    """

    order: Tensor
    sources: Tensor
    relations: Tensor
    targets: Tensor
    num_nodes: int
    num_relations: int
    offsets: Tensor = field(init=False)
    hidden: Tensor | None = field(default=None, init=False)
    _grouped: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.offsets = offsets_of(self.targets, self.num_nodes)

    @classmethod
    def sort(
        cls, sources: Tensor, relations: Tensor, targets: Tensor, num_nodes: int, num_relations: int
    ) -> "RelationalEdges":
        """From edges (E,) in any order."""
        order = torch.argsort(targets, stable=True)
        return cls(order, sources[order], relations[order], targets[order], num_nodes, num_relations)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def degrees(self) -> Tensor:
        """Messages that arrive at each node (N,)."""
        return self.offsets.diff()

    def by_source(self) -> tuple[Tensor, Tensor, Tensor]:
        """(offsets, targets, relations) of the edges grouped by source, made when first asked for."""
        return self._group("source", self.sources, self.num_nodes, self.targets, self.relations)

    def by_relation(self) -> tuple[Tensor, Tensor, Tensor]:
        """(offsets, sources, targets) of the edges grouped by relation, made when first asked for."""
        return self._group("relation", self.relations, self.num_relations, self.sources, self.targets)

    def leaving(self) -> tuple[Tensor, Tensor]:
        """(offsets (N + 1,), places (E,) of the edges grouped by source), made when first asked for."""
        places = torch.arange(len(self), device=self.order.device)
        return self._group("leaving", self.sources, self.num_nodes, places, places)[:2]

    def from_pairs(self, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All edges that leave pairs (p,), numbered question * N + node: (pairs at their sources, targets, places)."""
        offsets, leaving = self.leaving()
        nodes = pairs % self.num_nodes
        rows = leaving[ranges(offsets, nodes)]
        sources = torch.repeat_interleave(pairs, offsets[nodes + 1] - offsets[nodes])
        if self.hidden is not None:
            seen = ~self.hidden[self.order[rows]]
            rows, sources = rows[seen], sources[seen]
        return sources, sources - self.sources[rows] + self.targets[rows], rows

    def _group(self, name: str, keys: Tensor, count: int, *columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if name not in self._grouped:
            order = torch.argsort(keys, stable=True)
            first, second = (column[order] for column in columns)
            self._grouped[name] = offsets_of(keys, count), first, second
        return self._grouped[name]

    def without(self, dropped: Tensor) -> "RelationalEdges":
        """The same edges but those at the places `dropped` (x,) of the order in which they were given."""
        kept = torch.ones(len(self), dtype=torch.bool, device=self.order.device)
        kept[dropped] = False
        return self.where(kept[self.order])

    def hiding(self, dropped: Tensor) -> "RelationalEdges":
        """As `without` for `from_pairs` alone: nothing is sorted anew."""
        other = copy(self)
        other.hidden = torch.zeros(len(self), dtype=torch.bool, device=self.order.device)
        other.hidden[dropped] = True
        return other

    def where(self, kept: Tensor) -> "RelationalEdges":
        """Those of the sorted edges that a mask (E,) bool keeps."""
        parts = self.order[kept], self.sources[kept], self.relations[kept], self.targets[kept]
        return RelationalEdges(*parts, self.num_nodes, self.num_relations)


def offsets_of(keys: Tensor, count: int) -> Tensor:
    """(count + 1,): where each key begins once the keys (E,) are sorted."""
    return F.pad(torch.bincount(keys, minlength=count).cumsum(0), (1, 0))


def with_inverses(
    edge_index: Tensor, relations: Tensor, num_nodes: int, num_relations: int, against: bool, copies: int = 1
) -> RelationalEdges:
    """Every edge (s, r, t) as it is and as (t, r + R, s); `against` swaps the ends of all messages.

    Args:
        edge_index: (2, E). relations: (E,). num_relations: R, without inverses.
        copies: relation tables of 2R rows that stand one after the other; `relations` say which is meant.
    """
    sources, targets = edge_index.flip(0) if against else edge_index
    both = torch.cat([sources, targets]), torch.cat([targets, sources])
    kinds = torch.cat([relations, relations + num_relations])
    return RelationalEdges.sort(both[0], kinds, both[1], num_nodes, 2 * num_relations * copies)


@dataclass
class GFMGraph:
    """One graph to score: the model holds it as a plain attribute, so it is never saved, cast or partitioned.

    Attributes:
        edge_index: (2, E) source above target; relations: (E,).
        num_nodes, num_relations: N and R.
        relation_embeds: (2R, F) float32, inverses after the others; None with relation_source "graph".
        document_nodes: (k, 2) [document, node]. num_documents: how many there are.
        name: said in messages.
    """

    edge_index: Tensor
    relations: Tensor
    num_nodes: int
    num_relations: int
    relation_embeds: Tensor | None = None
    document_nodes: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.long))
    num_documents: int = 0
    name: str = "graph"
    derived: dict[Any, Any] = field(default_factory=dict, repr=False)  # what is made of it once: edges, backgrounds

    @classmethod
    def from_arrays(
        cls,
        edges: np.ndarray,
        num_nodes: int,
        num_relations: int,
        relation_embeds: np.ndarray | None = None,
        document_nodes: np.ndarray | None = None,
        num_documents: int = 0,
        name: str = "graph",
    ) -> "GFMGraph":
        """From the arrays of a graph folder.

        Args:
            edges: (E, 3) [source, relation, target].
            relation_embeds: (R, F), whose inverses get the negative vectors, or (2R, F).
            document_nodes: (k, 2) [document, node].

        Raises:
            ValueError: no edges, an id out of range, or as many embeddings as there are no relations.
        """
        triples = torch.from_numpy(np.array(edges, dtype=np.int64).reshape(-1, 3))
        if not len(triples):
            raise ValueError(f"{name} has no edges: nothing can be passed along. Import triples first.")
        if int(triples[:, [0, 2]].max()) >= num_nodes or int(triples[:, 1].max()) >= num_relations:
            raise ValueError(f"{name} has {num_nodes} nodes and {num_relations} relations; an edge names another one.")
        if relation_embeds is not None:
            table = torch.from_numpy(np.array(relation_embeds, dtype=np.float32))
            table = torch.cat([table, -table]) if len(table) == num_relations else table
            if len(table) != 2 * num_relations:
                raise ValueError(f"{name} has {num_relations} relations, but {len(table)} embeddings; give one each.")
            relation_embeds = table
        links = np.zeros((0, 2)) if document_nodes is None else document_nodes
        links = torch.from_numpy(np.array(links, dtype=np.int64))
        ends, kinds = triples[:, [0, 2]].T.contiguous(), triples[:, 1].contiguous()
        return cls(ends, kinds, num_nodes, num_relations, relation_embeds, links, num_documents, name)

    def at(self, device: torch.device) -> "GFMGraph":
        """The same graph on a device, moved when first asked for."""
        if self.edge_index.device == device:
            return self
        if ("at", device) not in self.derived:
            moved = {name: one.to(device) for name, one in vars(self).items() if isinstance(one, Tensor)}
            self.derived["at", device] = replace(self, **moved, derived={})
        return self.derived["at", device]

    def edges(self, against: bool) -> RelationalEdges:
        """All edges with their inverses, sorted when first asked for."""
        if ("edges", against) not in self.derived:
            sizes = self.num_nodes, self.num_relations
            self.derived["edges", against] = with_inverses(self.edge_index, self.relations, *sizes, against)
        return self.derived["edges", against]

    def document_counts(self) -> Tensor:
        """df (N,) float: how many documents name each node; counted when first asked for."""
        if "document counts" not in self.derived:
            counts = torch.bincount(self.document_nodes[:, 1], minlength=self.num_nodes)
            self.derived["document counts"] = counts.float()
        return self.derived["document counts"]


@dataclass
class Ball:
    """What messages from the seeds of several questions reach: pairs (question, node) in the order of their steps.

    Attributes:
        questions, nodes: (n,) of every pair; those reached first stand first, seeds in front.
        starts: (S,) places of the seeds as they were given.
        steps: for each step the edges that its messages take, between places of pairs. An edge's `order` is the one
            of the edge that it stands for, its relation counts from 2R times the question where each has vectors of
            its own, and `num_nodes` is how many pairs have been reached after the step.
    """

    questions: Tensor
    nodes: Tensor
    starts: Tensor
    steps: list[RelationalEdges]

    @classmethod
    def grow(
        cls, edges: RelationalEdges, seeds: Tensor, batch: Tensor, count: int, steps: int, own_relations: bool
    ) -> "Ball":
        """From seeds (S,) of the questions `batch` (S,), `steps` steps far.

        Args:
            count: B. own_relations: every question has relation vectors of its own.
        """
        size = edges.num_nodes
        place = torch.full((count * size,), -1, device=seeds.device)
        fresh, starts = torch.unique(batch * size + seeds, return_inverse=True)
        rings, parts = [fresh], []
        place[fresh] = torch.arange(len(fresh), device=seeds.device)
        for _ in range(steps):
            sources, targets, rows = edges.from_pairs(fresh)
            kinds = edges.relations[rows]
            if own_relations:
                kinds = kinds + edges.num_relations * torch.div(sources, size, rounding_mode="floor")
            fresh = torch.unique(targets[place[targets] < 0])
            begun = sum(map(len, rings))
            place[fresh] = torch.arange(begun, begun + len(fresh), device=seeds.device)
            rings.append(fresh)
            parts.append((edges.order[rows], place[sources], kinds, place[targets]))
        pairs, reached = torch.cat(rings), np.cumsum([len(ring) for ring in rings])[1:].tolist()
        relations = edges.num_relations * (count if own_relations else 1)
        grown = [join_edges(parts[: step + 1], reached[step], relations) for step in range(steps)]
        return cls(torch.div(pairs, size, rounding_mode="floor"), pairs % size, starts, grown)


def join_edges(parts: list[tuple[Tensor, ...]], num_nodes: int, num_relations: int) -> RelationalEdges:
    """The edges of several parts (order, sources, relations, targets) as one, sorted by target."""
    order, sources, kinds, targets = (torch.cat(columns) for columns in zip(*parts, strict=True))
    by_target = torch.argsort(targets, stable=True)
    columns = order[by_target], sources[by_target], kinds[by_target], targets[by_target]
    return RelationalEdges(*columns, num_nodes, num_relations)


# ------------------------------------------------------------------------------------------------- message passing
def message_of(kind: str, states: Tensor, relations: Tensor) -> Tensor:
    """Messages (e, B, D) from states at their sources (e, B, D) and relation vectors (e, 1 or B, D)."""
    if kind == "distmult":
        return states * relations
    if kind == "transe":
        return states + relations
    real, imaginary = states.chunk(2, -1)
    turn_real, turn_imaginary = relations.chunk(2, -1)
    product = real * turn_real - imaginary * turn_imaginary, real * turn_imaginary + imaginary * turn_real
    return torch.cat(product, -1)


def conjugate(vectors: Tensor) -> Tensor:
    """Complex numbers (.., real half | imaginary half) with the sign of their imaginary halves changed."""
    real, imaginary = vectors.chunk(2, -1)
    return torch.cat([real, -imaginary], -1)


def message_gradients(kind: str, grad: Tensor, states: Tensor, relations: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of `message_of` with respect to states and relations, (e, B, D) both."""
    if kind == "distmult":
        return grad * relations, grad * states
    if kind == "transe":
        return grad, grad
    return message_of(kind, grad, conjugate(relations)), message_of(kind, grad, conjugate(states))


class _Propagate(torch.autograd.Function):
    """Sum, maximum or minimum of the messages at every node; keeps no message for the backward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, relations: Tensor, edges: RelationalEdges, kind: str, reduce: str) -> Tensor:
        compiled = reduce == "sum" and states.device.type == "cpu"
        kernels = cpu_kernels(torch.get_num_threads()) if compiled else None
        if kernels is None:
            result = propagate_in_chunks(states, relations, edges, kind, reduce)
        else:
            result = kernels.gather(edges.offsets, edges.sources, edges.relations, states, relations, kind)
        ctx.save_for_backward(states, relations, *([] if reduce == "sum" else [result]))
        ctx.edges, ctx.kind, ctx.reduce, ctx.kernels = edges, kind, reduce, kernels
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, relations, *result = ctx.saved_tensors
        edges, kind = ctx.edges, ctx.kind
        if ctx.kernels is None:
            both = gradients_in_chunks(grad, states, relations, edges, kind, result[0] if result else None)
        else:
            both = ctx.kernels.gradients(grad.contiguous(), states, relations, edges, kind, ctx.needs_input_grad)
        return *both, None, None, None


def propagate(
    states: Tensor, relations: Tensor, edges: RelationalEdges, kind: str = "distmult", reduce: str = "sum"
) -> Tensor:
    """What arrives at every node: the reduction of `message_of` over its incoming edges.

    Forward and backward hold at most CHUNK_BYTES of messages, whatever the number of edges; sums are taken in float32
    for narrower types. On a CPU sums run as compiled loops where numba is installed, with the same results.

    Args:
        states: (N, B, D). relations: (2R, 1, D) for all questions alike, or (2R, B, D).
        kind: of the messages. reduce: "sum", or "max" or "min", where a node without messages gets -inf or inf.

    Returns:
        (N, B, D) of the type of `states`.
    """
    shape, narrowest = states.shape, states.dtype
    wide = torch.float32 if narrowest in (torch.float16, torch.bfloat16) else narrowest
    with torch.autocast(states.device.type, enabled=False):
        if kind != "rotate" and (relations.shape[1] > 1 or shape[2] < SHORT_ROW):
            # these go number by number: the states of all questions are one long row
            relations = relations.expand(-1, shape[1], -1).flatten(1)[:, None]
            states = states.flatten(1)[:, None]
        states, relations = states.to(wide).contiguous(), relations.to(wide).contiguous()
        result = _Propagate.apply(states, relations, edges, kind, reduce)
    return result.reshape(shape).to(narrowest)


def chunks(edges: RelationalEdges, states: Tensor) -> Iterator[slice]:
    """Runs of edges whose messages, rows of states (N, B, D), take at most CHUNK_BYTES."""
    step = max(1, CHUNK_BYTES // max(states[0].nbytes, 1))
    for start in range(0, len(edges), step):
        yield slice(start, min(start + step, len(edges)))


def propagate_in_chunks(
    states: Tensor, relations: Tensor, edges: RelationalEdges, kind: str, reduce: str
) -> Tensor:
    """`propagate` in plain torch: the reference, and what runs on a GPU."""
    empty = {"sum": 0.0, "max": -torch.inf, "min": torch.inf}[reduce]
    result = torch.full_like(states, empty)
    for part in chunks(edges, states):
        messages = message_of(kind, states[edges.sources[part]], relations[edges.relations[part]])
        if reduce == "sum":
            result.index_add_(0, edges.targets[part], messages)
        else:
            places = edges.targets[part, None, None].expand_as(messages)
            result.scatter_reduce_(0, places, messages, "a" + reduce)
    return result


def gradients_in_chunks(
    grad: Tensor, states: Tensor, relations: Tensor, edges: RelationalEdges, kind: str, extreme: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of states (N, B, D) and relations; of a maximum or minimum `extreme`, messages that tie share."""
    of_states, of_relations = torch.zeros_like(states), torch.zeros_like(relations)

    def parts() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        for part in chunks(edges, states):
            sources, kinds, targets = edges.sources[part], edges.relations[part], edges.targets[part]
            yield sources, kinds, targets, states[sources], relations[kinds]

    if extreme is not None:
        ties = torch.zeros_like(states)
        for _, _, targets, at_source, at_edge in parts():
            hit = message_of(kind, at_source, at_edge) == extreme[targets]
            ties.index_add_(0, targets, hit.to(ties.dtype))
        grad = grad / ties.clamp(min=1)
    for sources, kinds, targets, at_source, at_edge in parts():
        arriving = grad[targets]
        if extreme is not None:
            arriving = arriving * (message_of(kind, at_source, at_edge) == extreme[targets])
        to_states, to_relations = message_gradients(kind, arriving, at_source, at_edge)
        of_states.index_add_(0, sources, to_states)
        if relations.shape[1] == 1:
            to_relations = to_relations.sum(1, keepdim=True)
        of_relations.index_add_(0, kinds, to_relations)
    return of_states, of_relations


# ---------------------------------------------------------------------------------------------- compiled loops (CPU)
DISTMULT, TRANSE, ROTATE, COPY, ROTATE_BACK = range(5)
FORWARD_CODES = {"distmult": DISTMULT, "transe": TRANSE, "rotate": ROTATE}
BACKWARD_CODES = {"distmult": DISTMULT, "transe": COPY, "rotate": ROTATE_BACK}
FLUSH = 256  # edges of one relation that are summed before the sum is added to the total: keeps float32 exact enough


class CPUKernels:
    """The sums of `propagate` as loops over rows, compiled by numba when first called."""

    def __init__(self, gather: Callable[..., None], reduce_relations: Callable[..., None]) -> None:
        self._gather, self._reduce_relations = gather, reduce_relations
        self._lock = threading.Lock()  # not every threading layer of numba may be entered twice at once

    def _run(self, kernel: Callable[..., None], *arguments: Any) -> None:
        with self._lock:
            kernel(*(one.detach().numpy() if isinstance(one, Tensor) else one for one in arguments))

    def gather(
        self, offsets: Tensor, ends: Tensor, kinds: Tensor, states: Tensor, relations: Tensor, kind: str | int
    ) -> Tensor:
        """Sums over each row's edges of messages from `ends` (E,) along `kinds` (E,)."""
        code = FORWARD_CODES[kind] if isinstance(kind, str) else kind
        result = torch.zeros_like(states)
        self._run(self._gather, offsets, ends, kinds, states, relations, code, result)
        return result

    def gradients(
        self, grad: Tensor, states: Tensor, relations: Tensor, edges: RelationalEdges, kind: str, needed: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of states and relations where `needed`: the first is the same sum along the reversed edges."""
        of_states = of_relations = None
        if needed[0]:
            of_states = self.gather(*edges.by_source(), grad, relations, BACKWARD_CODES[kind])
        if needed[1]:
            of_relations = torch.zeros_like(relations)
            grouped = edges.by_relation()
            self._run(self._reduce_relations, *grouped, states, grad, BACKWARD_CODES[kind], of_relations)
        return of_states, of_relations


@cache
def cpu_kernels(threads: int) -> CPUKernels | None:
    """The compiled loops over so many threads; None where numba is not installed.

    One thread gets loops without a pool: idle threads of a pool would spin beside it.
    """
    try:  # in a `try`, or the Hub's loader would call numba a missing package of the published code
        import numba
    except ImportError:
        return None
    compiled = partial(numba.njit, parallel=threads > 1, cache=True)
    if threads > 1:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    row = numba.njit(cache=True)(add_message)

    @compiled()
    def gather(
        offsets: Any, ends: Any, kinds: Any, states: Any, relations: Any, code: int, result: Any
    ) -> None:
        shared = relations.shape[1] == 1
        for node in numba.prange(len(offsets) - 1):
            for edge in range(offsets[node], offsets[node + 1]):
                for b in range(states.shape[1]):
                    row(result, node, b, states, ends[edge], b, relations, kinds[edge], 0 if shared else b, code)

    @compiled()
    def reduce_relations(
        offsets: Any, sources: Any, targets: Any, states: Any, grad: Any, code: int, result: Any
    ) -> None:
        shared = result.shape[1] == 1
        for relation in numba.prange(len(offsets) - 1):
            part = np.zeros_like(result[:1])
            for edge in range(offsets[relation], offsets[relation + 1]):
                for b in range(states.shape[1]):
                    row(part, 0, 0 if shared else b, grad, targets[edge], b, states, sources[edge], b, code)
                if (edge - offsets[relation]) % FLUSH == FLUSH - 1:
                    result[relation] += part[0]
                    part[:] = 0
            result[relation] += part[0]

    return CPUKernels(gather, reduce_relations)


def add_message(
    result: np.ndarray, node: int, b: int, states: np.ndarray, end: int, c: int,
    relations: np.ndarray, kind: int, d: int, code: int,
) -> None:  # fmt: skip
    """Adds the message of states[end, c] along relations[kind, d] to result[node, b]: the body of the loops."""
    width = result.shape[2]
    if code == DISTMULT:
        for i in range(width):
            result[node, b, i] += states[end, c, i] * relations[kind, d, i]
    elif code == TRANSE:
        for i in range(width):
            result[node, b, i] += states[end, c, i] + relations[kind, d, i]
    elif code == COPY:
        for i in range(width):
            result[node, b, i] += states[end, c, i]
    else:
        half = width // 2
        for i in range(half):
            real, imaginary = states[end, c, i], states[end, c, half + i]
            turn_real, turn_imaginary = relations[kind, d, i], relations[kind, d, half + i]
            if code == ROTATE_BACK:
                turn_imaginary = -turn_imaginary
            result[node, b, i] += real * turn_real - imaginary * turn_imaginary
            result[node, b, half + i] += real * turn_imaginary + imaginary * turn_real


# -------------------------------------------------------------------------------------------------------------- layers
class GFMLayer(nn.Module):
    """One step: relation vectors, messages, their reduction with the start state, a new state.

    GFM-RAG (arXiv 2502.01113, section 3.2) after NBFNet (2106.06935): H' = ReLU(LayerNorm(Linear([H ; M]))) + H, where
    M reduces the messages and the start state.
    """

    def __init__(self, config: GFMConfig, num_meta_relations: int = 0) -> None:
        super().__init__()
        width = config.hidden_dim
        self.message, self.aggregation = config.message, config.aggregation
        self.relation_table = nn.Embedding(num_meta_relations, width) if num_meta_relations else None
        if self.relation_table is None:
            self.relation_mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        gates = config.question_gates and self.relation_table is None
        self.question = nn.Linear(width, width, bias=gates) if config.question_relations else None
        self.gate = nn.Linear(width, width) if gates else None
        self.focus = nn.Linear(width, 1, bias=False) if config.question_attention else None
        self.linear = nn.Linear((13 if self.aggregation == "pna" else 2) * width, width)
        self.norm = nn.LayerNorm(width)

    def relation_vectors(self, relations: Tensor | None, question: Tensor | None) -> Tensor:
        """x_r of this layer.

        Args:
            relations: (2R, 1 or B, D), or None for a layer with its own table.
            question: (B, D), read with question_relations only.

        Returns:
            (2R, 1 or B, D).
        """
        if self.relation_table is not None:
            return self.relation_table.weight[:, None]
        if self.question is None:
            return self.relation_mlp(relations)
        if self.gate is not None:
            shares = (self.gate(relations) * self.question(question)).sum(-1).softmax(0)
            return self.relation_mlp(relations) * shares[..., None]
        first, activation, last = self.relation_mlp
        return last(activation(first(relations) + self.question(question)))

    def words(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """What this layer reads of the questions (B, D): a mean of tokens (B, T, D) by attention; mask (B, T) bool."""
        weights = self.focus(tokens).squeeze(-1).masked_fill(~mask, -torch.inf).softmax(-1)
        return (weights[..., None] * tokens).sum(1)

    def forward(self, states: Tensor, start: Tensor, edges: RelationalEdges, vectors: Tensor) -> Tensor:
        """States (N, B, D) after this step; `start` (N, B, D) is what they were before the first one."""
        return self.update(states, self.aggregate(states, start, edges, vectors))

    def update(self, states: Tensor, aggregate: Tensor) -> Tensor:
        """The new states from the old ones (N, B, D) and what has arrived (N, B, D or 12D)."""
        width = states.shape[-1]
        mixed = F.linear(states, self.linear.weight[:, :width], self.linear.bias)
        mixed = mixed + F.linear(aggregate, self.linear.weight[:, width:])
        return F.relu(self.norm(mixed)) + states

    def aggregate(self, states: Tensor, start: Tensor, edges: RelationalEdges, vectors: Tensor) -> Tensor:
        """Messages and the start state at every node, reduced (N, B, D), or (N, B, 12D) with pna."""
        arguments = states, vectors, edges, self.message
        if self.aggregation == "max":
            return torch.maximum(propagate(*arguments, "max"), start)
        if self.aggregation == "min":
            return torch.minimum(propagate(*arguments, "min"), start)
        total = propagate(*arguments) + start
        if self.aggregation == "sum":
            return total
        count = (edges.degrees + 1).to(total.dtype)[:, None, None]
        if self.aggregation == "mean":
            return total / count
        return self._principal(total / count, count, start, arguments)

    def _principal(self, mean: Tensor, count: Tensor, start: Tensor, arguments: tuple) -> Tensor:
        """Mean, maximum, minimum and deviation, as they are and scaled both ways by degree (arXiv 2004.05718)."""
        highest = torch.maximum(propagate(*arguments, "max"), start)
        lowest = torch.minimum(propagate(*arguments, "min"), start)
        square = (sum_of_squares(*arguments) + start.square()) / count
        deviation = (square - mean.square()).clamp(min=1e-6).sqrt()
        features = torch.cat([mean, highest, lowest, deviation], -1)
        scale = count.log()
        scale = scale / scale.mean().clamp(min=1e-6)
        return torch.cat([features, features * scale, features / scale.clamp(min=1e-2)], -1)


def sum_of_squares(states: Tensor, relations: Tensor, edges: RelationalEdges, kind: str) -> Tensor:
    """The sum of squared messages at every node (N, B, D), written as sums that `propagate` knows."""
    if kind == "distmult":
        return propagate(states.square(), relations.square(), edges)
    if kind == "transe":
        product = propagate(states, relations, edges)
        return propagate(states.square(), relations.square(), edges, "transe") + 2 * product
    real, imaginary = states.chunk(2, -1)
    turn_real, turn_imaginary = relations.chunk(2, -1)
    crossed = 2 * propagate(real * imaginary, turn_real * turn_imaginary, edges)

    def squares(first: Tensor, second: Tensor) -> Tensor:
        return propagate(first.square(), second.square(), edges)

    of_real = squares(real, turn_real) + squares(imaginary, turn_imaginary) - crossed
    of_imaginary = squares(real, turn_imaginary) + squares(imaginary, turn_real) + crossed
    return torch.cat([of_real, of_imaginary], -1)


class RelationNetwork(nn.Module):
    """Relation vectors without text: a network over the graph of relations that share an end (arXiv 2310.04562).

    Two relations are joined as head-head, tail-tail, head-tail or tail-head where an entity stands at those ends.
    """

    def __init__(self, config: GFMConfig) -> None:
        super().__init__()
        shape = {"hidden_dim": config.hidden_dim, "message": config.message, "aggregation": config.aggregation}
        self.layers = nn.ModuleList(GFMLayer(GFMConfig(**shape), 4) for _ in range(config.num_layers))

    def forward(self, edges: RelationalEdges, queries: Tensor) -> Tensor:
        """(2R, B, D): every relation as seen from the query relations (B,)."""
        width = self.layers[0].norm.normalized_shape[0]
        start = self.layers[0].linear.weight.new_zeros(edges.num_nodes, len(queries), width)
        start[queries, torch.arange(len(queries), device=queries.device)] = 1
        states = start
        for layer in self.layers:
            states = layer(states, start, edges, layer.relation_vectors(None, None))
        return states


def relation_graph(edges: RelationalEdges, against: bool) -> RelationalEdges:
    """The graph of relations of a graph with inverses: nodes are its 2R relations, edges of four kinds.

    An edge (p, kind, q) stands where some entity is the head of p and of q (kind 0), the tail of both (1), the head of
    p and the tail of q (2), or the tail of p and the head of q (3).
    """
    count = edges.num_relations
    heads, tails = (edges.targets, edges.sources) if against else (edges.sources, edges.targets)

    def incidence(ends: Tensor) -> Tensor:
        pairs = torch.unique(torch.stack([edges.relations, ends]), dim=1)
        ones = torch.ones(pairs.shape[1], device=pairs.device)
        return torch.sparse_coo_tensor(pairs, ones, (count, edges.num_nodes), check_invariants=False).coalesce()

    at_head, at_tail = incidence(heads), incidence(tails)
    pairs = []
    for kind, (first, second) in enumerate(
        ((at_head, at_head), (at_tail, at_tail), (at_head, at_tail), (at_tail, at_head))
    ):
        joined = torch.sparse.mm(first, second.t().coalesce()).coalesce().indices()
        pairs.append(torch.cat([joined, torch.full_like(joined[:1], kind)]))
    sources, targets, kinds = torch.cat(pairs, 1)
    if against:
        sources, targets = targets, sources
    return RelationalEdges.sort(sources, kinds, targets, count, 4)


# --------------------------------------------------------------------------------------------------------------- model
@dataclass
class GFMOutput(ModelOutput):
    """What `GFMForRetrieval.forward` returns.

    Attributes:
        loss: with targets.
        logits: (B, N) of all nodes; (N,) of the nodes of a union of subgraphs; (P,) of the targets and then the
            negatives where those were given.
        ranks: (T, 2) outside training, with targets: see `filtered_ranks`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    ranks: Tensor | None = None


class GFMForRetrieval(PreTrainedModel):
    """Question and seed nodes -> a score for every node (arXiv 2502.01113).

    The question's vector starts at its entities, travels along the edges for `num_layers` steps, and a small network
    reads each node's last state beside the question. Graphs are attached with `attach_graphs`.
    """

    config_class = GFMConfig
    base_model_prefix = "gfm"

    def __init__(self, config: GFMConfig) -> None:
        super().__init__(config)
        width = config.hidden_dim
        self.from_text = config.relation_source == "text"
        if self.from_text:
            self.relation_projection = nn.Linear(config.feature_dim, width)
            self.question_projection = nn.Linear(config.feature_dim, width)
            if config.question_attention:
                self.token_projection = nn.Linear(config.feature_dim, width)
        else:
            self.relation_network = RelationNetwork(config)
        self.layers = nn.ModuleList(GFMLayer(config) for _ in range(config.num_layers))
        read = width * (1 + (config.num_layers if config.concat_hidden else 1))
        self.readout = nn.Sequential(nn.Linear(read, read), nn.ReLU(), nn.Linear(read, 1))
        self.graphs: list[GFMGraph] = []
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The defaults of torch, which the published weights started from."""
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)

    def attach_graphs(self, graphs: Sequence[GFMGraph]) -> None:
        """The graphs that `graph_index` chooses from, in this order; earlier ones are let go.

        Raises:
            ValueError: a graph without relation embeddings, or of another width than the model reads.
        """
        for graph in graphs if self.from_text else ():
            found = None if graph.relation_embeds is None else graph.relation_embeds.shape[1]
            if found != self.config.feature_dim:
                has = "no relation embeddings" if found is None else f"relation embeddings of width {found}"
                raise ValueError(
                    f"{graph.name} has {has}, the model reads width {self.config.feature_dim}. Embed the graph with "
                    f"{self.config.feature_encoder or 'the encoder that the model was trained with'}."
                )
        self.graphs = list(graphs)

    def forward(
        self,
        graph_index: Tensor,
        seed_nodes: Tensor,
        seed_batch: Tensor,
        question_embeds: Tensor | None = None,
        question_tokens: Tensor | None = None,
        question_token_mask: Tensor | None = None,
        query_relations: Tensor | None = None,
        target_nodes: Tensor | None = None,
        target_batch: Tensor | None = None,
        known_nodes: Tensor | None = None,
        known_batch: Tensor | None = None,
        negative_nodes: Tensor | None = None,
        removed_edges: Tensor | None = None,
        edge_index: Tensor | None = None,
        edge_relations: Tensor | None = None,
        node_batch: Tensor | None = None,
        target_documents: Tensor | None = None,
        target_document_batch: Tensor | None = None,
    ) -> GFMOutput:
        """Scores; the loss, too, where targets are given, and their ranks outside training.

        Args:
            graph_index: (1,) place among the attached graphs.
            seed_nodes, seed_batch: (S,) nodes at which a question starts, and which question that is.
            question_embeds: (B, F), or query_relations: (B,) r for (seed, r, ?) and r + R for (?, r, seed).
            question_tokens, question_token_mask: (B, T, F) embeddings of the questions' tokens, and (B, T) bool which
                of them are not padding; with question_attention.
            target_nodes, target_batch: (T,) answers. known_nodes, known_batch: (K,) answers that are neither targets
                nor wrong: left out of loss and ranks.
            negative_nodes: (B, C) what the targets are compared with; by default every other node.
            removed_edges: (x,) rows of the graph's edges that are not there for this batch, nor their inverses.
            edge_index, edge_relations, node_batch: (2, e), (e,), (n,) the union of one subgraph per question; then all
                nodes are places in the union, and only its nodes are scored.
            target_documents, target_document_batch: (T',) rows of supporting documents.

        Raises:
            ValueError: no such graph attached, or neither or both of question_embeds and query_relations.
        """
        graph = self._graph(graph_index)
        if (question_embeds is None) == (query_relations is None):
            raise ValueError("Give either question_embeds or query_relations.")
        edges = self._edges(graph, removed_edges)
        question, relations = self._read_question(graph, edges, question_embeds, query_relations)
        words = self._words(question, question_tokens, question_token_mask)
        if edge_index is not None:
            edges = self._union(graph, edge_index, edge_relations, node_batch, len(question))
        start, ball = self._start(graph, edges, question, seed_nodes, seed_batch, node_batch)
        steps = [edges] * len(self.layers) if ball is None else ball.steps
        states = self._run(start, steps, words, relations, ball is not None or node_batch is not None)
        return self._output(
            graph, states, ball, question, node_batch,
            (target_nodes, target_batch), (known_nodes, known_batch), negative_nodes,
            (target_documents, target_document_batch),
        )  # fmt: skip

    def _graph(self, graph_index: Tensor) -> GFMGraph:
        place = int(graph_index)
        if not 0 <= place < len(self.graphs):
            raise ValueError(f"Graph {place} of {len(self.graphs)} is asked for; attach_graphs comes first.")
        return self.graphs[place].at(self.device)

    def _edges(self, graph: GFMGraph, removed: Tensor | None = None) -> RelationalEdges:
        edges = graph.edges(self.config.messages == "against")
        if removed is None or not len(removed):
            return edges
        removed = torch.cat([removed, removed + graph.edge_index.shape[1]])
        return edges.hiding(removed) if self.config.hold_unreached else edges.without(removed)

    def _read_question(
        self, graph: GFMGraph, edges: RelationalEdges, embeds: Tensor | None, queries: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(question vectors (B, D), relation vectors (2R, 1 or B, D))."""
        if not self.from_text:
            if queries is None:
                raise ValueError("A model with relation_source 'graph' reads query_relations, not questions.")
            # seen from the relation as it is written, also where its inverse is asked: as ULTRA was trained
            relations = self.relation_network(self._relation_graph(graph, edges), queries % graph.num_relations)
            return relations[queries, torch.arange(len(queries), device=queries.device)], relations
        table = graph.relation_embeds.to(self.dtype)
        embeds = table[queries] if embeds is None else embeds.to(self.dtype)
        return self.question_projection(embeds), self.relation_projection(table)[:, None]

    def _words(self, question: Tensor, tokens: Tensor | None, mask: Tensor | None) -> list[Tensor]:
        """What every layer reads of the questions: (B, D) each."""
        if not self.config.question_attention:
            return [question] * len(self.layers)
        if tokens is None or mask is None:
            raise ValueError("A model with question_attention reads question_tokens and question_token_mask.")
        projected = self.token_projection(tokens.to(self.dtype))
        return [layer.words(projected, mask) for layer in self.layers]

    def _relation_graph(self, graph: GFMGraph, edges: RelationalEdges) -> RelationalEdges:
        key = ("relation graph", self.config.messages)
        if key not in graph.derived:
            graph.derived[key] = relation_graph(edges, self.config.messages == "against")
        return graph.derived[key]

    def _union(
        self, graph: GFMGraph, edge_index: Tensor, relations: Tensor, node_batch: Tensor, questions: int
    ) -> RelationalEdges:
        """The edges of a union of subgraphs; with relation vectors per question each has its own relation ids."""
        against, count, copies = self.config.messages == "against", graph.num_relations, 1
        if self.config.question_relations or not self.from_text:
            relations, copies = relations + 2 * count * node_batch[edge_index[0]], questions
        return with_inverses(edge_index, relations, len(node_batch), count, against, copies)

    def _start(
        self, graph: GFMGraph, edges: RelationalEdges, question: Tensor, seeds: Tensor, batch: Tensor,
        node_batch: Tensor | None,
    ) -> tuple[Tensor, Ball | None]:  # fmt: skip
        """States before the first step, the question's vector at its seeds, and with hold_unreached where they are.

        Returns:
            (N, B, D), or (n, 1, D) of a union, and None; or (s, 1, D) of the seeds of a ball, and the ball.
        """
        vectors, whole = question[batch], node_batch is None
        if self.config.seed_weights and whole:
            counts = graph.document_counts()[seeds].to(question)
            vectors = vectors * torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)[:, None]
        if self.config.hold_unreached:
            own = whole and (self.config.question_relations or not self.from_text)
            shape = (len(question), len(self.layers), own) if whole else (1, len(self.layers), own)
            ball = Ball.grow(edges, seeds, batch if whole else torch.zeros_like(batch), *shape)
            start = question.new_zeros(int(ball.starts.max()) + 1, 1, question.shape[1])
            return start.index_put((ball.starts, torch.zeros_like(seeds)), vectors), ball
        if whole:
            start = question.new_zeros(graph.num_nodes, *question.shape)
            return start.index_put((seeds, batch), vectors), None
        start = question.new_zeros(len(node_batch), 1, question.shape[1])
        return start.index_put((seeds, torch.zeros_like(seeds)), vectors), None

    def _run(
        self, start: Tensor, steps: Sequence[RelationalEdges], words: list[Tensor], relations: Tensor, flat: bool,
        trace: list[tuple[RelationalEdges, Tensor, Tensor, Tensor]] | None = None,
    ) -> Tensor:  # fmt: skip
        """The last states, or those of all layers side by side; `trace` gets what evidence needs.

        Args:
            start: (N, B, D), or flat (n, 1, D), a row for each pair of question and node.
            steps: the edges of every step; it may have more nodes than the one before.
        """
        states, history = start, []
        for layer, read, edges in zip(self.layers, words, steps, strict=True):
            vectors = layer.relation_vectors(relations, read)
            if flat and vectors.shape[1] > 1:
                vectors = vectors.transpose(0, 1).reshape(-1, 1, vectors.shape[-1])  # (B 2R, 1, D)
            states, start = grown(states, edges.num_nodes), grown(start, edges.num_nodes)
            aggregate = layer.aggregate(states, start, edges, vectors)
            if trace is not None:
                trace.append((edges, states, vectors, aggregate))
            states = layer.update(states, aggregate)
            history.append(states)
        return torch.cat([grown(one, len(states)) for one in history], -1) if self.config.concat_hidden else states

    def score(self, states: Tensor, question: Tensor) -> Tensor:
        """Logits (...) of states (..., D) beside the questions (..., D) that are asked of them."""
        first, activation, last = self.readout
        width = states.shape[-1]
        hidden = F.linear(states, first.weight[:, :width])
        hidden = hidden + F.linear(question, first.weight[:, width:], first.bias)
        return last(activation(hidden)).squeeze(-1)

    def _logits(
        self, graph: GFMGraph, states: Tensor, ball: Ball | None, question: Tensor, node_batch: Tensor | None
    ) -> Tensor:
        """(B, N) of all nodes, or (n,) of a union; outside a ball the question alone says what a node scores."""
        if ball is None and node_batch is None:
            return self.score(states, question).T.contiguous()
        if ball is None:
            return self.score(states[:, 0], question[node_batch])
        outside = self.score(states.new_zeros(len(question), states.shape[-1]), question)
        if node_batch is not None:
            inside = self.score(states[:, 0], question[node_batch[ball.nodes]])
            return outside[node_batch].index_put((ball.nodes,), inside)
        inside = self.score(states[:, 0], question[ball.questions])
        everywhere = outside[:, None].repeat(1, graph.num_nodes)
        return everywhere.index_put((ball.questions, ball.nodes), inside)

    def _output(
        self, graph: GFMGraph, states: Tensor, ball: Ball | None, question: Tensor, node_batch: Tensor | None,
        targets: tuple[Tensor | None, Tensor | None], known: tuple[Tensor | None, Tensor | None],
        negatives: Tensor | None, documents: tuple[Tensor | None, Tensor | None],
    ) -> GFMOutput:  # fmt: skip
        count, (nodes, batch) = len(question), targets
        everywhere = node_batch is None and negatives is None
        if self.training and self._learns_near and everywhere and ball is not None and nodes is not None:
            return GFMOutput(self._loss_near(graph, states, ball, question, targets, known))
        if negatives is not None and nodes is not None and node_batch is None:
            rows = torch.arange(count, device=batch.device).repeat_interleave(negatives.shape[1])
            nodes, questions = torch.cat([nodes, negatives.reshape(-1)]), torch.cat([batch, rows])
            if ball is None:
                logits = self.score(states[nodes, questions], question[questions])
            else:
                logits = self._logits(graph, states, ball, question, None)[questions, nodes]
            places = torch.arange(len(batch), device=batch.device)
        elif node_batch is not None:
            logits, questions = self._logits(graph, states, ball, question, node_batch), node_batch
            places = nodes
        else:
            logits = self._logits(graph, states, ball, question, None)
            questions = torch.arange(count, device=logits.device).repeat_interleave(graph.num_nodes)
            places = None if nodes is None else batch * graph.num_nodes + nodes
        if places is None:
            return GFMOutput(logits=logits)
        labels = torch.full_like(questions, NEGATIVE)
        if known[0] is not None and negatives is None:
            offset = 0 if node_batch is not None else known[1] * graph.num_nodes
            labels[offset + known[0]] = LEFT_OUT
        labels[places] = POSITIVE
        loss = self.loss(logits.reshape(-1), questions, labels, count)
        if documents[0] is not None and self.config.document_weight:
            share = self.config.document_weight
            loss = (1 - share) * loss + share * self._document_loss(logits, graph, *documents)
        ranks = None if self.training else filtered_ranks(logits.reshape(-1), questions, labels, places)
        return GFMOutput(loss, logits, ranks)

    @property
    def _learns_near(self) -> bool:
        config = self.config
        return not (config.bce_weight or config.list_ce_weight or config.document_weight)

    def _loss_near(
        self, graph: GFMGraph, states: Tensor, ball: Ball, question: Tensor, targets: tuple[Tensor, Tensor],
        known: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:  # fmt: skip
        """The softmax cross-entropy over all nodes, in which those outside the ball, all alike, stand as one.

        Args:
            targets, known: nodes (T,) and the question of each, as for `forward`.
        """
        count, size = len(question), graph.num_nodes
        place = torch.full((count * size,), -1, device=question.device)
        place[ball.questions * size + ball.nodes] = torch.arange(len(ball.nodes), device=question.device)
        right = targets[1] * size + targets[0]
        left = right if known[0] is None else torch.unique(torch.cat([right, known[1] * size + known[0]]))
        labels = torch.full_like(ball.nodes, NEGATIVE)
        labels[place[left][place[left] >= 0]] = LEFT_OUT
        labels[place[right][place[right] >= 0]] = POSITIVE
        lost = right[place[right] < 0]
        others = torch.cat([ball.questions, torch.div(left[place[left] < 0], size, rounding_mode="floor")])
        many = size - torch.bincount(others, minlength=count)
        outside = self.score(states.new_zeros(count, states.shape[-1]), question)
        alone = torch.div(lost, size, rounding_mode="floor")
        logits = torch.cat([
            self.score(states[:, 0], question[ball.questions]), outside + many.clamp(min=1e-9).log(), outside[alone],
        ])  # fmt: skip
        questions = torch.cat([ball.questions, torch.arange(count, device=question.device), alone])
        kinds = torch.full((count,), NEGATIVE, device=question.device), torch.full_like(alone, POSITIVE)
        return self.loss(logits, questions, torch.cat([labels, *kinds]), count)

    def loss(self, logits: Tensor, questions: Tensor, labels: Tensor, count: int) -> Tensor:
        """The weighted losses over pairs.

        Args:
            logits: (P,). questions: (P,) which question each pair is of. labels: (P,). count: B.
        """
        logits, config = logits.float(), self.config
        total = logits.new_zeros(())
        if config.bce_weight:
            temperature = config.adversarial_temperature
            total = total + config.bce_weight * bce_loss(logits, questions, labels, count, temperature)
        if config.list_ce_weight:
            total = total + config.list_ce_weight * list_ce_loss(logits, questions, labels, count)
        if config.softmax_weight:
            total = total + config.softmax_weight * softmax_loss(logits, questions, labels, count)
        return total

    def _document_loss(self, logits: Tensor, graph: GFMGraph, documents: Tensor, batch: Tensor) -> Tensor:
        scores = sum_by_document(logits, graph)
        labels = torch.full(scores.shape, NEGATIVE, device=scores.device)
        labels[batch, documents] = POSITIVE
        rows = torch.arange(len(scores), device=scores.device).repeat_interleave(scores.shape[1])
        return self.loss(scores.reshape(-1), rows, labels.reshape(-1), len(scores))

    # -------------------------------------------------------------------------------------------------- inference
    def evidence(
        self, graph_index: Tensor, seed_nodes: Tensor, seed_batch: Tensor, question_embeds: Tensor,
        edge_index: Tensor, edge_relations: Tensor, node_batch: Tensor, question_tokens: Tensor | None = None,
        question_token_mask: Tensor | None = None, top: int = 10,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Scores and what each edge did for them, by the very function that scores.

        The importance of an edge is the derivative of the sum of each question's `top` best scores with respect to a
        weight on the edge's messages, both directions and all steps together (as NBFNet explains paths, arXiv
        2106.06935, section 4.4).

        Args:
            As for `forward`, with the union of one subgraph per question.

        Returns:
            (scores (n,), importances (e,)).

        Raises:
            ValueError: an aggregation other than sum or mean, where a weight on a message has no such meaning.
        """
        if self.config.aggregation not in ("sum", "mean"):
            raise ValueError(f"Evidence needs the aggregation sum or mean, this model has {self.config.aggregation}.")
        graph, trace = self._graph(graph_index), []
        with torch.enable_grad():
            whole = self._edges(graph)
            question, relations = self._read_question(graph, whole, question_embeds, None)
            edges = self._union(graph, edge_index, edge_relations, node_batch, len(question))
            start, ball = self._start(graph, edges, question, seed_nodes, seed_batch, node_batch)
            steps = [edges] * len(self.layers) if ball is None else ball.steps
            words = self._words(question, question_tokens, question_token_mask)
            states = self._run(start.detach().requires_grad_(), steps, words, relations, True, trace)
            scores = self._logits(graph, states, ball, question, node_batch)
            best = torch.cat([places for places in top_places(scores, node_batch, len(question), top)])
            grads = torch.autograd.grad(scores[best].sum(), [aggregate for *_, aggregate in trace], allow_unused=True)
        importance = scores.new_zeros(len(edges))
        for (edges, states, vectors, aggregate), grad in zip(trace, grads, strict=True):
            grad = torch.zeros_like(aggregate) if grad is None else grad
            if self.config.aggregation == "mean":
                grad = grad / (edges.degrees + 1).to(scores.dtype)[:, None, None]
            for part in chunks(edges, states):
                sent = message_of(self.config.message, states[edges.sources[part]], vectors[edges.relations[part]])
                importance.index_add_(0, edges.order[part], (grad[edges.targets[part]] * sent).sum((1, 2)))
        return scores.detach(), importance.detach().reshape(2, -1).sum(0)

    @torch.no_grad()
    def score_near(
        self, graph_index: Tensor, seed_nodes: Tensor, question_embeds: Tensor,
        question_tokens: Tensor | None = None, question_token_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The same scores as `forward` for one question (1, N), computed only in the ball of its seeds.

        Outside the ball of l steps a node's state after step l is the same for every question: it is taken from a
        background that is computed once per graph and weights, or is zero with hold_unreached.

        Args:
            seed_nodes: (S,). question_embeds: (1, F). question_tokens, question_token_mask: as for `forward`.

        Raises:
            ValueError: a configuration in which states outside the ball do depend on the question.
        """
        if not self.scores_near:
            raise ValueError("score_near needs text relations, no concat_hidden, seed_weights or pna, and relation "
                             "vectors without the question or hold_unreached. Call forward instead.")  # fmt: skip
        if self.config.hold_unreached:  # forward knows no other way
            batch = torch.zeros_like(seed_nodes)
            return self(graph_index, seed_nodes, batch, question_embeds, question_tokens, question_token_mask).logits
        graph = self._graph(graph_index)
        edges, ball = self._edges(graph), torch.unique(seed_nodes)
        behind, vectors, last = self._background(graph, edges)
        question = self.question_projection(question_embeds.to(self.dtype))
        states = question.expand(len(ball), -1)
        for layer, *kept in zip(self.layers, vectors, behind, strict=True):
            ball, states = self._step_near(layer, edges, kept, ball, states, seed_nodes, question)
        return self._score_ball(graph, question, ball, states, last)

    @property
    def scores_near(self) -> bool:
        """Whether states outside the ball of the seeds are the same for every question: what `score_near` needs."""
        config = self.config
        constant = config.hold_unreached or not config.question_relations
        whole = config.concat_hidden or config.seed_weights or config.aggregation == "pna"  # pna scales by all nodes
        return constant and self.from_text and not whole

    def _step_near(
        self, layer: GFMLayer, edges: RelationalEdges, kept: Sequence[Tensor], ball: Tensor, states: Tensor,
        seeds: Tensor, question: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """One step from the states (b, D) of a ball: (the next ball (b',), its states (b', D)).

        Args:
            kept: relation vectors (2R, 1, D), and (N, D) what every other node holds.
        """
        vectors, behind = kept
        offsets, targets, _ = edges.by_source()
        after = torch.unique(torch.cat([ball, targets[ranges(offsets, ball)]]))
        arriving = ranges(edges.offsets, after)
        sources = edges.sources[arriving]
        local = torch.full((edges.num_nodes,), -1, device=after.device)
        local[after] = torch.arange(len(after), device=after.device)
        others = torch.unique(sources[local[sources] < 0])
        local[others] = len(after) + torch.arange(len(others), device=after.device)
        rows = torch.cat([after, others])
        before = behind[rows]
        before[local[ball]] = states
        start = torch.zeros_like(before)
        start[local[seeds]] = question
        targets = torch.repeat_interleave(torch.arange(len(after), device=after.device), edges.degrees[after])
        kinds, order = edges.relations[arriving], arriving
        near = RelationalEdges(order, local[sources], kinds, targets, len(rows), edges.num_relations)
        aggregate = layer.aggregate(before[:, None], start[:, None], near, vectors)[: len(after)]
        return after, layer.update(before[: len(after), None], aggregate)[:, 0]

    def _background(self, graph: GFMGraph, edges: RelationalEdges) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """What no question changes, kept while the weights stand.

        Returns:
            (states (N, D) before every step where no question starts; relation vectors (2R, 1, D) of every step; what
            the read-out makes of the last states (N, 2D)).
        """
        weights = tuple((one.data_ptr(), one._version) for one in self.parameters())
        kept = graph.derived.get("background")
        if kept is None or kept[0] != weights:
            relations = self.relation_projection(graph.relation_embeds.to(self.dtype))[:, None]
            vectors = [layer.relation_vectors(relations, None) for layer in self.layers]
            states = relations.new_zeros(graph.num_nodes, 1, relations.shape[-1])
            start, found = states, []
            for layer, shared in zip(self.layers, vectors, strict=True):
                found.append(states[:, 0])
                states = layer(states, start, edges, shared)
            first = self.readout[0].weight[:, : states.shape[-1]]
            kept = graph.derived["background"] = weights, (found, vectors, F.linear(states[:, 0], first))
        return kept[1]

    def _score_ball(
        self, graph: GFMGraph, question: Tensor, ball: Tensor, states: Tensor, behind: Tensor
    ) -> Tensor:
        """(1, N) scores: of the ball from its states, of all others from what the read-out made of them before."""
        first, activation, last = self.readout
        asked = F.linear(question, first.weight[:, states.shape[-1] :], first.bias)
        scores = last(activation(behind + asked)).squeeze(-1)
        scores[ball] = self.score(states, question)
        return scores[None]


def grown(states: Tensor, count: int) -> Tensor:
    """States (n, B, D) with rows of zeros behind them, `count` in all."""
    return states if len(states) == count else F.pad(states, (0, 0, 0, 0, 0, count - len(states)))


def ranges(offsets: Tensor, rows: Tensor) -> Tensor:
    """The numbers offsets[r] .. offsets[r + 1] - 1 of every row r, one after the other."""
    lengths = offsets[rows + 1] - offsets[rows]
    ends = lengths.cumsum(0)
    shifts = torch.repeat_interleave(offsets[rows] - ends + lengths, lengths)
    return torch.arange(len(shifts), device=rows.device) + shifts


def top_places(scores: Tensor, questions: Tensor, count: int, top: int) -> Iterator[Tensor]:
    """For each of `count` questions the places of its `top` best scores (P,)."""
    for question in range(count):
        places = (questions == question).nonzero()[:, 0]
        yield places[scores[places].topk(min(top, len(places))).indices]


# -------------------------------------------------------------------------------------------------------------- losses
def sum_of(values: Tensor, questions: Tensor, count: int) -> Tensor:
    """Sums (B,) of values (P,) by question."""
    return values.new_zeros(count).index_add(0, questions, values)


def mean_over_asked(losses: Tensor, labels: Tensor, questions: Tensor, count: int) -> Tensor:
    """The mean of losses (B,) over the questions that have a positive."""
    asked = sum_of((labels == POSITIVE).float(), questions, count) > 0
    return losses[asked].sum() / asked.sum().clamp(min=1)


def bce_loss(logits: Tensor, questions: Tensor, labels: Tensor, count: int, temperature: float) -> Tensor:
    """Binary cross-entropy; the positives of a question weigh as much as its negatives (self-adversarial, 1902.10197).

    Negatives weigh softmax(logit / temperature) without gradient, or equally with temperature 0.

    Args:
        logits, questions, labels: (P,), pair by pair. count: B.
    """
    positive, negative = (labels == POSITIVE).float(), (labels == NEGATIVE).float()
    weights = positive / sum_of(positive, questions, count).clamp(min=1)[questions]
    shares = negative
    if temperature > 0:
        with torch.no_grad():
            scaled = torch.where(negative > 0, logits / temperature, -torch.inf)
            shares = (scaled - peak(scaled, questions, count)[questions]).exp()
    weights = weights + shares / sum_of(shares, questions, count).clamp(min=1e-20)[questions]
    losses = weights * F.binary_cross_entropy_with_logits(logits, positive, reduction="none")
    total = sum_of(losses, questions, count) / sum_of(weights, questions, count).clamp(min=1e-20)
    return mean_over_asked(total, labels, questions, count)


def peak(values: Tensor, questions: Tensor, count: int) -> Tensor:
    """The largest finite value of each question (B,), or 0."""
    highest = values.new_full((count,), -torch.inf).scatter_reduce(0, questions, values, "amax")
    return torch.where(highest.isfinite(), highest, 0.0)


def list_ce_loss(logits: Tensor, questions: Tensor, labels: Tensor, count: int) -> Tensor:
    """-log of each positive's share of all sigmoid scores, as GFM-RAG's program computes it; arguments as above."""
    scores = torch.where(labels == LEFT_OUT, 0.0, logits.sigmoid())
    shares = scores / (sum_of(scores, questions, count) + 1e-5)[questions]
    positive = (labels == POSITIVE).float()
    losses = sum_of(-(shares + 1e-5).log() * positive, questions, count)
    return mean_over_asked(losses / sum_of(positive, questions, count).clamp(min=1), labels, questions, count)


def softmax_loss(logits: Tensor, questions: Tensor, labels: Tensor, count: int) -> Tensor:
    """Cross-entropy of each positive against the negatives of its question; arguments as above."""
    negative, positive = labels == NEGATIVE, (labels == POSITIVE).float()
    highest = peak(logits.detach(), questions, count)[questions]
    shifted = (logits - highest).clamp(min=-80)
    against = sum_of(torch.where(negative, shifted.exp(), 0.0), questions, count)[questions]
    losses = sum_of(((shifted.exp() + against).log() - shifted) * positive, questions, count)
    return mean_over_asked(losses / sum_of(positive, questions, count).clamp(min=1), labels, questions, count)


# ------------------------------------------------------------------------------------------------- ranks and documents
def filtered_ranks(logits: Tensor, questions: Tensor, labels: Tensor, places: Tensor) -> Tensor:
    """The rank of every target among the negatives of its question: other right answers neither help nor hurt.

    Args:
        logits, questions, labels: (P,). places: (T,) the targets among them.

    Returns:
        (T, 2) float32: pessimistic (1 + negatives that score at least as high), optimistic (1 + those that score
        higher). A target that is not finite counts as worst.
    """
    ranks = torch.zeros(len(places), 2, device=logits.device)
    asked = questions[places]
    for question in asked.unique():
        rivals = logits[(questions == question) & (labels == NEGATIVE)].sort().values
        mine = asked == question
        scores = torch.nan_to_num(logits[places[mine]], nan=-torch.inf)
        for column, side in enumerate(("left", "right")):
            ranks[mine, column] = 1.0 + len(rivals) - torch.searchsorted(rivals, scores, side=side).float()
    return ranks


def sum_by_document(values: Tensor, graph: GFMGraph) -> Tensor:
    """(B, documents): the sum of values (B, N) over the nodes that a document names."""
    documents, nodes = graph.at(values.device).document_nodes.unbind(1)
    return values.new_zeros(len(values), graph.num_documents).index_add(1, documents, values[:, nodes])


def rank_documents(logits: Tensor, graph: GFMGraph, ranker: str = "idf_topk", top: int = 20) -> tuple[Tensor, Tensor]:
    """Documents in the order of what their entities score (arXiv 2502.01113, section 3.3).

    `simple`: the sum of the scores; `idf`: of scores / df; `topk`: how many of the `top` best entities are named;
    `idf_topk`: the sum of 1 / df over those. Documents that tie stand in the order of the summed probabilities of
    their `top` entities, then of all.

    Args:
        logits: (B, N).

    Returns:
        (rows of documents (B, documents), best first; their scores in that order).

    Raises:
        ValueError: a graph without documents, or an unknown ranker.
    """
    if not graph.num_documents:
        raise ValueError(f"{graph.name} has no documents to rank. Import a graph with documents, or rank entities.")
    if ranker not in RANKERS:
        raise ValueError(f"The ranker {ranker!r} is not known. Choose one of {', '.join(RANKERS)}.")
    logits = logits.float()
    weight = 1 / graph.at(logits.device).document_counts().clamp(min=1)
    best = torch.zeros_like(logits).scatter(1, logits.topk(min(top, logits.shape[1]), 1).indices, 1.0)
    value = {"simple": logits, "idf": logits * weight, "topk": best, "idf_topk": best * weight}[ranker]
    probability = logits.sigmoid()
    keys = [sum_by_document(one, graph) for one in (probability, probability * best, value)]
    order = torch.arange(graph.num_documents, device=logits.device).expand(len(logits), -1)
    for key in keys:  # the last key counts most: stable sorts, least important first
        order = order.gather(1, key.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return order, keys[-1].gather(1, order)


GFMConfig.register_for_auto_class()
GFMForRetrieval.register_for_auto_class("AutoModel")
