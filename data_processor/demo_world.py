"""The demonstration world: people, works, places and organisations with invented names, and questions about them."""

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice, permutations, product

TYPES = ("person", "work", "place", "organisation")
COUNTS = ("one", "two", "three")
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Relation:
    """A kind of fact: the types it joins, the ways to ask for its tail, and the words that state it."""

    name: str
    head: str
    tail: str
    questions: tuple[str, ...]
    verb: str


RELATIONS = (
    Relation("born in", "person", "place", ("Where was {} born?", "What is the birthplace of {}?"), "was born in"),
    Relation("lives in", "person", "place", ("Where does {} live?", "What is the home of {}?"), "lives in"),
    Relation("works for", "person", "organisation", ("Who does {} work for?", "Who employs {}?"), "works for"),
    Relation("taught by", "person", "person", ("Who taught {}?", "Who was the teacher of {}?"), "was taught by"),
    Relation("written by", "work", "person", ("Who wrote {}?", "Who is the author of {}?"), "was written by"),
    Relation("published by", "work", "organisation", ("Who published {}?", "Who is the publisher of {}?"),
             "was published by"),
    Relation("set in", "work", "place", ("Where is {} set?", "What is the setting of {}?"), "is set in"),
    Relation("based in", "organisation", "place", ("Where is {} based?", "What is the seat of {}?"), "is based in"),
)
TYPE_QUESTION = "What kind of thing is {}?"
COUNT_QUESTION = "How many works did {} write?"
PATH_QUESTION = "Is {} linked to {}?"


def syllables() -> tuple[list[str], list[str]]:
    """The inventory of names: 80 beginnings (`Ka`) and 160 endings (`miro`, `sel`), always the same."""
    consonants, vowels = "bdfghjklmnprstvz", "aeiou"
    open_syllables = ["".join(pair) for pair in product(consonants, vowels)]
    beginnings = [syllable.capitalize() for syllable in open_syllables]
    rng = random.Random(7)
    two = rng.sample(["".join(pair) for pair in product(open_syllables, repeat=2)], 80)
    closed = rng.sample(["".join(pair) for pair in product(open_syllables, "lnrst")], 80)
    return beginnings, two + closed


def name_pool(reserved: bool) -> list[str]:
    """All names of one half of the inventory, in a fixed order.

    Args:
        reserved: True for the quarter kept for the demonstration and for held-out tests, which the base model has
            never read; False for the names it is trained on.
    """
    beginnings, endings = syllables()
    return [
        beginning + ending
        for (i, beginning), (j, ending) in product(enumerate(beginnings), enumerate(endings))
        if ((i + j) % 4 == 0) == reserved
    ]


@dataclass(frozen=True)
class World:
    """Entities and the facts between them; ids are positions in `names`."""

    names: list[str]
    types: list[str]
    facts: list[tuple[int, str, int]]  # head, relation name, tail

    def of_type(self, kind: str) -> list[int]:
        """Ids of the entities of one type, in order."""
        return [i for i, t in enumerate(self.types) if t == kind]

    def incident(self) -> dict[int, list[int]]:
        """For every entity the facts it takes part in, as positions in `facts`."""
        incident = defaultdict(list)
        for row, (head, _, tail) in enumerate(self.facts):
            incident[head].append(row)
            incident[tail].append(row)
        return incident


def make_world(rng: random.Random, names: list[str], people: int) -> World:
    """Invent a world of `people` people, twice as many works, and the places and organisations they need.

    People write one, two and three works in turn, so that the counts are balanced; a person is born and lives in two
    different places.

    Args:
        rng: source of every choice.
        names: unused names; as many as needed are taken from the end.
        people: number of people, a multiple of three.
    """
    sizes = {"person": people, "work": 2 * people, "place": max(8, people // 4), "organisation": max(8, people // 4)}
    types = [kind for kind, size in sizes.items() for _ in range(size)]
    ids = {kind: [i for i, t in enumerate(types) if t == kind] for kind in sizes}
    facts = []
    authors = [person for i, person in enumerate(ids["person"]) for _ in range(1 + i % 3)]
    for person in ids["person"]:
        birthplace, home = rng.sample(ids["place"], 2)
        teacher = rng.choice([p for p in rng.sample(ids["person"], 2) if p != person])
        facts += [(person, "born in", birthplace), (person, "lives in", home),
                  (person, "works for", rng.choice(ids["organisation"])), (person, "taught by", teacher)]
    for work, author in zip(ids["work"], authors, strict=True):
        facts += [(work, "written by", author), (work, "published by", rng.choice(ids["organisation"])),
                  (work, "set in", rng.choice(ids["place"]))]
    facts += [(body, "based in", rng.choice(ids["place"])) for body in ids["organisation"]]
    return World([names.pop() for _ in types], types, facts)


@dataclass(frozen=True)
class Question:
    """A question about a world and the facts retrieved for it, as positions in `World.facts`."""

    text: str
    answer: str
    type: str
    seeds: list[int]
    facts: list[int]
    answer_node: int | None = None  # None: a closed answer, which only the graph tokens carry


def look_ups(world: World, rng: random.Random) -> Iterator[Question]:
    """Every fact of the world asked once, in random order, among 4 to 6 facts that share its head or its relation."""
    relations = {relation.name: relation for relation in RELATIONS}
    of_head, of_relation = defaultdict(list), defaultdict(list)
    for row, (head, name, _) in enumerate(world.facts):
        of_head[head].append(row)
        of_relation[name].append(row)
    for row in rng.sample(range(len(world.facts)), len(world.facts)):
        head, name, tail = world.facts[row]
        own = [other for other in of_head[head] if other != row]
        facts = [row, *rng.sample(own, min(len(own), rng.randint(1, 3)))]
        size = rng.randint(max(4, len(facts)), 6)
        strangers = (other for other in rng.sample(of_relation[name], min(8, len(of_relation[name]))) if other != row)
        facts += islice(strangers, size - len(facts))
        rng.shuffle(facts)
        text = rng.choice(relations[name].questions).format(world.names[head])
        yield Question(text, world.names[tail], "look_up", [head], facts, tail)


def type_questions(world: World, rng: random.Random) -> Iterator[Question]:
    """What kind of thing is X? The four types in turn; the subgraph is four edges at X."""
    incident = world.incident()
    turns = {kind: cycle([i for i in world.of_type(kind) if len(incident[i]) >= 3]) for kind in TYPES}
    for kind in cycle(TYPES):
        seed = next(turns[kind])
        facts = rng.sample(incident[seed], min(4, len(incident[seed])))
        yield Question(TYPE_QUESTION.format(world.names[seed]), kind, "graph_type", [seed], facts)


def count_questions(world: World, rng: random.Random) -> Iterator[Question]:
    """How many works did X write? One, two, three in turn; always five edges at X, the works among them."""
    incident = world.incident()
    for seed in cycle(world.of_type("person")):
        works = [row for row in incident[seed] if world.facts[row][1] == "written by"]
        own = [row for row in incident[seed] if world.facts[row][0] == seed]
        facts = works + rng.sample(own, 5 - len(works))
        rng.shuffle(facts)
        yield Question(COUNT_QUESTION.format(world.names[seed]), COUNTS[len(works) - 1], "graph_count", [seed], facts)


def path_questions(world: World, rng: random.Random) -> Iterator[Question]:
    """Is X linked to Y? Yes and no in turn; the subgraph is three edges at each, which meet in one node or in none."""
    stars = defaultdict(dict)  # person -> {neighbour: fact}
    for row, (head, name, tail) in enumerate(world.facts):
        if name in ("born in", "lives in", "works for"):
            stars[head][tail] = row
    pairs = {answer: [] for answer in YES_NO}
    for first, second in permutations(stars, 2):
        shared = len(stars[first].keys() & stars[second].keys())
        if shared <= 1:
            pairs["yes" if shared else "no"].append((first, second))
    for answer in cycle(YES_NO):
        first, second = rng.choice(pairs[answer])
        facts = [*stars[first].values(), *stars[second].values()]
        rng.shuffle(facts)
        text = PATH_QUESTION.format(world.names[first], world.names[second])
        yield Question(text, answer, "graph_path", [first, second], facts)


def make_questions(world: World, rng: random.Random, count: int) -> list[Question]:
    """`count` questions in random order: a quarter of each closed type, labels balanced, the rest look-ups."""
    share = count // 4
    questions = [
        *islice(type_questions(world, rng), share),
        *islice(count_questions(world, rng), share),
        *islice(path_questions(world, rng), share),
        *islice(look_ups(world, rng), count - 3 * share),
    ]
    rng.shuffle(questions)
    return questions
