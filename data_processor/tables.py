"""Questions from a table: CSV, JSON or Parquet files, or a data set of the Hub; columns by name, seeded splits."""

from __future__ import annotations

import gzip
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_processor.schema import QAPair, Rejected

logger = logging.getLogger(__name__)

READERS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".json": "json", ".jsonl": "json"}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # owner/name
# what a column can stand for, and the columns that are taken where no name is given
ROLES = ("question", "answer", "id", "type", "group")
USUAL = {"question": "question", "answer": "answer"}
TRAIN = "train"  # the one split of a file
# what `datasets` and pandas say of a file without rows; StopIteration says nothing
NO_ROWS = ("", 'Instruction "train" corresponds to no data!', "No columns to parse from file")


class Row(NamedTuple):
    """A question, the group that stays together with it, and whether the table itself says that it is tested on."""

    pair: QAPair
    group: str
    test: bool


@dataclass(frozen=True)
class Table:
    """Where questions stand and how they are divided; every field is a flag of finetune.py of the same name.

    Attributes:
        train_split: of a data set of the Hub, and that from which others are taken.
        columns: `ROLE=COLUMN` with a role of ROLES; a column inside another is written `outer.inner`.
        dataset_config, dataset_revision: of a data set of the Hub.
        test_rows: `COLUMN=VALUE` of the rows that are tested on.
        test_size: rows that are tested on, where the table has neither such rows nor a split for them.
        validation, validation_size: whether, and how many, rows are taken out of training to be validated on.
        subset: rows that are trained on, drawn from those left; None: all.
        split_seed: of the draws. Rows with one value of the column `group` stay together.
    """

    train_split: str = TRAIN
    columns: tuple[str, ...] = ()
    dataset_config: str | None = None
    dataset_revision: str | None = None
    test_rows: str | None = None
    test_size: int = 0
    validation: bool = True
    validation_size: int = 1000
    subset: int | None = None
    split_seed: int = 0

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Table:
        """From flags by name, others are left out."""
        given = {field.name: flags[field.name] for field in fields(cls) if field.name in flags}
        return cls(**given | {"columns": tuple(given.get("columns") or ())})


# ------------------------------------------------------------------------------------------------------------- reading
def is_table(path: str, columns: Sequence[str] | None = None) -> bool:
    """Whether a path is read as a table.

    CSV and Parquet are; JSON with `columns` or a column "question" is, else it holds conversations; and what does not
    exist here is, if it can be a name on the Hub.
    """
    file = Path(path)
    if not file.exists():
        return is_hub_name(path)
    if file.is_dir() or not columns and suffix_of(file) not in READERS:
        return False
    if columns or READERS[suffix_of(file)] != "json":
        return True
    return USUAL["question"] in first_row(file)


def is_hub_name(path: str) -> bool:
    """Whether a path that does not exist can be the name of a data set of the Hub."""
    return HUB_NAME.fullmatch(path) is not None and suffix_of(Path(path)) not in READERS


def suffix_of(file: Path) -> str:
    """The kind of a file, without `.gz`."""
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def first_row(file: Path) -> dict[str, Any]:
    """The first object of a JSON file, as far as its beginning shows it; without one, nothing."""
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8-sig", errors="replace") as opened:
        text = opened.read(1 << 16).lstrip("[ \t\r\n")
    try:
        row, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return {name: None for name in re.findall(r'"(\w+)"\s*:', text)}
    return row if isinstance(row, dict) else {}


def read_splits(path: str, table: Table) -> dict[str, Any]:
    """The splits of a table by name as `datasets.Dataset`s, nested columns flattened; a file has the split "train".

    Raises:
        ValueError: the data set or the file cannot be had or read.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    file = Path(path)
    if file.is_file() and suffix_of(file) not in READERS:
        raise ValueError(f"{path} is no table: --columns reads {', '.join(READERS)}. Convert it, or leave it out.")
    try:
        if file.is_file():
            kind = READERS[suffix_of(file)]
            more = {"sep": "\t"} if suffix_of(file) == ".tsv" else {}
            loaded = datasets.load_dataset(kind, data_files=str(file), **more)
        else:
            loaded = datasets.load_dataset(path, table.dataset_config, revision=table.dataset_revision)
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise ValueError(
            f"{path!r} is neither a file here nor a data set of the Hub that can be reached. Check the name in "
            "--data_path; log in with `hf auth login` if it is private."
        ) from error
    except (DatasetGenerationError, StopIteration, ValueError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        said = "has zero rows" if reason in NO_ROWS else f"could not be read as a table ({reason})"
        raise ValueError(f"{path} {said}. Check the file, or --dataset_config.") from error
    return {name: split.flatten() for name, split in loaded.items()}


def column_map(columns: Sequence[str], there: Sequence[str], path: str) -> dict[str, str]:
    """Role -> column.

    Raises:
        ValueError: a word that is no `ROLE=COLUMN`, or a column that does not exist; the sentence lists those that do.
    """
    wanted = dict(USUAL)
    if "answers" in there and "answer" not in there:
        wanted["answer"] = "answers"
    for word in columns:
        role, _, column = word.partition("=")
        if role not in ROLES or not column:
            raise ValueError(f"--columns {word} is no ROLE=COLUMN. The roles are {', '.join(ROLES)}.")
        wanted[role] = column
    for role, column in wanted.items():
        if column not in there:
            raise ValueError(
                f"{path} has no column {column!r} for the {role}. It has: {', '.join(there)}. Name one with "
                f"--columns {role}=COLUMN."
            )
    return wanted


def usable_rows(split: Any, columns: Mapping[str, str], name: str, test: str | None, rejected: Rejected) -> list[Row]:
    """The rows with a question and an answer; the others go to `rejected` with their number, from 1.

    Args:
        split: a `datasets.Dataset`. columns: see `column_map`. name: of the split, in `rejected`.
        test: `COLUMN=VALUE` of the rows that are tested on.
    """
    labels = {column: feature.int2str for column, feature in split.features.items() if "names" in vars(feature)}
    column, _, value = (test or "").partition("=")
    rows, taken = [], set()
    for number, row in enumerate(split, start=1):
        values = {role: row[one] for role, one in columns.items()}
        key = str(values.get("id", number))
        try:
            values |= {role: labels[one](row[one]) for role, one in columns.items() if one in labels}
            if key in taken:
                raise ValueError(f"the id {key!r} stands in an earlier row")
            pair = to_pair(key, values)
        except ValueError as error:
            rejected.add(Path(name), number, str(error), {"id": key})
            continue
        taken.add(key)
        rows.append(Row(pair, str(values.get("group", key)), test is not None and str(row[column]) == value))
    return rows


def to_pair(key: str, values: Mapping[str, Any]) -> QAPair:
    """The question of a row; ValueError says what it lacks."""
    question, given = values["question"], values["answer"]
    if not isinstance(question, str) or not question.strip():
        raise ValueError("the question is empty")
    answers = tuple(str(one) for one in (given if isinstance(given, list) else [given]) if one not in (None, ""))
    if not answers or not all(one.strip() for one in answers):
        raise ValueError("the answer is empty")
    kind = values.get("type")
    return QAPair(key, question.strip(), answers, type=None if kind is None else str(kind))


# ------------------------------------------------------------------------------------------------------------ dividing
def open_table(
    path: str, table: Table, wanted: Mapping[str, str | None], rejected: Rejected
) -> dict[str, list[QAPair]]:
    """The splits that a run reads, "train", "validation" and "test", as lists of questions.

    What the table itself calls by the wanted names is taken as it is. Else test rows are taken out of the training
    rows, then validation rows, each by whole groups, and a name means those: "test" and "validation" under any key,
    the training split's name under a key those of the key. The test rows do not depend on what else is wanted.

    Args:
        path: a file or a name on the Hub.
        wanted: key -> name of a split, None for one that is not read. rejected: takes unusable rows.

    Raises:
        ValueError: see `read_splits`, `column_map` and `divide`; an unknown name; a split that would have no row.
    """
    splits = read_splits(path, table)
    train = table.train_split
    if train not in splits:
        raise ValueError(f"{path} has no split {train!r}. It has: {', '.join(splits)}. Name one with --train_split.")
    column = (table.test_rows or "").partition("=")[0]
    if table.test_rows and column not in splits[train].column_names:
        has = ", ".join(splits[train].column_names)
        raise ValueError(f"--test_rows {table.test_rows}: {path} has no column {column!r}. It has: {has}.")
    own = [name for name in splits if name != train and not (table.test_rows and name == "test")]
    wanted = {key: name for key, name in wanted.items() if name} | ({"train": train} if wanted.get("train") else {})
    taken = {key: key if name == train else name for key, name in wanted.items() if name not in own}
    if unknown := set(taken.values()) - {"train", "validation", "test"}:
        has = f"It has: {', '.join(splits)}; validation and test are taken out of {train!r} where it has none"
        raise ValueError(f"{path} has no split {min(unknown)!r}. {has}.")
    rows = {}
    for name in dict.fromkeys([train, *(name for name in wanted.values() if name in own)]):
        columns, marked = column_map(table.columns, splits[name].column_names, path), table.test_rows
        rows[name] = usable_rows(splits[name], columns, f"{path}:{name}", marked if name == train else None, rejected)
    tested = {"test", wanted.get("test")} & set(own)
    divided = divide(rows[train], table, not tested, "validation" in taken.values())
    return {
        key: checked(divided.get(taken[key], []) if key in taken else rows[name], taken.get(key, name), path, table)
        for key, name in wanted.items()
    }


def divide(rows: list[Row], table: Table, test: bool, validate: bool) -> dict[str, list[Row]]:
    """The rows left for "train", and the "test" and "validation" rows that are taken out of them.

    `test` and `validate` say whether rows are to be taken, if the table's settings name any; ValueError says that
    `test_size` leaves nothing to train on.
    """
    found, rest = {}, rows
    if table.test_rows:
        found["test"], rest = [row for row in rest if row.test], [row for row in rest if not row.test]
    elif test and table.test_size:
        if 0 < len(rest) <= table.test_size:
            raise ValueError(f"--test_size {table.test_size} of {len(rest)} rows leaves none to train on. Lower it.")
        found["test"], rest = held_out(rest, table.test_size, table.split_seed)
    if validate and table.validation:
        if table.validation_size >= len(rest):
            sizes = table.validation_size, len(rest)
            logger.warning("--validation_size %d of %d rows leaves none to train on: a tenth is held out.", *sizes)
        found["validation"], rest = held_out(rest, table.validation_size, table.split_seed + 1)
    return found | {"train": drawn(rest, table.subset, table.split_seed)}


def checked(rows: list[Row], name: str, path: str, table: Table) -> list[QAPair]:
    """The questions of a split; ValueError if it has none."""
    if rows:
        return [row.pair for row in rows]
    untold = "Set --test_size N or --test_rows COLUMN=VALUE"
    told = {
        "train": "Every row is tested on, or was rejected",
        "validation": "Set --validation True with --validation_size, or --eval_strategy no",
        "test": f"No row has {table.test_rows}" if table.test_rows else untold,
    }
    raise ValueError(f"The split {name!r} of {path} has zero rows. {told.get(name, 'Every row was rejected')}.")


def held_out(rows: list[Row], size: int, seed: int) -> tuple[list[Row], list[Row]]:
    """(held out, the rest): whole groups, drawn until there are `size` rows, or a tenth where that would leave none.

    The last group is never drawn: of one group nothing is held out.
    """
    counts = Counter(row.group for row in rows)
    groups = sorted(counts)
    random.Random(seed).shuffle(groups)
    size = size if size < len(rows) else max(1, len(rows) // 10)
    before = np.cumsum([0, *(counts[group] for group in groups)])  # rows of the groups in front of each
    chosen = {group for group, total in zip(groups[:-1], before, strict=False) if total < size}
    return [row for row in rows if row.group in chosen], [row for row in rows if row.group not in chosen]


def drawn(rows: list[Row], count: int | None, seed: int) -> list[Row]:
    """`count` of the rows in their order, or all."""
    if count is None or count >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), count))]
