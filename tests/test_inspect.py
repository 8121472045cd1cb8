"""The picture of a subgraph is well-formed and complete, and an inspection says where each answer was lost."""

import xml.etree.ElementTree as xml

import numpy as np
import pytest

from data_processor.__main__ import main
from data_processor.graph_store import write_graph
from data_processor.picture import MAX_NODES, Box, draw, layout, name_boxes, node_parts, overlap
from data_processor.schema import QAPair, to_json, write_jsonl

SVG = "{http://www.w3.org/2000/svg}"


def test_layout_fills_the_square_and_is_the_same_each_time():
    edges = np.array([[0, 1, 2], [1, 2, 3]])
    places = layout(4, edges)
    assert np.array_equal(places, layout(4, edges))
    assert places.min(axis=0) == pytest.approx(0) and places.max(axis=0) == pytest.approx(1)
    neighbours, ends = np.linalg.norm(places[0] - places[1]), np.linalg.norm(places[0] - places[3])
    assert neighbours < ends, "what is joined lies closer than the ends of the path"
    assert layout(0, np.zeros((2, 0), int)).shape == (0, 2) and np.isfinite(layout(1, np.zeros((2, 0), int))).all()


def test_picture_holds_every_node_edge_and_hard_name():
    names, kinds = ['a <b> & "c"', "tab\tand\x00null", "long" * 30], ["seed", "answer", "other"]
    root = xml.fromstring(draw(names, np.array([[0, 1, 2], [1, 2, 2]]), ["r", "<s>", "loop"], kinds, "who & what?"))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert texts[0] == "who & what?" and "<s>" in texts and 'a <b> & "c"' in texts
    assert {"seed", "answer"} <= set(texts) and "seed and answer" not in texts, "what the colours mean"
    assert len(list(root.iter(f"{SVG}line"))) == 2, "a self-loop is a ring"
    assert len(list(root.iter(f"{SVG}title"))) == 6


def test_relations_of_one_pair_share_a_line_and_its_label():
    edges = np.array([[0, 0, 0, 1], [1, 1, 1, 0]])
    root = xml.fromstring(draw(["a", "b"], edges, ["r", "s", "r", "t"], ["other"] * 2, "q"))
    assert len(list(root.iter(f"{SVG}line"))) == 2
    assert {"r, s", "t"} <= {element.text for element in root.iter(f"{SVG}text")}


def test_one_label_stands_for_many_alike_at_a_node():
    edges = np.array([[0] * 9, range(1, 10)])
    root = xml.fromstring(draw([str(i) for i in range(10)], edges, ["r"] * 8 + ["s"], ["other"] * 10, "q"))
    labels = [element.text for element in root.iter(f"{SVG}text") if "aria-hidden" not in element.attrib]
    assert labels.count("8 x r") == 1 and "r" not in labels and "s" in labels
    told = [element.text for line in root.iter(f"{SVG}line") for element in line.iter(f"{SVG}title")]
    assert told.count("r") == 8, "each line still says it under the pointer"


def test_a_name_stands_where_it_covers_least():
    below, above, right, left = name_boxes(100, 100, 40)
    assert overlap(below, above) == 0 < overlap(below, Box(100, 100, 110, 130))
    places = np.array([[100.0, 100.0], [100.0, 112.0]])  # a dot just where the first name would stand
    text = "".join(node_parts(places, ["first", "second"], ["other"] * 2))
    assert float(xml.fromstring(f"<g>{text}</g>").find("text[.='first']").get("y")) < 100, "above its dot"
    assert [box.anchor for box in (below, above, right, left)] == ["middle", "middle", "start", "end"]


def test_names_stay_on_the_sheet():
    names = ["w" * 28 for _ in range(30)]
    root = xml.fromstring(draw(names, np.zeros((2, 0), int), [], ["other"] * 30, "q"))
    width, height = map(float, root.get("viewBox").split()[2:])
    for element in root.iter(f"{SVG}text"):
        if element.text == names[0] and element.get("text-anchor") == "middle":
            assert 100 < float(element.get("x")) < width - 100 and 0 < float(element.get("y")) < height


def test_picture_of_a_large_subgraph_says_what_it_leaves_out():
    count = MAX_NODES + 5
    edges = np.stack([np.arange(count - 1), np.arange(1, count)])
    text = draw([str(i) for i in range(count)], edges, ["r"] * (count - 1), ["other"] * count, "q")
    assert f"(the best {MAX_NODES} of {count} nodes)" in text
    assert text.count("<line") == MAX_NODES - 1


@pytest.fixture
def data(tmp_path):
    #  Ann -likes- Bob -likes- Cy -likes- Di     Ed -likes- Di
    edges = np.array([[0, 0, 1], [1, 0, 2], [2, 0, 3], [4, 0, 3]])
    nodes = [{"name": name} for name in ("Ann", "Bob", "Cy", "Di", "Ed")]
    write_graph(tmp_path / "graph", nodes, [{"name": "likes"}], edges)
    pair = QAPair("17", "whom does Ann like?", ("Bob", "Cy", "Ed", "Zoe"), (1, 2, 4), (0,))
    write_jsonl(tmp_path / "qa" / "test.jsonl", [to_json(pair)])
    main(["retrieve", "--method", "random_walk", "--steps", "2", "--data", str(tmp_path)])
    return tmp_path


def test_inspection_says_where_each_answer_is(data, capsys):
    capsys.readouterr()
    assert main(["inspect", "--data", str(data), "--id", "17", "--max_tokens", "5"]) == 0
    out = capsys.readouterr().out
    assert "3 nodes, 2 edges; 1 of 2 rows of text kept; 1 cut" in out
    assert "answer    Bob: node 2 of 3, in the text" in out or "answer    Bob: node 1 of 3, in the text" in out
    assert "answer    Cy: node 3 of 3, but its rows were cut from the text" in out
    assert "answer    Ed: not in the subgraph" in out
    assert "answer    Zoe: no node of the graph is known for it\n" in out
    assert "Ann | likes | Bob" in out
    assert xml.parse(data / "inspect.svg").getroot().tag == f"{SVG}svg"


def test_inspection_of_an_unknown_question_is_refused(data, capsys):
    assert main(["inspect", "--data", str(data), "--id", "18"]) == 2
    assert "has no question '18' in test" in capsys.readouterr().err
