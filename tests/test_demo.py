"""The demonstration: its world and questions, its dataset folder, and the base language model that ships with it."""

import random
from collections import Counter
from pathlib import Path

import pytest

from data_processor.demo import make_splits, split_sizes, write_dataset
from data_processor.demo_texts import KINDS, random_text
from data_processor.demo_world import COUNTS, TYPES, YES_NO, name_pool
from data_processor.graph_store import KnowledgeGraph
from data_processor.schema import read_jsonl, read_qa
from data_processor.subgraph_store import SubgraphStore

BASE = Path(__file__).resolve().parent.parent / "data_processor" / "demo_base"
QUESTIONS = 840


@pytest.fixture(scope="module")
def splits():
    return make_splits(seed=0, questions=QUESTIONS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("demo")
    write_dataset(path, seed=0, questions=QUESTIONS)
    return path


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_ones(folder, tmp_path):
    write_dataset(tmp_path / "again", 0, QUESTIONS)
    write_dataset(tmp_path / "other", 1, QUESTIONS)
    files = ("qa/train.jsonl", "qa/test.jsonl", "documents.jsonl", "graph/edges.npy", "subgraphs/test/edges.arrow")
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert (folder / "qa/test.jsonl").read_bytes() != (tmp_path / "other" / "qa/test.jsonl").read_bytes()


def test_no_name_stands_in_two_splits_nor_among_the_names_of_the_base_model(splits):
    names = {split: set(made.world.names) for split, made in splits.items()}
    assert all(len(names[split]) == len(made.world.names) for split, made in splits.items())
    assert not names["train"] & names["test"] and not names["train"] & names["validation"]
    assert not names["test"] & names["validation"]
    assert not set().union(*names.values()) & set(name_pool(reserved=False))


@pytest.mark.parametrize("kind, labels", [("graph_type", TYPES), ("graph_count", COUNTS), ("graph_path", YES_NO)])
def test_closed_answers_are_balanced_in_every_split(splits, kind, labels):
    for made in splits.values():
        counts = Counter(question.answer for question in made.questions if question.type == kind)
        assert set(counts) == set(labels)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_every_split_has_its_size_and_every_look_up_its_answer_in_its_facts(splits):
    for name, made in splits.items():
        assert len(made.questions) == split_sizes(QUESTIONS)[name]
        for question in made.questions:
            facts = [made.world.facts[row] for row in question.facts]
            if question.type == "look_up":
                assert 4 <= len(facts) <= 6
                tails = [tail for head, relation, tail in facts if head == question.seeds[0]]
                assert question.answer_node in tails
                assert made.world.names[question.answer_node] == question.answer


def test_a_look_up_is_decided_by_head_and_relation_together(splits):
    """No two facts of a prompt share both, and both recur: neither alone points to the answer everywhere."""
    same_head = same_relation = 0
    for question in splits["train"].questions:
        facts = [splits["train"].world.facts[row] for row in question.facts]
        if question.type == "look_up":
            assert len({(head, relation) for head, relation, _ in facts}) == len(facts)
            same_head += len({head for head, _, _ in facts}) < len(facts)
            same_relation += len({relation for _, relation, _ in facts}) < len(facts)
    look_ups = sum(question.type == "look_up" for question in splits["train"].questions)
    assert same_head > 0.7 * look_ups and same_relation > 0.5 * look_ups


def test_a_count_is_the_number_of_works_and_a_link_is_one_shared_node(splits):
    for made in splits.values():
        for question in made.questions:
            facts = [made.world.facts[row] for row in question.facts]
            if question.type == "graph_count":
                works = sum(relation == "written by" for _, relation, _ in facts)
                assert question.answer == COUNTS[works - 1] and len(facts) == 5
            if question.type == "graph_path":
                first, second = ({t for h, _, t in facts if h == seed} for seed in question.seeds)
                assert len(first) == len(second) == 3
                assert len(first & second) == (question.answer == "yes")


@pytest.mark.parametrize("questions", [440, 5001])
def test_a_number_of_questions_that_cannot_be_built_is_refused(questions):
    with pytest.raises(ValueError, match="from 441 to 5000"):
        make_splits(0, questions)


def test_the_folder_opens_and_its_subgraphs_hold_the_answers(folder, splits):
    graph = KnowledgeGraph.open(folder / "graph", verify=True)
    assert graph.num_nodes == sum(len(made.world.names) for made in splits.values())
    assert sum(1 for _ in read_jsonl(folder / "documents.jsonl")) == graph.num_nodes
    for name in splits:
        pairs, store = read_qa(folder / "qa" / f"{name}.jsonl"), SubgraphStore.open(folder / "subgraphs" / name)
        assert len(pairs) == split_sizes(QUESTIONS)[name]
        for pair, question in zip(pairs, splits[name].questions, strict=True):
            subgraph = store.get(pair.id)
            assert len(subgraph.nodes) <= 12 and len(subgraph.edges) == len(question.facts)
            assert pair.text == (question.type == "look_up") and pair.answers == (question.answer,)
            assert set(pair.answer_nodes) <= set(subgraph.nodes.tolist())
            assert graph.node_name(pair.answer_nodes) == list(pair.answers[: len(pair.answer_nodes)])


def test_a_prompt_states_the_fact_that_is_asked_for(folder):
    graph = KnowledgeGraph.open(folder / "graph")
    store = SubgraphStore.open(folder / "subgraphs" / "test")
    pair = next(pair for pair in read_qa(folder / "qa" / "test.jsonl") if pair.type == "look_up")
    facts = graph.to_text(store.get(pair.id)).splitlines()
    head = graph.node_name(pair.seed_nodes)[0]
    assert any(line.startswith(f"{head} | ") and line.endswith(f" | {pair.answers[0]}") for line in facts)


def test_texts_are_tokenised_alike_in_pieces_and_as_a_whole():
    from data_processor.demo_model import build_tokenizer

    tokenizer, rng, names = build_tokenizer(), random.Random(0), name_pool(reserved=False)
    for kind in KINDS:
        for _ in range(20):
            pieces = [piece for piece, _ in random_text(rng, names, 8, {kind: 1.0})[1]]
            apart = [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False)]
            assert apart == tokenizer.encode("".join(pieces), add_special_tokens=False)
            assert tokenizer.decode(apart) == "".join(pieces)


@pytest.mark.parametrize("text", ["Zürich | liegt in | Schweiz", "日本\t{}", "a\n\n\nb", "<|graph|>"])
def test_any_text_survives_the_tokenizer(text):
    from data_processor.demo_model import build_tokenizer

    tokenizer = build_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_the_shipped_base_is_small_and_answers_look_ups_about_names_it_never_read():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from data_processor.demo_gate import demonstration_prompts, exact_match

    assert (BASE / "model.safetensors").stat().st_size <= 6_000_000
    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)
    prompts, answers = demonstration_prompts()
    assert exact_match(model, tokenizer, prompts[:20], answers[:20]) >= 0.8


def test_a_killed_training_goes_on_where_it_stopped_and_ends_with_the_same_weights(tmp_path):
    import torch

    from data_processor.demo_base import Recipe, Run, Stage

    def recipe(work_dir: Path, steps: int) -> Recipe:
        model = {"hidden_size": 32, "intermediate_size": 32, "layers": 2, "heads": 2, "rope_theta": 100000.0}
        stage = Stage(facts=3, until=1.0, mix={"dialogue": 0.5, "bare": 0.5})
        return Recipe(
            seed=0, threads=1, model=model, learning_rate=1e-3, warmup_steps=2, steps=steps, batch_tokens=256,
            texts_per_round=8, weight_decay=0.1, stages=(stage,), gate=0.9, work_dir=work_dir,
            output_dir=tmp_path / "unused", result=tmp_path / "unused.json",
        )  # fmt: skip

    whole = Run(recipe(tmp_path / "whole", 12))
    whole.train()
    killed = Run(recipe(tmp_path / "killed", 12))
    for batch in killed.batches():
        killed.train_step(batch)
    killed.progress.round += 1
    killed.save()
    resumed = Run(recipe(tmp_path / "killed", 12))
    resumed.train()
    assert resumed.progress.step == whole.progress.step and resumed.progress.tokens == whole.progress.tokens
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
