"""The MetaQA record's texts and data: what is asked stands first among the facts, and renaming keeps every answer."""

import random

import numpy as np
import pytest

from benchmarks.metaqa_data import FACTS, both_directions, first_listed, rename, shuffled_within_types, star
from benchmarks.metaqa_texts import Shapes, Writer, question_templates, train_tokenizer
from data_processor.graph_store import write_graph
from data_processor.schema import QAPair

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
