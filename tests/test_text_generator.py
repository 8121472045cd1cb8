"""Calls of a language model: the log, the order of results, servers with faults, recorded replies, parsing."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.chat_mock import FAULTS, ChatMock, by_schema, running
from data_processor import chat_client
from data_processor.calls import CallLog, Reply, Request, call_key
from data_processor.replies import Unusable, ask, choice, list_of, parse, read, record, text
from data_processor.text_generator import FAILURES, ReplyFunction, Source, TextGenerator, open_generator

ROOT = Path(__file__).resolve().parent.parent
WORD = record(word=text())
LIST = record(facts=list_of(text()))
PAIR = record(question=text(), answer=text())
PAIRS = record(pairs=list_of(PAIR))


def request(words, schema=WORD, limit=64):
    return Request(({"role": "user", "content": words},), schema, limit, "test")


def task(words, schema=WORD):
    """Asks one thing; returns the words with the value, or with why there is none."""
    try:
        value = yield from ask(request(words, schema), "Again: {}".format, lambda value: value)
    except Unusable as error:
        return words, str(error)
    return words, value


def generator(tmp_path, reply, **more):
    return TextGenerator(ReplyFunction(reply, "rules", **more), CallLog(tmp_path / "calls.jsonl"))


def api(tmp_path, url, **more):
    source = Source("api", "m", url, **{"timeout": 1.0, **more})
    return open_generator(source, tmp_path / "calls.jsonl", progress=False)


# ------------------------------------------------------------------------------------------------------------ the log


def test_a_reply_is_kept_and_found_by_the_call(tmp_path):
    one, other = request("a"), request("b")
    with CallLog(tmp_path / "c.jsonl") as log:
        log.append(call_key("m", {}, one), one, Reply("long " * 50_000 + "词", None, "stop", 7, 8))
    with CallLog(tmp_path / "c.jsonl") as log:
        found = log.get(call_key("m", {}, one), 64)
        assert (found.text[-1], len(found.text), found.prompt_tokens, found.new_tokens) == ("词", 250_001, 7, 8)
        assert log.get(call_key("m", {}, other), 64) is None and len(log) == 1


@pytest.mark.parametrize(
    "other",
    [("n", {}, "a", WORD), ("m", {"temperature": 1}, "a", WORD), ("m", {}, "b", WORD), ("m", {}, "a", LIST)],
)
def test_a_call_is_another_when_model_sampling_messages_or_schema_differ(other):
    model, sampling, words, schema = other
    assert call_key("m", {}, request("a")) != call_key(model, sampling, request(words, schema))
    assert call_key("m", {}, request("a", limit=1)) == call_key("m", {}, request("a", limit=2))


def test_what_a_killed_writer_left_is_cut_off_wherever_it_was_killed(tmp_path):
    path = tmp_path / "c.jsonl"
    with CallLog(path) as log:
        for words in "ab":
            log.append(call_key("m", {}, request(words)), request(words), Reply(f"reply {words}"))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        with CallLog(path) as log:
            assert len(log) == 1
            log.append(call_key("m", {}, request("b")), request("b"), Reply("reply b"))
        assert path.read_bytes() == whole


def test_a_line_that_is_no_call_and_a_second_writer_are_one_sentence(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"key": "zz", "reply": "x"}\n')
    with pytest.raises(ValueError, match=r"c\.jsonl:1: no call"):
        CallLog(path)
    path.unlink()
    with CallLog(path), pytest.raises(ValueError, match="another process"):
        CallLog(path)


def test_a_cut_reply_is_asked_again_only_with_a_higher_limit(tmp_path):
    with CallLog(tmp_path / "c.jsonl") as log:
        key = call_key("m", {}, request("a"))
        log.append(key, request("a", limit=64), Reply("half of", None, "length"))
        assert log.get(key, 64).text == "half of"
        assert log.get(key, 65) is None
        log.append(key, request("a", limit=65), Reply("all of it"))
        assert log.get(key, 65).text == "all of it"


# -------------------------------------------------------------------------------------------------------------- tasks


def test_results_come_in_the_order_of_the_tasks_and_identical_calls_are_made_once(tmp_path):
    asked = Counter()

    def reply(one):
        asked[one.messages[0]["content"]] += 1
        return json.dumps({"word": one.messages[0]["content"].upper()})

    class Shuffled(ReplyFunction):
        def finished(self):
            found = super().finished()
            random.Random(len(found)).shuffle(found)
            return found

    words = [f"w{i % 40}" for i in range(500)]
    with TextGenerator(Shuffled(reply, "rules", 4), CallLog(tmp_path / "calls.jsonl")) as one:
        assert list(one.run(map(task, words))) == [(word, {"word": word.upper()}) for word in words]
        assert set(asked.values()) == {1} and len(asked) == one.asked == 40
    with generator(tmp_path, lambda _: pytest.fail("called again")) as two:
        assert len(list(two.run(map(task, words)))) == 500
        assert two.asked == 0


def test_a_task_waits_for_its_reply_while_others_go_on_and_few_are_held(tmp_path):
    started = []

    def tasks():
        for i in range(5000):
            started.append(i)
            yield task(str(i))

    with generator(tmp_path, lambda one: '{"word": "x"}', capacity=2) as one:
        results = one.run(tasks())
        next(results)
        assert len(started) <= 16
        assert sum(1 for _ in results) == 4999


def test_an_unusable_reply_is_repaired_once_and_then_rejected_with_both_reasons(tmp_path):
    seen = []

    def reply(one):
        seen.append(one)
        mended = len(one.messages) == 3 and one.messages[0]["content"] == "good"
        return '{"word": "mended"}' if mended else "no idea"

    with generator(tmp_path, reply) as one:
        good, bad = one.run([task("good"), task("bad")])
    assert good == ("good", {"word": "mended"})
    assert "expected a JSON object with 'word'" in bad[1] and "asked again after: 'no idea'" in bad[1]
    assert len(seen) == 4
    again = next(one for one in seen if len(one.messages) == 3)
    assert again.messages[1] == {"role": "assistant", "content": "no idea"}
    assert again.messages[2]["content"].startswith("Again: ")


def test_recorded_replies_are_played_back_and_what_was_not_recorded_is_said(tmp_path):
    with generator(tmp_path, lambda one: '{"word": "x"}') as one:
        list(one.run([task("a")]))
    source = Source("recorded", "rules", replies=tmp_path / "calls.jsonl")
    with open_generator(source, tmp_path / "again" / "calls.jsonl", progress=False) as two:
        known, unknown = two.run([task("a"), task("b")])
    assert known == ("a", {"word": "x"})
    assert "has no reply to this call" in unknown[1]
    with pytest.raises(ValueError, match="--replies"):
        open_generator(Source("recorded"), tmp_path / "x.jsonl")


# ------------------------------------------------------------------------------------------------------------- servers


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(chat_client, "FIRST_PAUSE", 0.01)


def test_no_row_is_lost_and_none_done_twice_at_a_server_with_every_fault(tmp_path, quick):
    words = [f"row {i}" for i in range(240)]
    mock = ChatMock(0.01, faulty=True)
    with running(mock) as url, api(tmp_path, url) as one:
        faulty = dict(one.run(map(task, words)))
        assert set(mock.faults) == set(FAULTS)
        assert set(mock.calls.values()) == {1}, "every call was answered once"
        assert one.failed == 0
    with running(ChatMock()) as url, api(tmp_path / "sound", url) as two:
        sound = dict(two.run(map(task, words)))
    differ = [word for word in words if faulty[word] != sound[word]]
    assert len(differ) == mock.faults["schema"], "a repaired reply is another one; the others are the same"
    assert list(faulty) == words and all(set(value) == {"word"} for value in faulty.values())
    keys = Counter(json.loads(line)["key"] for line in open(tmp_path / "calls.jsonl"))
    assert set(keys.values()) == {1}
    with api(tmp_path, "http://127.0.0.1:9/v1") as three:
        assert dict(three.run(map(task, words))) == faulty and three.asked == 0


class Refusing(ChatMock):
    """Answers every call with one status and text."""

    def __init__(self, status, body, headers=""):
        super().__init__()
        self.answer = status, body, headers

    async def _answer(self, body, writer):
        from benchmarks.chat_mock import send

        self.calls[body] += 1
        await send(writer, *self.answer)
        return True


@pytest.mark.parametrize("key", [None, "sk-secret"])
def test_a_missing_or_wrong_key_ends_the_run_with_its_name_and_never_the_key(tmp_path, monkeypatch, key):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with running(Refusing(401, "no")) as url, api(tmp_path, url) as one:
        with pytest.raises(ValueError, match="OPENAI_API_KEY") as error:
            list(one.run(map(task, "abc")))
    assert "sk-secret" not in str(error.value)
    assert ("is refused" if key else "is not set") in str(error.value)


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [(404, "no such model", "check --base_url"), (200, "<html>hello</html>", "HTML: is --base_url right"),
     (503, "starting", "503: starting")],
)  # fmt: skip
def test_a_server_that_never_answers_rightly_ends_the_run_with_a_sentence(tmp_path, quick, status, body, says):
    with running(Refusing(status, body)) as url, api(tmp_path, url) as one:
        with pytest.raises(ValueError, match=says):
            list(one.run(task(str(i)) for i in range(3 * FAILURES)))


def test_a_call_that_the_server_refuses_is_rejected_and_the_others_go_on(tmp_path):
    class Picky(ChatMock):
        async def _answer(self, body, writer):
            from benchmarks.chat_mock import send

            if "too long" not in body:
                return await super()._answer(body, writer)
            await send(writer, 400, "the context is 512 tokens")
            return True

    with running(Picky()) as url, api(tmp_path, url) as one:
        found = dict(one.run(map(task, ["a", "too long", "b"])))
    assert "400: the context is 512 tokens" in found["too long"]
    assert all(set(found[word]) == {"word"} for word in "ab")


def test_a_server_without_json_schemas_is_asked_in_words(tmp_path):
    bodies = []

    class Plain(ChatMock):
        async def _answer(self, body, writer):
            from benchmarks.chat_mock import completion, send

            bodies.append(json.loads(body))
            if "response_format" in bodies[-1]:
                await send(writer, 400, "response_format is not supported")
            else:
                await send(writer, 200, completion('Sure: {"word": "plain"}'))
            return True

    with running(Plain()) as url, api(tmp_path, url, concurrency=1) as one:
        assert [value for _, value in one.run(map(task, "ab"))] == [{"word": "plain"}] * 2
    assert ["response_format" in body for body in bodies] == [True, False, False]


def test_a_server_that_knows_the_limit_by_its_newer_name_is_given_that(tmp_path):
    bodies = []

    class Newer(ChatMock):
        async def _answer(self, body, writer):
            from benchmarks.chat_mock import send

            bodies.append(json.loads(body))
            if "max_completion_tokens" in bodies[-1]:
                return await super()._answer(body, writer)
            await send(writer, 400, "'max_tokens' is not supported; use 'max_completion_tokens'")
            return True

    with running(Newer()) as url, api(tmp_path, url, concurrency=1) as one:
        assert all(set(value) == {"word"} for _, value in one.run(map(task, "ab")))
    assert ["max_tokens" in body for body in bodies] == [True, False, False]


def test_limits_a_minute_space_the_calls(tmp_path):
    with running(ChatMock()) as url, api(tmp_path, url, requests_per_minute=1200) as one:
        start = time.monotonic()
        list(one.run(task(str(i)) for i in range(21)))
        assert 0.98 <= time.monotonic() - start
    pace = chat_client.Pace(None, 60_000)
    start = time.monotonic()
    for _ in range(3):
        pace.wait(200)
    assert 0.38 <= time.monotonic() - start


def test_a_pause_the_server_asks_for_is_kept():
    assert chat_client.retry_after("2") == 2.0
    assert chat_client.retry_after(None) == 1.0 and chat_client.retry_after("nonsense") == 1.0
    assert chat_client.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert 3e8 < chat_client.retry_after("Wed, 21 Oct 2099 07:28:00 GMT")


def test_the_api_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from data_processor.text_generator import Source, open_backend;"
        "open_backend(Source('api', 'm', 'http://127.0.0.1:9/v1'));"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(("flags", "says"), [({"base_url": "localhost:8000"}, "http"), ({"model": None}, "--model")])
def test_missing_flags_are_one_sentence(tmp_path, flags, says):
    with pytest.raises(ValueError, match=says):
        open_generator(Source("api", **{"model": "m", **flags}), tmp_path / "c.jsonl")


# ------------------------------------------------------------------------------------------------------------- parsing


@pytest.mark.parametrize(
    ("reply", "schema", "value"),
    [
        ('{"word": "x"}', WORD, {"word": "x"}),
        ('Of course!\n```json\n{"word": "x"}\n```\nAnything else?', WORD, {"word": "x"}),
        ('<think>{"word": "no"}</think>{"word": "yes"}', WORD, {"word": "yes"}),
        ('{"note": 1} then {"word": "x"}', WORD, {"word": "x"}),
        ('["a", "b"]', LIST, {"facts": ["a", "b"]}),
        ("Here they are:\n1. Rain falls.\n2) Snow, 3.5 cm a day, melts.\n3、雪会化。", LIST,
         {"facts": ["Rain falls.", "Snow, 3.5 cm a day, melts.", "雪会化。"]}),
        ("- one\n- two", LIST, {"facts": ["one", "two"]}),
        ("Q: Who?\nA: She, in\ntwo lines.", PAIR, {"question": "Who?", "answer": "She, in\ntwo lines."}),
        ("1. Q: Who?\n   A: She.\n2. Q: When?\n   A: In 3. place.", PAIRS,
         {"pairs": [{"question": "Who?", "answer": "She."}, {"question": "When?", "answer": "In 3. place."}]}),
        ("**问题**：谁？\n**答案**：她。", PAIR, {"question": "谁？", "answer": "她。"}),
    ],
)  # fmt: skip
def test_a_reply_is_read_as_json_or_as_the_plain_form_of_what_was_asked(reply, schema, value):
    assert parse(reply, schema) == value


@pytest.mark.parametrize(
    ("reply", "schema"),
    [("", WORD), ("words", WORD), ('{"word": "cut', WORD), ("one. two.", LIST), ("Q: none", PAIR), ("[" * 999, LIST)],
)
def test_a_reply_without_a_value_is_unusable(reply, schema):
    with pytest.raises(Unusable, match="expected a JSON object with"):
        parse(reply, schema)


@pytest.mark.parametrize(
    ("reply", "schema", "says"),
    [
        (Reply('{"colour": "green"}'), WORD, "lacks 'word'"),
        (Reply('{"word": 3}'), WORD, "'word' must be a JSON string, got 3"),
        (Reply('{"facts": ["a", ["b"]]}'), LIST, "an item of 'facts' must be a JSON string"),
        (Reply('{"word": "maybe"}'), record(word=choice("yes", "no")), "must be one of yes, no, got 'maybe'"),
        (Reply('{"word": "x"}', None, "length"), WORD, "cut at the limit"),
        (Reply(error="no reply after 6 attempts"), WORD, "no reply after 6"),
    ],
)
def test_a_value_that_does_not_fit_says_where(reply, schema, says):
    with pytest.raises(Unusable, match=says):
        read(reply, schema, lambda value: value)


def test_the_stand_in_fills_any_schema():
    body = {"messages": [], "response_format": {"json_schema": {"schema": PAIRS}}}
    assert read(Reply(by_schema(body)), PAIRS, lambda value: len(value["pairs"])) == 1
