"""The page: what it shows, that texts of the graph stay texts, and in headless Chromium the whole way."""

import importlib.util
import socket
import sys
import time
from xml.etree import ElementTree

import numpy as np
import pytest

from serving.evidence import Edge, Evidence, Node, Passage
from tests.tiny_world import write_dataset, write_model

QUESTION = "what is far from thing4?"
EVIL = "<script>alert(1)</script>"
SVG = "{http://www.w3.org/2000/svg}"


def evidence(names: list[str], scores: list[float], relation: str = "next_to") -> Evidence:
    """Node i leads to node i + 1; the first is named in the question."""
    both = enumerate(zip(names, scores, strict=True))
    nodes = tuple(Node(i, name, "thing", score, i == 0) for i, (name, score) in both)
    edges = tuple(Edge(i, relation, i + 1, score) for i, score in enumerate(scores[1:]))
    documents = (Passage("d", names[0], f"{names[0]} in a text", 0.5),)
    return Evidence(None, nodes, edges, documents, True, "pagerank")


def test_nodes_are_coloured_by_score_and_say_it_under_the_pointer():
    from serving.drawing import colours, picture

    root = ElementTree.fromstring(picture(evidence(["Ann", "Bob", "Cleo"], [0.5, 0.125, 0.0])))
    dots = [one for one in root.iter(f"{SVG}circle") if one.get("class") == "node"]
    assert [dot.find(f"{SVG}title").text for dot in dots] == ["Ann, thing: 0.5", "Bob, thing: 0.125", "Cleo, thing: 0"]
    shades = [dot.get("fill") for dot in dots]
    assert shades[0] == "rgb(8,81,156)" and shades[2] == "rgb(222,235,247)" and len(set(shades)) == 3
    assert len({dot.get("stroke") for dot in dots[1:]}) == 1 != len({dot.get("stroke") for dot in dots})
    assert len(set(colours([2.0, 2.0]))) == 1 and colours([]) == []


def test_large_and_empty_subgraphs_are_drawn():
    from serving.drawing import MAX_NODES, picture

    names = [f"n{i}" for i in range(100)]
    root = ElementTree.fromstring(picture(evidence(names, np.linspace(1, 0, 100).tolist())))
    assert sum(one.get("class") == "node" for one in root.iter(f"{SVG}circle")) == MAX_NODES
    assert "the best 40 of 100 nodes" in "".join(root.itertext())
    nothing = ElementTree.fromstring(picture(Evidence(None, (), (), (), False, "pagerank")))
    assert not list(nothing.iter(f"{SVG}circle"))


def test_texts_of_the_graph_are_escaped_everywhere():
    from serving.web import html

    for text in html(evidence([EVIL, '"><img src=x onerror=alert(2)>'], [1.0, 0.0], EVIL)):
        assert "<script" not in text and "<img" not in text
        assert "&lt;script&gt;" in text
    ElementTree.fromstring(html(evidence([EVIL, "a & b"], [1.0, 0.0]))[0])


def test_without_gradio_it_is_one_sentence(capsys, monkeypatch):
    from serving.__main__ import main

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["web", "--model", "m", "--data", "d"]) == 2
    assert capsys.readouterr().err.startswith("web: the page needs Gradio: pip install gradio")


def test_what_the_page_shows_grows_and_ends_with_the_answer(tmp_path):
    from serving.pipeline import GraphQAPipeline
    from serving.web import answered

    data = write_dataset(tmp_path / "data")
    pipeline = GraphQAPipeline.from_pretrained(write_model(tmp_path, {}), data, "random_walk", {"steps": 1})
    shown = list(answered(pipeline, QUESTION, False))
    assert shown[0][0] == "" and "<svg" in shown[0][1] and "<td>thing9</td>" in shown[0][2]
    assert shown[-1][0] == pipeline.ask(QUESTION).answer and len({one[1:] for one in shown}) == 1
    assert list(answered(pipeline, QUESTION, True))[-1] == (pipeline.ask(QUESTION, True).answer, "", "", "")
    for without_graph in (False, True):
        assert [one[0] for one in answered(pipeline, " ", without_graph)][0].startswith("the question is empty")


# ------------------------------------------------------------------------------------------------------------ Chromium
@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of a tiny world in which one node is named like a script, another like a template."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the page needs Gradio: pip install gradio")
    from data_processor.graph_store import embed_graph, write_graph
    from data_processor.schema import Document
    from data_processor.text_encoder import load_encoder
    from serving.pipeline import GraphQAPipeline
    from serving.web import serve

    folder = tmp_path_factory.mktemp("page")
    names = ["thing4", EVIL, "{{7*7}} ${alert(3)}", "<img src=x onerror=alert(4)>"]
    documents = [Document("d0", EVIL, f"thing4 met {EVIL} and {{{{7*7}}}}.")]
    edges = np.array([[0, 0, 1], [0, 1, 2], [1, 0, 3], [2, 1, 3]])
    relations = [{"name": "next_to"}, {"name": "far_from"}]
    write_graph(folder / "data" / "graph", [{"name": name} for name in names], relations, edges, documents,
                np.array([[0, 0], [0, 1]]))  # fmt: skip
    embed_graph(folder / "data" / "graph", load_encoder("hashing:8"))
    model = write_model(folder, {})
    pipeline = GraphQAPipeline.from_pretrained(model, folder / "data", "pagerank", {"max_nodes": 4})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return serve(pipeline, port).local_url


def wait_for(found, seconds: float = 120):
    """What `found` gives as soon as it is true."""
    last = time.monotonic() + seconds
    while time.monotonic() < last:
        value = found()
        if value:
            return value
        time.sleep(0.3)
    raise AssertionError("the page did not show it in time")


@pytest.mark.web
def test_in_chromium_a_question_gets_an_answer_and_a_drawn_graph(address, browser, tmp_path):
    import json

    from selenium.webdriver.common.by import By

    def all_of(selector: str) -> list:
        return browser.find_elements(By.CSS_SELECTOR, selector)

    browser.get(address)
    box = wait_for(lambda: all_of("#question textarea, #question input"))[0]
    box.send_keys(QUESTION)
    all_of("#ask")[0].click()
    answer = wait_for(lambda: all_of("#answer textarea")[0].get_attribute("value"))
    assert answer
    wait_for(lambda: len(all_of("#picture circle.node")) == 4)
    time.sleep(2)
    browser.save_screenshot(str(tmp_path / "page.png"))
    print(tmp_path / "page.png", file=sys.stderr)

    titles = [one.get_attribute("textContent") for one in all_of("#picture circle.node title")]
    assert any(title.startswith(EVIL) for title in titles)
    assert any(title.startswith("{{7*7}} ${alert(3)}") for title in titles), "a name is no template either"
    assert EVIL in all_of("#facts")[0].text and EVIL in all_of("#documents")[0].text
    assert not all_of("#picture script, #facts script, #documents script, #facts img, #documents img")

    without = all_of("#without_graph input")[0]
    browser.execute_script("arguments[0].click()", without)
    all_of("#ask")[0].click()
    wait_for(lambda: not all_of("#picture circle.node"))
    wait_for(lambda: all_of("#answer textarea")[0].get_attribute("value"))

    console = [row for row in browser.get_log("browser") if row["level"] == "SEVERE"]
    assert console == []
    sent = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    urls = [row["params"]["request"]["url"] for row in sent if row["method"] == "Network.requestWillBeSent"]
    assert urls and [url for url in urls if not url.startswith((address.rstrip("/"), "data:", "blob:"))] == []
