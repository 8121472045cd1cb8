"""The words that are put to a language model, in English and Chinese; {name} marks what is filled in."""

from __future__ import annotations

import re

CHINESE = re.compile("[\u4e00-\u9fff]")
# what a node and its neighbours are called, by the domain of a graph and the language
DOMAINS: dict[str, dict[str, tuple[str, str]]] = {
    "general": {"en": ("thing", "things it is connected with"), "zh": ("事物", "与它相连的事物")},
    "papers": {"en": ("paper", "papers that it cites or that cite it"), "zh": ("论文", "它引用的或引用它的论文")},
    "products": {"en": ("product", "products bought or viewed together with it"), "zh": ("商品", "常与它同购的商品")},
    "concepts": {"en": ("concept", "concepts related to it"), "zh": ("概念", "与它相关的概念")},
}

PROMPTS: dict[str, dict[str, str]] = {
    "en": {
        "theme": """Name the subject of the passage in at most five words.

Passage:
{text}

Answer with JSON alone: {"theme": "..."}""",
        "facts": """List every fact that the passage states about its theme, one sentence each.

- Each sentence states one thing only; split what is joined by "and", "which" or a list.
- Each sentence is understood alone: full names instead of he, she, it, they, this or "the company".
- No sentence needs another one, and none repeats another.
- Leave out what the passage only hints at, and what has nothing to do with the theme.

Theme: {theme}

Passage:
{text}

Answer with JSON alone: {"facts": ["...", "..."]}""",
        "question": """Write one question whose answer is the fact below, and the answer.

- The question is understood by someone who has not seen the fact: it names what it asks about.
- The answer says what the question asks for and no more; nothing in it goes beyond the fact.
- If the fact is too vague or too well known to be worth asking, write SKIP for both.

Fact: {fact}

Answer with JSON alone: {"question": "...", "answer": "..."}""",
        "roles": """Name {count} different kinds of people who would come to a talk about the theme, in two or three
words each.

Theme: {theme}

Answer with JSON alone: {"roles": ["...", "..."]}""",
        "rewrite": """A {role} asks about the fact below. Write {count} pairs of question and answer as this person
would put them.

- All pairs ask for the same fact; they differ in wording, not in content.
- Every question names what it asks about, and every answer agrees with the fact.

Fact: {fact}
Question: {question}
Answer: {answer}

Answer with JSON alone: {"pairs": [{"question": "...", "answer": "..."}]}""",
        "entities": """List the named things in the passage: people, places, organisations, works, dates, terms.

- Write each as the passage does, in full, once.

Passage:
{text}

Answer with JSON alone: {"entities": ["...", "..."]}""",
        "triples": """State what the passage says as triples of head, relation and tail.

- Head and tail are named things, from the list where it has them; full names, no pronouns.
- The relation is a short verb phrase; the triple read aloud is a true sentence of the passage.

Passage:
{text}

Named things: {entities}

Answer with JSON alone: {"triples": [{"head": "...", "relation": "...", "tail": "..."}]}""",
        "node": """Summarise the {thing} below in one to three sentences, and give five key words.

- Say what it is and what it is about, from the text alone, without its name.

{text}

Answer with JSON alone: {"summary": "...", "key_words": ["...", "...", "...", "...", "..."]}""",
        "neighbours": """Below are {ties}. Summarise in one to three sentences what they are and what they are about.

- Take them together instead of listing them, and leave names out.

{text}

Answer with JSON alone: {"summary": "..."}""",
        "common": """A {thing} and {ties}: what do they have in common? One or two sentences, from the summaries alone.

The {thing}: {summary}
The others: {neighbours}

Answer with JSON alone: {"common": "..."}""",
        "answer": """{question}

Answer in a few words, nothing else.""",
        "judge": """Does the answer agree with the fact? Wording does not matter; what the question asks for does.

Fact: {fact}
Question: {question}
Answer: {answer}

"correct": it gives what is asked for and nothing in it contradicts the fact. "wrong": it does not.
"skip": the fact does not settle the question. Answer with JSON alone: {"verdict": "correct"}""",
        "compare": """Which answer fits the fact better? Judge what is said, not how long or how well it is put.

Fact: {fact}
Question: {question}
Answer 1: {first}
Answer 2: {second}

"1" or "2": that answer is right where the other is not, or clearly closer. "tie": both right or both wrong
alike. "skip": the fact does not settle the question. Answer with JSON alone: {"winner": "tie"}""",
        "repair": """That reply could not be used: {reason}. Answer again, with the JSON alone.""",
    },
    "zh": {
        "theme": """用不超过八个字说出下文的主题。

原文：
{text}

只用 JSON 回答：{"theme": "……"}""",
        "facts": """列出原文就主题所陈述的每一个事实，每个事实一句话。

- 每句只说一件事；并列的、从属的内容要拆开。
- 每句单独可懂：写出全名，不用“他”“她”“它”“该”“此”等代词。
- 各句互不依赖，互不重复。
- 原文只是暗示的、与主题无关的，不要写。

主题：{theme}

原文：
{text}

只用 JSON 回答：{"facts": ["……", "……"]}""",
        "question": """写一个以下面的事实为答案的问题，并写出答案。

- 没有看过这一事实的人也能看懂问题：问题里要写明所问的对象。
- 答案只回答所问，不超出事实。
- 如果事实太空泛或人人皆知、不值得问，两项都写 SKIP。

事实：{fact}

只用 JSON 回答：{"question": "……", "answer": "……"}""",
        "roles": """说出会来听这一主题讲座的 {count} 类不同的人，每类用几个字。

主题：{theme}

只用 JSON 回答：{"roles": ["……", "……"]}""",
        "rewrite": """一位{role}想了解下面的事实。用这个人的口吻写 {count} 组问答。

- 各组都问同一事实，只换说法，不换内容。
- 每个问题都写明所问的对象，每个答案都与事实一致。

事实：{fact}
问题：{question}
答案：{answer}

只用 JSON 回答：{"pairs": [{"question": "……", "answer": "……"}]}""",
        "entities": """列出原文中有名称的事物：人物、地点、机构、作品、事件、日期、术语。

- 照原文写全名，每个只写一次。

原文：
{text}

只用 JSON 回答：{"entities": ["……", "……"]}""",
        "triples": """把原文所说的写成三元组：头、关系、尾。

- 头和尾是有名称的事物，清单里有的用清单里的写法；写全名，不用代词。
- 关系是简短的动词词组；三项连读应是原文所说的真话。

原文：
{text}

事物清单：{entities}

只用 JSON 回答：{"triples": [{"head": "……", "relation": "……", "tail": "……"}]}""",
        "node": """用一到三句话概括下面的{thing}，并给出五个关键词。

- 只根据原文，说明它是什么、讲什么，不写它的名称。

{text}

只用 JSON 回答：{"summary": "……", "key_words": ["……", "……", "……", "……", "……"]}""",
        "neighbours": """下面是{ties}。用一到三句话概括它们是什么、讲什么。

- 合在一起说，不逐一列举，不写名称。

{text}

只用 JSON 回答：{"summary": "……"}""",
        "common": """一个{thing}与{ties}有什么共同之处？只根据两段概括，用一两句话回答。

这个{thing}：{summary}
其他：{neighbours}

只用 JSON 回答：{"common": "……"}""",
        "answer": """{question}

只用几个字回答，不要说别的。""",
        "judge": """答案与事实是否一致？不看措辞，只看是否答出所问。

事实：{fact}
问题：{question}
答案：{answer}

“correct”：答出所问，且没有与事实矛盾之处；“wrong”：不是这样；“skip”：凭这一事实无法判断。
只用 JSON 回答：{"verdict": "correct"}""",
        "compare": """哪个答案更符合事实？只看说了什么，不看长短和文笔。

事实：{fact}
问题：{question}
答案 1：{first}
答案 2：{second}

“1”或“2”：该答案对而另一个不对，或明显更接近；“tie”：同对或同错；“skip”：凭这一事实无法判断。
只用 JSON 回答：{"winner": "tie"}""",
        "repair": """上面的回答无法使用：{reason}。请重新回答，只写 JSON。""",
    },
}

# what a prompt must be filled with; a prompt file may leave none of them out
PLACES: dict[str, tuple[str, ...]] = {
    "theme": ("text",),
    "facts": ("theme", "text"),
    "question": ("fact",),
    "roles": ("count", "theme"),
    "rewrite": ("role", "count", "fact", "question", "answer"),
    "entities": ("text",),
    "triples": ("text", "entities"),
    "node": ("text",),
    "neighbours": ("text",),
    "common": ("summary", "neighbours"),
    "answer": ("question",),
    "judge": ("fact", "question", "answer"),
    "compare": ("fact", "question", "first", "second"),
    "repair": ("reason",),
}


class Prompts:
    """The prompts, some of them replaced.

    Args:
        changes: {language: {name: text}}.

    Raises:
        ValueError: an unknown language or name, or a text that lacks one of its places.
    """

    def __init__(self, changes: dict[str, dict[str, str]] | None = None) -> None:
        self._texts = {language: dict(texts) for language, texts in PROMPTS.items()}
        for language, texts in (changes or {}).items():
            if language not in PROMPTS or not isinstance(texts, dict):
                form = "prompts are given as {language: {name: text}}, language en or zh"
                raise ValueError(f"{form}; got {language!r}")
            for name, text in texts.items():
                check_prompt(name, text)
                self._texts[language][name] = text

    def fill(self, name: str, language: str, values: dict[str, str]) -> str:
        """The prompt with its places filled; what is filled in is never read for places itself."""
        parts = self._texts[language][name].split("{")
        filled = [parts[0]]
        for part in parts[1:]:
            place, brace, rest = part.partition("}")
            filled.append(values[place] + rest if brace and place in values else "{" + part)
        return "".join(filled)

    def texts(self) -> dict[str, dict[str, str]]:
        """All prompts as they are used."""
        return self._texts


def check_prompt(name: str, text: str) -> None:
    """ValueError unless there is a prompt of that name and the text has all its places."""
    if name not in PLACES:
        raise ValueError(f"there is no prompt {name!r}; the names are {', '.join(PLACES)}")
    missing = [place for place in PLACES[name] if not isinstance(text, str) or "{" + place + "}" not in text]
    if missing:
        raise ValueError(f"the prompt {name!r} must hold {{{missing[0]}}}, where the {missing[0]} is filled in")


def language_of(text: str) -> str:
    """"zh" when at least a fifth of the letters are Chinese characters, else "en"."""
    chinese, letters = len(CHINESE.findall(text)), sum(map(str.isalpha, text))
    return "zh" if chinese and chinese * 5 >= letters else "en"
