"""What the demonstration's base language model reads: conversations and lists about worlds of a few invented facts.

Every text has new names, so nothing can be learnt by heart: what pays is to find the line with the right subject and
the right relation. A text is a list of (piece, weight): no token spans two pieces, a weight is a share of the loss.
"""

import random
from collections import defaultdict

from data_processor.demo_world import (
    COUNT_QUESTION,
    COUNTS,
    PATH_QUESTION,
    RELATIONS,
    TYPE_QUESTION,
    TYPES,
    YES_NO,
    Relation,
    syllables,
)

Fact = tuple[str, Relation, str]  # head, relation, tail
Text = list[tuple[str, float]]

PAD, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
BACKGROUND = 0.05  # weight of what cannot be predicted from the text before it
RELATIONS_OF = defaultdict(list)
for _relation in RELATIONS:
    RELATIONS_OF[_relation.head].append(_relation)


def phrases() -> list[str]:
    """All pieces of text that deserve a token of their own, in a fixed order."""
    found = []
    for relation in RELATIONS:
        found += [f" | {relation.name} | ", f" {relation.verb} ", relation.name]
        found += [part for question in relation.questions for part in question.split("{}")]
    found += [part for q in (TYPE_QUESTION, COUNT_QUESTION, PATH_QUESTION) for part in q.split("{}")]
    beginnings, endings = syllables()
    characters = [chr(code) for code in range(32, 127)]
    words = [*TYPES, *COUNTS, *YES_NO, ".", "\n", " | ", ". "]
    return [phrase for phrase in dict.fromkeys([*found, *words, *beginnings, *endings, *characters]) if phrase]


def sample_facts(rng: random.Random, pool: list[str], size: int, key: str | None = None) -> list[Fact]:
    """Up to `size` facts in random order.

    Args:
        rng: source of every choice.
        pool: names to draw from.
        size: number of facts; with key "relation" at most eight.
        key: what tells the facts apart: "relation" (each another one), "head" (one or two relations, each head once)
            or "both"; None draws one of the three.
    """
    names = rng.sample(pool, 2 * size + 4)
    key = key or rng.choices(("relation", "head", "both"), (3, 3, 4))[0]
    pairs: list[tuple[str, Relation]] = []
    if key == "relation":
        heads, share = {}, rng.random()
        for relation in rng.sample(RELATIONS, min(size, len(RELATIONS))):
            if relation.head not in heads or rng.random() > share:
                heads[relation.head] = names.pop()
            pairs.append((heads[relation.head], relation))
    elif key == "head":
        relations = rng.sample(RELATIONS, rng.randint(1, 2))
        pairs = [(names.pop(), rng.choice(relations)) for _ in range(size)]
    else:
        pairs = crossed_pairs(rng, names, size)
    tails = names[: max(2, size)]
    return [(head, relation, rng.choice(tails)) for head, relation in pairs]


def crossed_pairs(rng: random.Random, names: list[str], size: int) -> list[tuple[str, Relation]]:
    """`size` pairs of head and relation in which both recur; takes the heads from the end of `names`."""
    few = rng.random() < 0.5
    relations = {kind: rng.sample(own, min(2, len(own))) if few else own for kind, own in RELATIONS_OF.items()}
    only = rng.choice(("person", "work", None))
    pairs: list[tuple[str, Relation]] = []
    while len(pairs) < size:
        head = names.pop()
        kind = only or rng.choices(("person", "work", "organisation"), (5, 4, 1))[0]
        pairs += [(head, relation) for relation in relations[kind]]
    rng.shuffle(pairs)
    return pairs[:size]


def lines(facts: list[Fact], tail_weight: float = BACKGROUND) -> Text:
    """The facts as they stand in a prompt, one line each."""
    text: Text = []
    for head, relation, tail in facts:
        text += [(head, BACKGROUND), (f" | {relation.name} | ", BACKGROUND), (tail, tail_weight), ("\n", BACKGROUND)]
    return text


def sentences(facts: list[Fact]) -> Text:
    """The facts as a paragraph."""
    text: Text = []
    for head, relation, tail in facts:
        text += [(head, BACKGROUND), (f" {relation.verb} ", 0.3), (tail, BACKGROUND), (". ", 0.3)]
    return [*text[:-1], (".", 0.3)]


def conversation(evidence: Text, turns: list[tuple[str, list[str], str]]) -> Text:
    """Evidence, an empty line and the first question in the first turn, a question alone in every other.

    Args:
        evidence: what stands before the first question; nothing for a question without facts.
        turns: (question with a gap for each name, names, answer).
    """
    text: Text = [(USER, BACKGROUND), *evidence]
    if evidence:
        text += [("\n", BACKGROUND)] * (1 if evidence[-1][0] == "\n" else 2)
    for i, (question, names, answer) in enumerate(turns):
        parts = question.split("{}")
        pieces = [parts[0], *(piece for pair in zip(names, parts[1:], strict=True) for piece in pair)]
        text += [(USER, BACKGROUND)] * bool(i) + [(piece, BACKGROUND) for piece in pieces]
        text += [(END, BACKGROUND), (ASSISTANT, BACKGROUND), (answer, 1.0), (END, 1.0)]
    return text


def look_up(rng: random.Random, fact: Fact) -> tuple[str, list[str], str]:
    """The turn that asks for the fact's tail."""
    head, relation, tail = fact
    return rng.choice(relation.questions), [head], tail


def dialogue(rng: random.Random, pool: list[str], size: int) -> Text:
    """A list of facts, then a question for each of them in random order."""
    facts = sample_facts(rng, pool, size)
    return conversation(lines(facts), [look_up(rng, fact) for fact in rng.sample(facts, len(facts))])


def repetition(rng: random.Random, pool: list[str], size: int) -> Text:
    """The same list three times in different orders: from the second time on every tail can be known."""
    facts = sample_facts(rng, pool, size)
    text: Text = [(USER, BACKGROUND)]
    for weight in (BACKGROUND, 1.0, 1.0):
        text += lines(rng.sample(facts, len(facts)), weight)
    return text


def prose(rng: random.Random, pool: list[str], size: int) -> Text:
    """A paragraph, then questions about it."""
    facts = sample_facts(rng, pool, size)
    return conversation(sentences(facts), [look_up(rng, fact) for fact in rng.sample(facts, len(facts))])


def closed(rng: random.Random, pool: list[str], size: int) -> Text:
    """Facts that decide a type, a count or a link, and look-ups among the same facts."""
    names = rng.sample(pool, 10)
    kind = rng.choice(("type", "count", "path"))
    if kind == "count":
        works = rng.randint(1, len(COUNTS))
        facts = [(names[i], RELATIONS_OF["work"][0], names[9]) for i in range(works)]
        turns = [(COUNT_QUESTION, [names[9]], COUNTS[works - 1])]
    elif kind == "path":
        tails = names[4:7], names[7:10]
        answer = rng.choice(YES_NO)
        if answer == "yes":
            place = rng.randrange(3)
            tails[1][place] = tails[0][place]
        facts = [(names[i], RELATIONS_OF["person"][j], tails[i][j]) for i in range(2) for j in range(3)]
        turns = [(PATH_QUESTION, names[:2], answer)]
    else:
        facts = sample_facts(rng, pool, size)
        kinds = {name: k for h, relation, t in facts for name, k in ((h, relation.head), (t, relation.tail))}
        turns = [(TYPE_QUESTION, [name], kinds[name]) for name in rng.sample(sorted(kinds), 2)]
    if kind == "count":
        facts += sample_facts(rng, pool, max(2, size - len(facts)), "both")
    rng.shuffle(facts)
    turns += [look_up(rng, fact) for fact in rng.sample(facts, min(4, len(facts)))]
    rng.shuffle(turns)
    return conversation(lines(facts), turns)


def bare(rng: random.Random, pool: list[str], size: int) -> Text:
    """Closed questions with no facts at all: every answer is as likely as the others of its kind."""
    first, second = rng.sample(pool, 2)
    turns = [
        (TYPE_QUESTION, [first], rng.choice(TYPES)),
        (COUNT_QUESTION, [first], rng.choice(COUNTS)),
        (PATH_QUESTION, [first, second], rng.choice(YES_NO)),
    ]
    return conversation([], [rng.choice(turns)])


KINDS = {"dialogue": dialogue, "repetition": repetition, "prose": prose, "closed": closed, "bare": bare}


def random_text(rng: random.Random, pool: list[str], facts: int, mix: dict[str, float]) -> tuple[str, Text]:
    """A text of a kind drawn by the weights of `mix`, with half to all of `facts` facts; returns kind and text.

    A third of the texts begin with an empty line, as a prompt does whose first line is a graph.
    """
    kind = rng.choices(list(mix), list(mix.values()))[0]
    text = KINDS[kind](rng, pool, rng.randint(max(2, facts // 2), facts))
    return kind, text if rng.random() > 0.33 else [text[0], ("\n", BACKGROUND), *text[1:]]
