"""From texts to facts and questions: reading, chunks, duplicates, splits, stages that add up, runs that are killed."""

import json
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.chat_mock import ChatMock, running
from data_processor import chunking, documents, extract, known_facts
from data_processor.__main__ import main
from data_processor.calls import CallLog
from data_processor.chunking import chunks, sentences, words_and_marks
from data_processor.collect import STAGES, Settings
from data_processor.collection import FILES, GRAPH_FILES, collect, estimate, finish
from data_processor.corpus import Corpus
from data_processor.documents import Documents
from data_processor.importers.conversations import iter_conversations
from data_processor.known_facts import KnownFacts
from data_processor.prompts import PLACES, PROMPTS, Prompts, language_of
from data_processor.schema import Rejected, read_jsonl, read_qa
from data_processor.stages import Stages
from data_processor.text_encoder import load_encoder
from data_processor.text_generator import ReplyFunction, TextGenerator
from data_processor.wording import Wording

ROOT = Path(__file__).resolve().parent.parent


# ----------------------------------------------------------------------------------------- replies by plain rules


def rules(request):
    """Rule-based replies: a sentence is a fact, its first word the question; no language model is behind them."""
    values = request.values
    if request.name == "theme":
        return json.dumps({"theme": " ".join(values["text"].split()[:3])[:60]})
    if request.name == "facts":
        found = [sentence.strip() for sentence in sentences([values["text"]]) if len(sentence.split()) > 3]
        return json.dumps({"facts": found or [values["text"]]})
    if request.name == "question":
        fact = values["fact"]
        pair = {"question": f"What is said of {fact.split()[0]} in {words_and_marks(fact)} words?", "answer": fact}
        return json.dumps({"question": "SKIP", "answer": "SKIP"} if sum(map(ord, fact)) % 9 == 0 else pair)
    if request.name == "roles":
        return json.dumps({"roles": [f"role {i} of {values['theme']}" for i in range(int(values["count"]))]})
    pairs = [
        {"question": f"{values['question']} ({values['role']}, {i})", "answer": values["answer"]}
        for i in range(int(values["count"]))
    ]
    return json.dumps({"pairs": pairs})


def run(tmp_path, source, reply=rules, with_graph=False, **changes):
    """A collection by rules; returns (generator, manifest)."""
    chosen, output = Settings(**changes), tmp_path / "out"
    wording = Wording(Prompts(), chosen.language)
    corpus = Corpus(Documents(source), chosen.chunk_size_by_token, words_and_marks, chosen.limit)
    with Rejected(output / "rejected.jsonl") as rejected:
        stages = Stages(rejected, (*STAGES, *extract.STAGES) if with_graph else STAGES)
        corpus.survey(stages)
        with TextGenerator(ReplyFunction(reply, "rules"), CallLog(output / "calls.jsonl")) as generator:
            given = corpus, generator, wording, chosen, load_encoder("hashing:64"), stages, output, with_graph
            report = collect(*given)
        finish(output, stages, chosen, wording, "rules", report, (*FILES, *(GRAPH_FILES if with_graph else ())))
    return generator, json.loads((output / "manifest.json").read_text())


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_stages(output, manifest):
    """In = kept + rejected at every stage; each takes what the one before kept; every rejection is written down."""
    stages = manifest["stages"]
    for name, counts in stages.items():
        assert counts["in"] == counts["kept"] + counts["rejected"], name
    path = output / "rejected.jsonl"
    rejected = [row for _, row in read_jsonl(path)] if path.exists() else []
    assert len(rejected) == sum(counts["rejected"] for counts in stages.values())
    assert stages["themes"]["in"] == stages["chunks"]["kept"]
    assert stages["fact_lists"]["in"] == stages["themes"]["kept"]
    facts = list(read_jsonl(output / "facts.jsonl"))
    assert stages["questions"]["in"] == stages["facts"]["kept"] == len(facts)
    roles = manifest["settings"]["role_amount_per_fact"]
    assert stages["roles"]["in"] == stages["questions"]["kept"] * bool(roles)
    assert stages["rewrites"]["in"] == stages["roles"]["kept"] * roles
    splits = [read_qa(output / "qa" / f"{split}.jsonl") for split in ("train", "validation", "test")]
    assert stages["pairs" if roles else "questions"]["kept"] == sum(map(len, splits))
    return rejected


@pytest.fixture
def texts(tmp_path):
    """Two documents in a folder with a subfolder."""
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    town = "Town{0} lies on the river Rivo{1}. Its mayor is known. Town{0} was founded in {2}."
    (folder / "towns.txt").write_text(" ".join(town.format(i, i % 7, 1200 + i) for i in range(60)))
    chinese = "北京是中华人民共和国的首都，位于华北平原北部。上海是中国最大的城市，位于长江口。"
    (folder / "sub" / "zh.txt").write_text(chinese * 3)
    return folder


# ----------------------------------------------------------------------------------------------- the whole run


def test_every_row_is_kept_or_rejected_and_a_second_run_calls_nothing_and_writes_the_same(tmp_path, texts):
    generator, manifest = run(tmp_path, texts, qa_amount_per_fact=5, role_amount_per_fact=2)
    rejected = check_stages(tmp_path / "out", manifest)
    first = files(tmp_path / "out")
    assert generator.asked > 300 and generator.failed == 0
    assert set(FILES) <= set(first)
    reasons = {re.sub(r"\d+", "N", row["reason"]) for row in rejected}
    assert "facts: it begins with a pronoun and is not understood alone" in reasons
    assert "questions: SKIP: not worth asking, says the model" in reasons
    assert "facts: the same statement is line N of facts.jsonl" in reasons
    again, _ = run(tmp_path, texts, reply=pytest.fail, qa_amount_per_fact=5, role_amount_per_fact=2)
    assert again.asked == 0 and files(tmp_path / "out") == first


def test_every_fact_has_as_many_questions_and_stands_in_one_split(tmp_path, texts):
    _, manifest = run(tmp_path, texts, qa_amount_per_fact=5, role_amount_per_fact=2, test_share=0.3)
    assert set(manifest["facts_by_pairs"]) == {"0", "5"}, "none but the skipped has fewer"
    owners = {}
    for split in ("train", "validation", "test"):
        for pair in read_qa(tmp_path / "out" / "qa" / f"{split}.jsonl"):
            assert owners.setdefault(pair.id.rsplit("-q", 1)[0], split) == split
    shares = {split: list(owners.values()).count(split) / len(owners) for split in set(owners.values())}
    assert 0.15 < shares["test"] < 0.45 and shares["train"] > 0.4
    with Rejected(tmp_path / "r.jsonl") as rejected:
        rows = list(iter_conversations(tmp_path / "out" / "conversations.json", rejected))
    assert len(rows) == manifest["questions"]["train"] and rejected.count == 0
    recall = read_qa(tmp_path / "out" / "qa" / "recall.jsonl")
    asked = {row["messages"][0]["content"] for row in rows}
    same = json.loads((tmp_path / "out" / "conversations_recall.json").read_text())
    assert [row["id"] for row in same] == [pair.id for pair in recall]
    assert recall and not asked & {pair.question for pair in recall}, "these words are never trained on"


def test_splits_by_document_keep_documents_whole(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"Place{i} has a tall tower of stone. Place{i} has an old bridge too.")
    run(tmp_path, folder, split_by="document", test_share=0.3, role_amount_per_fact=1, qa_amount_per_fact=2)
    owners = {}
    for split in ("train", "validation", "test"):
        for pair in read_qa(tmp_path / "out" / "qa" / f"{split}.jsonl"):
            assert owners.setdefault(pair.supporting_documents[0].split("#")[0], split) == split
    assert len(set(owners.values())) >= 2


def test_chinese_texts_are_asked_about_in_chinese_and_standard_pairs_alone_are_data(tmp_path, texts):
    seen = []

    def reply(request):
        seen.append(request)
        return rules(request)

    _, manifest = run(tmp_path, texts / "sub", reply, role_amount_per_fact=0, test_share=0, validation_share=0)
    assert all(language_of(request.messages[0]["content"]) == "zh" for request in seen)
    assert manifest["questions"]["train"] == manifest["stages"]["questions"]["kept"]
    assert manifest["questions"]["recall"] == 0


@pytest.mark.parametrize("stage", ["theme", "facts", "question", "roles", "rewrite"])
def test_a_model_that_writes_garbage_at_one_stage_loses_that_stage_and_nothing_else(tmp_path, texts, stage):
    def reply(request):
        return "~~ no ~~" if request.name == stage else rules(request)

    changes = {"qa_amount_per_fact": 3, "role_amount_per_fact": 3}
    _, manifest = run(tmp_path, texts, reply, **changes)
    name = {"theme": "themes", "facts": "fact_lists", "question": "questions", "rewrite": "rewrites"}.get(stage, stage)
    counts = manifest["stages"][name]
    assert counts["kept"] == 0 < counts["rejected"] == counts["in"]
    rejected = check_stages(tmp_path / "out", manifest)
    assert sum("asked again after: '~~ no ~~'" in row["reason"] for row in rejected) == counts["rejected"]


def test_fewer_rewrites_than_asked_are_asked_for_again_and_then_taken(tmp_path, texts):
    def reply(request):
        if request.name != "rewrite":
            return rules(request)
        pair = {"question": "Why?", "answer": "So."}
        more = "repair" in request.values and "Town1 " in request.values["fact"]
        return json.dumps({"pairs": [pair, {**pair, "question": "Why not?"}] if more else [pair]})

    _, manifest = run(tmp_path, texts, reply, qa_amount_per_fact=2, role_amount_per_fact=1)
    assert set(manifest["facts_by_pairs"]) == {"0", "1", "2"}


# ----------------------------------------------------------------------------------------------- bad input


def test_what_cannot_be_read_is_a_sentence_each_and_the_run_goes_on_with_the_rest(tmp_path, texts):
    (texts / "empty.txt").write_text("  \n")
    (texts / "binary.txt").write_bytes(b"abc\0def" * 100)
    (texts / "picture.png").write_bytes(b"\x89PNG")
    (texts / "latin.txt").write_bytes("Café au lait. ".encode("latin-1") * 50)
    (texts / "utf16.txt").write_text("The moon Zemo circles Karo every nine days.", encoding="utf-16")
    good, twice = '{"id": "a", "text": "Mount Alba is 4,000 metres high."}', '{"id": "a", "text": "again"}'
    (texts / "documents.jsonl").write_text("\n".join([good, "{", twice, '{"id": 3}']))
    _, manifest = run(tmp_path, texts, qa_amount_per_fact=1, role_amount_per_fact=1)
    rejected = check_stages(tmp_path / "out", manifest)
    reasons = {(row["file"], row["line"]): row["reason"] for row in rejected if row["reason"].startswith("documents")}
    assert manifest["stages"]["documents"] == {"in": 11, "kept": 4, "rejected": 7}
    assert "the file is empty" in reasons["empty.txt", 1]
    assert "a binary file" in reasons["binary.txt", 1]
    assert "the name ends neither in .txt" in reasons["picture.png", 1]
    assert "save it as UTF-8 or give --encoding" in reasons["latin.txt", 1]
    assert "ids must differ" in reasons["documents.jsonl", 3]
    facts = (tmp_path / "out" / "facts.jsonl").read_text()
    assert "The moon Zemo" in facts and "Mount Alba" in facts


def test_another_encoding_is_used_where_a_file_is_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes("上海是中国最大的城市。".encode("gb18030"))
    (tmp_path / "b.txt").write_text("北京是首都。", encoding="utf-8")
    found = Documents(tmp_path, "gb18030")
    assert ["".join(found.pieces(one)) for one in found.sources()] == ["上海是中国最大的城市。", "北京是首都。"]
    with pytest.raises(ValueError, match="--encoding"):
        Documents(tmp_path, "klingon")


def test_letters_of_several_bytes_survive_where_a_file_is_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK", 5)
    text = "ab词cd词词。Ünï\r\nx"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "a.txt").write_bytes(text.encode(encoding))
        found = Documents(tmp_path / "a.txt")
        assert "".join(found.pieces(next(found.sources()))).replace("\r", "") == text.replace("\r", "")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--input", "missing"], "does not exist"),
        (["--input", "empty"], "there is no text to collect from"),
        (["--input", "texts", "--backend", "api"], "--model"),
        (["--input", "texts", "--backend", "recorded"], "--replies"),
        (["--input", "texts", "--chunk_size_by_token", "3"], "at least 16 tokens"),
        (["--input", "texts", "--qa_amount_per_fact", "2"], "raise --qa_amount_per_fact"),
        (["--input", "texts", "--test_share", "1"], "leave something to train on"),
        (["--input", "texts", "--backend", "api", "--model", "m", "--tokenizer", "no/such"], "--tokenizer"),
        (["--input", "texts", "--prompts", "texts/towns.txt"], "must hold {en"),
    ],
)  # fmt: skip
def test_what_the_command_cannot_do_is_one_sentence(tmp_path, texts, monkeypatch, capsys, flags, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["collect", *flags, "--output", "out"]) == 2
    assert says in capsys.readouterr().err


def test_a_dry_run_says_the_cost_shows_prompts_and_leaves_nothing(tmp_path, texts, capsys):
    output = tmp_path / "out"
    assert main(["collect", "--input", str(texts), "--output", str(output), "--dry_run", "--backend", "api"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"2 documents, \d+ chunks: about [\d,]+ calls, [\d,]+ tokens read", printed)
    assert "Name the subject of the passage" in printed and "说出下文的主题" in printed
    assert not output.exists()


def test_the_estimate_is_near_what_rules_need(tmp_path, texts):
    generator, manifest = run(tmp_path, texts)
    corpus = Corpus(Documents(texts), 512, words_and_marks)
    with Rejected(tmp_path / "r.jsonl") as rejected:
        corpus.survey(Stages(rejected, STAGES))
    expected = estimate(corpus, Settings(), with_graph=False)
    assert expected.chunks == manifest["stages"]["chunks"]["kept"]
    assert expected.calls / 4 < generator.asked < expected.calls * 4


def test_the_command_collects_from_a_server_and_a_second_run_is_free(tmp_path, texts, capsys):
    mock = ChatMock()
    with running(mock) as url:
        flags = ["collect", "--input", str(texts), "--output", str(tmp_path / "out"), "--backend", "api",
                 "--model", "m", "--base_url", url, "--qa_amount_per_fact", "2", "--role_amount_per_fact", "2"]
        assert main(flags) == 0
        first, calls = files(tmp_path / "out"), len(mock.calls)
        assert calls > 10
        assert main(flags) == 0
        assert len(mock.calls) == calls and files(tmp_path / "out") == first
    assert "0 calls made" in capsys.readouterr().out
    check_stages(tmp_path / "out", json.loads((tmp_path / "out" / "manifest.json").read_text()))


# ----------------------------------------------------------------------------------------------- the parts


TEXT = st.text(st.sampled_from("ab .!?。\n词”\"'x"), max_size=400)


@given(TEXT, st.integers(1, 50))
@settings(max_examples=200, deadline=None)
def test_sentences_joined_are_the_text_however_it_arrives(text, size):
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert "".join(sentences(pieces)) == text
    assert [one for one in sentences(pieces) if one] == list(sentences([text]) if text else [])


@given(TEXT, st.integers(16, 64))
@settings(max_examples=200, deadline=None)
def test_chunks_cover_the_text_and_keep_their_size_and_place(text, size):
    found = list(chunks("d", None, [text], size, words_and_marks))
    covered = set()
    for number, chunk in enumerate(found):
        assert chunk.number == number and chunk.tokens <= size
        assert text[chunk.start : chunk.start + len(chunk.text)] == chunk.text.strip() != ""
        covered |= set(range(chunk.start, chunk.start + len(chunk.text)))
    assert all(place in covered for place, letter in enumerate(text) if not letter.isspace())


def test_chunks_overlap_by_whole_sentences():
    text = " ".join(f"Sentence number {i} is here." for i in range(40))
    found = [chunk.text for chunk in chunks("d", None, [text], 64, words_and_marks)]
    assert all(chunk.startswith("Sentence number") and chunk.endswith("here.") for chunk in found)
    assert all(later.split(".")[0] in earlier for earlier, later in zip(found, found[1:], strict=False))


def test_a_text_without_any_boundary_is_cut_and_held_in_pieces_only(monkeypatch):
    monkeypatch.setattr(chunking, "LONGEST", 1000)
    pieces = ("x" * 300 for _ in range(100))
    longest = max(len(sentence) for sentence in sentences(pieces))
    assert longest <= 1300


def test_a_text_of_any_length_is_cut_in_the_same_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK", 4096)
    peaks = []
    for sentences_written in (500, 4000):
        path = tmp_path / f"{sentences_written}.txt"
        path.write_text(" ".join(f"Sentence {i} of a very long text stands here." for i in range(sentences_written)))
        found = Documents(path)
        tracemalloc.start()
        source = next(found.sources())
        count = sum(1 for _ in chunks(source.id, None, found.pieces(source), 128, words_and_marks))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count > sentences_written / 12
    assert peaks[1] < 1.2 * peaks[0], "eight times the text, the same memory"


def test_statements_are_the_same_only_when_they_name_the_same_things():
    known = KnownFacts(load_encoder("hashing:256"), 0.8)
    first = ["Ada Lovelace wrote the first program in 1843.", "Karo was taught by Miro."]
    assert known.check(first, "a") == [None, None]
    later = [
        "In 1843 Ada Lovelace wrote the very first program.",
        "Ada Lovelace wrote the first program in 1844.",
        "Miro was taught by Karo.",
        "ada lovelace wrote the first program in 1843",
    ]
    reasons = known.check(later, "a")
    assert "it says what line 1" in reasons[0] and reasons[1] is None and reasons[2] is None
    assert "the same statement is line 1" in reasons[3]
    assert known.check([later[0]], "another document") == [None], "other documents are compared by their words"


def test_of_a_long_document_the_latest_facts_are_held_and_no_more(monkeypatch):
    monkeypatch.setattr(known_facts, "HELD", 4)
    known = KnownFacts(load_encoder("hashing:64"), 0.8)
    facts = [f"Town{i} has a mill and an old stone bridge." for i in range(10)]
    assert known.check(facts, "a") == [None] * 10
    assert len(known._texts) == 4
    again = known.check([fact.replace("old stone", "stone, old") for fact in facts[:2] + facts[6:]], "a")
    assert again == [None] * 6, "the same words in another order"
    added = known.check([f"{fact[:-1]} too." for fact in facts[8:]], "a")
    assert [reason is not None for reason in added] == [True, True]


def test_prompts_have_their_places_in_both_languages_and_files_may_replace_them():
    for language, texts in PROMPTS.items():
        assert set(texts) == set(PLACES)
        for name, text in texts.items():
            assert all("{" + place + "}" in text for place in PLACES[name]), (language, name)
    prompts = Prompts({"en": {"theme": "Theme of {text}? {unknown} {"}})
    assert prompts.fill("theme", "en", {"text": "{text} {count}"}) == "Theme of {text} {count}? {unknown} {"
    assert prompts.fill("theme", "zh", {"text": "x"}) == Prompts().fill("theme", "zh", {"text": "x"})
    for changes in ({"fr": {}}, {"en": {"thema": "x"}}, {"en": {"theme": "no place"}}, {"en": {"theme": 3}}):
        with pytest.raises(ValueError, match="prompt"):
            Prompts(changes)


def test_who_stops_a_run_is_told_how_it_goes_on(tmp_path, texts, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    (tmp_path / "replies.jsonl").write_text("")
    monkeypatch.setattr(TextGenerator, "run", stop)
    flags = ["--backend", "recorded", "--replies", str(tmp_path / "replies.jsonl"), "--output", str(tmp_path / "out")]
    assert main(["collect", "--input", str(texts), *flags]) == 2
    assert "the same command goes on from there" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- kill -9


def killed_and_whole(tmp_path, texts, moments, seed):
    """Kills a collection against a slow server at random moments, each time starting it anew; then lets it end."""
    rng = random.Random(seed)
    mock = ChatMock(0.01 + 0.004 * moments)  # slow enough that no quiet machine is done before the last kill
    with running(mock) as url:
        flags = ["--backend", "api", "--model", "m", "--base_url", url, "--input", str(texts), "--concurrency",
                 "4", "--qa_amount_per_fact", "4", "--role_amount_per_fact", "4", "--chunk_size_by_token", "32"]
        command = [sys.executable, "-m", "data_processor", "collect", *flags, "--output"]
        subprocess.run([*command, str(tmp_path / "whole")], cwd=ROOT, check=True, capture_output=True)
        calls, mock.calls = mock.calls, type(mock.calls)()
        for _ in range(moments):
            process = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=ROOT, stderr=subprocess.DEVNULL)
            log, before = tmp_path / "killed" / "calls.jsonl", time.monotonic()
            size = log.stat().st_size if log.exists() else 0
            while process.poll() is None and (not log.exists() or log.stat().st_size <= size):
                assert time.monotonic() - before < 60
                time.sleep(0.002)
            time.sleep(rng.random() * 0.1)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not (tmp_path / "killed" / "manifest.json").exists(), "killed too late to show anything"
        subprocess.run([*command, str(tmp_path / "killed")], cwd=ROOT, check=True, capture_output=True)
    whole, killed = files(tmp_path / "whole"), files(tmp_path / "killed")
    one, other = (sorted(found.pop("calls.jsonl").splitlines()) for found in (whole, killed))
    assert killed == whole, "the final files are the same, and nothing else is left"
    assert one == other, "every call stands in the log, and none twice"
    under_way = 2 * 4  # what a kill may cost: twice the concurrency
    assert set(mock.calls) == set(calls) and mock.calls.total() <= calls.total() + under_way * moments


def test_a_collection_killed_twice_is_the_same_in_the_end(tmp_path, texts):
    killed_and_whole(tmp_path, texts, 2, 0)


@pytest.mark.kill
def test_a_collection_killed_at_twenty_moments_is_the_same_in_the_end(tmp_path, texts):
    killed_and_whole(tmp_path, texts, 20, 1)


# ----------------------------------------------------------------------------------------------- real documents


@pytest.mark.data
def test_forty_real_documents_by_rules_add_up_and_a_second_run_is_free(tmp_path, real_data):
    source = real_data / "medquad" / "docs"
    generator, manifest = run(tmp_path, source, qa_amount_per_fact=3, role_amount_per_fact=3)
    check_stages(tmp_path / "out", manifest)
    assert manifest["stages"]["documents"] == {"in": 40, "kept": 40, "rejected": 0}
    assert manifest["stages"]["facts"]["kept"] > 500 and generator.failed == 0
    first = files(tmp_path / "out")
    again, _ = run(tmp_path, source, qa_amount_per_fact=3, role_amount_per_fact=3)
    assert again.asked == 0 and files(tmp_path / "out") == first


