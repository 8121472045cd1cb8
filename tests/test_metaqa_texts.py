"""The MetaQA record's texts and data: what is asked stands first among the facts, and renaming keeps every answer."""

import random

import numpy as np
import pytest

from benchmarks.metaqa_base import realign
from benchmarks.metaqa_data import FACTS, both_directions, first_listed, rename, shuffled_within_types, star
from benchmarks.metaqa_lessons import FREQUENT, Lessons
from benchmarks.metaqa_paths import (
    LISTED,
    Paths,
    PathWriter,
    Shape,
    asked_kinds,
    named_facts,
    ways_to_ask,
)
from benchmarks.metaqa_texts import Shapes, Writer, question_templates, train_tokenizer
from data_processor.graph_store import write_graph
from data_processor.schema import QAPair, Subgraph

FILMS = ("Kill Bill", "Heat", "Alien", "Lost")
PEOPLE = ("Uma Thurman", "Al Pacino", "Ridley Scott", "Nora Berg")
NAMES = (*FILMS, *PEOPLE)


@pytest.fixture
def graph(tmp_path):
    nodes = [{"name": name, "type": "film" if name in FILMS else "person"} for name in NAMES]
    edges = [[0, 0, 4], [0, 0, 5], [0, 1, 6], [1, 0, 5], [1, 1, 7], [2, 1, 6], [3, 0, 7]]
    relations = [{"name": "starred_actors"}, {"name": "directed_by"}]
    return both_directions(write_graph(tmp_path / "graph", nodes, relations, np.array(edges)))


@pytest.fixture
def pair():
    return QAPair("q1", "who starred in Kill Bill", ("Uma Thurman", "Al Pacino"), (4, 5), (0,), type="1-hop")


@pytest.fixture
def writer(graph, pair):
    shapes = Shapes.of(graph, 8, 3, random.Random(0))
    templates = {**question_templates(graph, [pair]), "directed_by": ["who directed {}"], "acted_in": ["{} is in"]}
    pool = [f"Name {i}" for i in range(40)]
    return Writer(shapes, pool, templates, 0.0)


def test_every_fact_is_there_in_both_directions(graph):
    rows = {(edge[0], graph.relation_name([edge[1]])[0], edge[2]) for edge in graph.edges.tolist()}
    assert (0, "starred_actors", 4) in rows and (4, "acted_in", 0) in rows
    assert graph.num_edges == 14 and graph.num_relations == 4


def test_a_wording_belongs_to_the_relation_that_leads_to_its_answers(graph, pair):
    assert question_templates(graph, [pair]) == {"starred_actors": ["who starred in {}"]}


def test_a_star_holds_the_facts_of_its_entity_alone_and_the_learnt_answer_stands_first(graph, pair):
    subgraph = star(graph, pair)
    edges = graph.edges[subgraph.edges]
    assert set(edges[:, 0].tolist()) == {0} and len(edges) == 3
    first = next(node for node in edges[:, 2].tolist() if node in pair.answer_nodes)
    assert first_listed(graph, pair, subgraph).answers == (NAMES[first],)


def test_a_star_lists_a_few_facts_of_a_relation(tmp_path):
    count = FACTS + 5
    edges = np.array([[0, 0, i] for i in range(1, count + 1)])
    nodes = [{"name": f"n{i}"} for i in range(count + 1)]
    graph = write_graph(tmp_path / "wide", nodes, [{"name": "tag_of"}], edges)
    assert len(star(graph, QAPair("q", "n0", ("n1",), (1,), (0,))).edges) == FACTS


def test_the_answer_of_a_text_is_the_first_fact_of_the_relation_that_is_asked(writer):
    for seed in range(50):
        text = "".join(piece for piece, _ in writer.write(random.Random(seed)))
        facts, *questions = text.removeprefix("<|user|>").split("<|end|><|assistant|>")
        listed, first_question = facts.strip("\n").split("\n\n")
        rows = [line.split(" | ") for line in listed.split("\n")]
        assert len({row[0] for row in rows}) == 1 and len({row[2] for row in rows}) == len(rows)
        answer = questions[0].split("<|end|>")[0]
        relation = next(row[1] for row in rows if row[2] == answer)
        assert [row[2] for row in rows if row[1] == relation][0] == answer
        assert first_question in {wording.replace("{}", rows[0][0]) for wording in writer.templates[relation]}


def test_pieces_are_tokenised_as_the_whole_text_is(writer, graph):
    relations = graph.relation_name(np.arange(graph.num_relations))
    tokenizer = train_tokenizer(writer.names, ["who starred in {}"], relations)
    assert len(tokenizer.encode(" | acted_in | ")) == 1
    for seed in range(20):
        pieces = [piece for piece, _ in writer.write(random.Random(seed))]
        assert tokenizer.encode("".join(pieces)) == [token for piece in pieces for token in tokenizer.encode(piece)]
        assert tokenizer.decode(tokenizer.encode("".join(pieces))) == "".join(pieces)


def test_shuffled_names_stay_within_their_type_and_question_and_answers_follow(graph, pair):
    given = shuffled_within_types([{"name": name, "type": "film" if name in FILMS else "person"} for name in NAMES], 0)
    assert sorted(given) == sorted(NAMES) and all(one != other for one, other in zip(given, NAMES, strict=True))
    assert all((one in FILMS) == (other in FILMS) for one, other in zip(given, NAMES, strict=True))
    renamed = rename(pair, graph, given)
    assert renamed.question == f"who starred in {given[0]}"
    assert renamed.answers == (given[4], given[5])


KINDS = {
    "which films share the director of {}": ("directed_by", "directed"),
    "who stars with {}": ("acted_in", "starred_actors"),
}


@pytest.fixture
def two_hops():
    return [
        QAPair("q2", "which films share the director of Kill Bill", ("Alien",), (2,), (0,), type="2-hop"),
        QAPair("q3", "who stars with Al Pacino", ("Uma Thurman",), (4,), (5,), type="2-hop"),
    ]


def test_a_wording_asks_for_the_kind_of_path_that_ends_at_its_answers(graph, two_hops):
    assert asked_kinds(graph, two_hops, 2) == KINDS


def test_paths_never_lead_back_and_hold_the_facts_of_asked_kinds_alone(graph, two_hops):
    paths = Paths(KINDS)
    for pair in two_hops:
        subgraph = paths.find(graph, pair)
        facts = named_facts(graph, subgraph)
        seed = pair.seed_nodes[0]
        assert all(tail != seed for _, _, tail in facts) and subgraph.nodes[0] == seed
        assert {name for head, name, _ in facts if head == seed} <= {first for first, _ in KINDS.values()}
        assert set(pair.answer_nodes) <= set(subgraph.nodes.tolist())


def test_of_many_neighbours_the_few_that_lead_on_in_most_ways_are_kept(tmp_path):
    branches, tails = LISTED[2]
    films = range(1, branches + 3)
    nodes = [{"name": "P"}, *({"name": f"F{i}"} for i in films), *({"name": f"T{i}"} for i in range(tails + 2)),
             {"name": "1994"}]  # fmt: skip
    rich, year, first_tail = branches + 2, len(nodes) - 1, branches + 3
    edges = [[0, 0, film] for film in films] + [[film, 1, first_tail] for film in films]
    edges += [[rich, 1, first_tail + i] for i in range(1, tails + 2)] + [[rich, 2, year]]
    relations = [{"name": "made"}, {"name": "tag"}, {"name": "year"}]
    graph = write_graph(tmp_path / "fan", nodes, relations, np.array(edges))
    paths = Paths({"tags of {}": ("made", "tag"), "years of {}": ("made", "year")})
    facts = named_facts(graph, paths.find(graph, QAPair("q", "years of P", ("1994",), (year,), (0,))))
    assert facts[0] == (0, "made", rich) and sum(name == "made" for _, name, _ in facts) == branches
    assert sum((head, name) == (rich, "tag") for head, name, _ in facts) == tails
    assert (rich, "year", year) in facts


def test_the_learnt_answer_is_the_path_and_ends_at_an_answer(graph, two_hops):
    paths = Paths(KINDS)
    learnt = [paths.learnt(graph, pair, paths.find(graph, pair)) for pair in two_hops]
    assert learnt[0].answers == (" | directed_by | Ridley Scott | directed | Alien",)
    assert learnt[0].answer_nodes == (2,)
    assert learnt[1].answers == (" | acted_in | Kill Bill | starred_actors | Uma Thurman",)
    unknown = QAPair("q4", "an unknown wording about Heat", ("Alien",), (2,), (1,))
    assert paths.learnt(graph, unknown, paths.find(graph, unknown)) is None


def test_every_answer_of_a_text_of_paths_stands_in_its_facts(graph, two_hops):
    paths = Paths(KINDS)
    shapes = [Shape.of(graph, paths.find(graph, pair)) for pair in two_hops]
    pool = [f"Name {i}" for i in range(40)]
    writer = PathWriter(shapes, pool, {"film": ["Film A", "Film B", "Film C"]}, ways_to_ask(KINDS), 0.0)
    for seed in range(40):
        text = "".join(piece for piece, _ in writer.write(random.Random(seed)))
        asked, answer = text.removeprefix("<|user|>").removesuffix("<|end|>").split("<|end|><|assistant|>")[:2]
        facts, question = asked.strip("\n").split("\n\n")
        topic = next(line.split(" | ")[0] for line in facts.split("\n"))
        _, first, middle, second, end = answer.split("<|end|>")[0].split(" | ")
        assert f"{topic} | {first} | {middle}" in facts and f"{middle} | {second} | {end}" in facts
        assert KINDS[question.replace(topic, "{}")] == (first, second)


def test_realigned_rows_follow_the_map_of_the_frequent_ones_and_nothing_else_moves():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=60, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(config)
    embeddings, rows = model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()
    embeddings.normal_()
    true = embeddings @ torch.randn(8, 8) + 3.0
    rows.copy_(true)
    rows[40:55] = 0.0
    realign(model, torch.arange(40), torch.arange(40, 55))
    assert torch.allclose(rows[40:55], true[40:55], atol=0.3) and torch.equal(rows[:40], true[:40])
    assert torch.equal(rows[55:], true[55:])


def test_marks_and_relations_are_neither_frequent_nor_rare(writer):
    tokenizer = train_tokenizer(writer.names, ["who starred in {}"], ["acted_in"])
    many = Writer(writer.shapes, ["Heat"] * FREQUENT + ["Name 7"], writer.templates, 0.0)
    frequent, rare = Lessons((many, many), writer, tokenizer).frequent_and_rare()
    marks = tokenizer.convert_tokens_to_ids([" | acted_in | ", "<|end|>"])
    assert set(frequent.tolist()) == set(tokenizer.encode("Heat"))
    assert not set(marks) & {*frequent.tolist(), *rare.tolist()}
    assert len(frequent) + len(rare) == len(tokenizer) - 6


def test_a_path_of_three_steps_is_found_listed_and_learnt(graph):
    kind = ("starred_actors", "acted_in", "directed_by")
    pair = QAPair("q5", "who directed films with actors of Kill Bill", ("Nora Berg",), (7,), (0,), type="3-hop")
    assert asked_kinds(graph, [pair], 3) == {"who directed films with actors of {}": kind}
    paths = Paths({"who directed films with actors of {}": kind})
    subgraph = paths.find(graph, pair)
    assert paths.learnt(graph, pair, subgraph).answers == (
        " | starred_actors | Al Pacino | acted_in | Heat | directed_by | Nora Berg",
    )
    assert set(subgraph.nodes.tolist()) == {0, 5, 1, 7}  # Uma Thurman leads on to no other film


def test_among_found_nodes_only_their_facts_are_listed(graph, two_hops):
    kind = ("starred_actors", "acted_in")
    pair = QAPair("q6", "films with actors of Heat", ("Kill Bill",), (0,), (1,), type="2-hop")
    paths = Paths({"films with actors of {}": kind, "films by the director of {}": ("directed_by", "directed")})
    scores = np.array([0.1, 0.2, 0.9, 0.3, 0.8], dtype=np.float32)
    found = Subgraph(np.array([0, 5, 3, 7, 1]), scores, np.array([], np.int64), np.array([], np.float32))
    facts = named_facts(graph, paths.among(graph, pair, found))
    assert {fact for fact in facts if fact[0] == 1} == {(1, "starred_actors", 5)}  # 7 did not direct another of these
    assert (5, "acted_in", 0) in facts and all(tail in found.nodes for _, _, tail in facts)


def test_among_found_nodes_the_path_with_the_best_end_comes_first(tmp_path):
    nodes = [{"name": name} for name in ("P", "F1", "F2", "F3", "T1", "T2", "T3")]
    edges = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 3], [1, 1, 4], [2, 1, 5], [3, 1, 6]])
    graph = write_graph(tmp_path / "fan", nodes, [{"name": "made"}, {"name": "tag"}], edges)
    pair = QAPair("q7", "tags of P", ("T2",), (5,), (0,))
    scores = np.array([0.5, 0.5, 0.5, 0.5, 0.1, 0.9, 0.4], dtype=np.float32)
    found = Subgraph(np.arange(7), scores, np.array([], np.int64), np.array([], np.float32))
    facts = named_facts(graph, Paths({"tags of {}": ("made", "tag")}).among(graph, pair, found))
    assert [tail for _, relation, tail in facts if relation == "tag"] == [5, 6, 4]
