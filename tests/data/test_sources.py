"""Reading files, folders and hub ids: what comes out, and the one message for each mistake."""

import json
import time
from pathlib import Path

import datasets
import fsspec
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from jaxft.data import textfiles
from jaxft.data.sources import quiet, read
from jaxft.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data"
BOTH = {"text": "text", "label": "label"}
FIRST = {"text": 0, "label": 1}


@pytest.fixture
def write(tmp_path):
    def to(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return to


def rows(dataset):
    return [tuple(row.values()) for row in dataset]


# --- what comes out ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label,more\n"one, two",x,1\nthree,y,2\n'),
        ("a.tsv", "more\ttext\tlabel\n1\tone, two\tx\n2\tthree\ty\n"),
        ("a.txt", "\ufefftext\tlabel\r\none, two\tx\r\nthree\ty\r\n"),
        ("a.jsonl", '\n{"text": "one, two", "label": "x"}\n{"label": "y", "text": "three"}\n'),
        ("a.json", '[\n{"text": "one, two", "label": "x"},\n{"text": "three", "label": "y"}\n]'),
        ("a.ndjson", '\ufeff\n{"text": "one, two", "label": "x"}\n{"text": "three", "label": "y"}'),
    ],
)
def test_each_text_format_gives_wanted_columns_and_lines(write, name, content):
    found = read(write(name, content), {"text": "text", "text_pair": None, "label": "label"})
    assert found.column_names == ["text", "label", "line"]
    assert rows(found) == [("one, two", "x", 2), ("three", "y", 3)]


def test_a_line_is_where_its_row_starts_whatever_came_before(write):
    path = write("a.csv", 'text,label\n"two\nlines",x\n\nafter a blank,y\n')
    assert read(path, BOTH)["line"][:] == [2, 5]
    assert read(write("a.json", '[{"text":\n"a"}, {"text": "b"},\n\n{"text": "c"}]'), {"text": 0})[
        "line"
    ][:] == [1, 2, 4]


def test_a_delimiter_wins_over_the_extension_and_opens_any_extension(write):
    assert rows(read(write("a.csv", "text;label\na,b;x\n"), BOTH, delimiter=";")) == [
        ("a,b", "x", 2)
    ]
    assert read(write("a.all", "text\tlabel\na\tx\n"), BOTH, delimiter="\\t")["text"][:] == ["a"]


def test_a_space_delimiter_leaves_the_rest_of_the_line_to_the_last_field(write):
    positions = {"text": 1, "label": 0}
    bare = write("a.txt", 'NUM:dist How far is "it ?\nHUM Who ?\n')
    found = read(bare, positions, delimiter=" ", header=False)
    assert rows(found) == [('How far is "it ?', "NUM:dist", 1), ("Who ?", "HUM", 2)]
    headed = write("b.txt", "label text\nNUM How far ?\n")
    assert rows(read(headed, BOTH, delimiter=" ")) == [("How far ?", "NUM", 2)]


def test_fields_longer_than_the_csv_modules_limit_are_read(write):
    assert len(read(write("a.csv", "text,label\n" + "x" * 200_000 + ",y\n"), BOTH)["text"][0]) == (
        200_000
    )


def test_json_keeps_the_types_of_labels_and_null_texts(write):
    path = write("a.jsonl", '{"text": null, "label": [1, 2]}\n{"text": "b", "label": []}\n')
    assert rows(read(path, BOTH)) == [(None, [1, 2], 1), ("b", [], 2)]


def test_parquet_is_read_by_name_and_position_with_categories_and_class_names(tmp_path):
    frame = pd.DataFrame({"text": ["a", "b"], "kind": pd.Categorical(["x", "y"])})
    frame.to_parquet(tmp_path / "a.parquet")
    found = read(str(tmp_path / "a.parquet"), {"label": 1, "text": "text"})
    assert rows(found) == [("x", "a", 1), ("y", "b", 2)]
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    named = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    named.to_parquet(tmp_path / "b.parquet")
    assert read(str(tmp_path / "b.parquet"), BOTH)["label"][:] == ["yes", "no", None]


def test_saved_folders_give_the_split_asked_for_and_class_names(tmp_path):
    labels = List(ClassLabel(names=["joy", "fear"]))
    features = Features({"body": Value("string"), "label": labels})
    whole = Dataset.from_dict({"body": ["a", "b"], "label": [[1, 0], []]}, features=features)
    splits = DatasetDict(train=whole, test=whole.select([1]).flatten_indices())
    with quiet():
        splits.save_to_disk(tmp_path / "both")
        whole.save_to_disk(tmp_path / "one")
    columns = {"text": "body", "label": "label"}
    expected = [("a", ["fear", "joy"], 1), ("b", [], 2)]
    assert rows(read(str(tmp_path / "one"), columns)) == expected
    assert rows(read(str(tmp_path / "both"), columns)) == expected
    assert rows(read(f"{tmp_path / 'both'}:test", columns)) == [("b", [], 1)]
    with pytest.raises(UserError, match=r"no split 'dev'; it has train, test"):
        read(f"{tmp_path / 'both'}:dev", columns)
    (tmp_path / "one" / "data-00000-of-00001.arrow").write_bytes(b"torn")
    with pytest.raises(UserError, match="damaged data set folder"):
        read(str(tmp_path / "one"), columns)


def test_urls_are_read_through_fsspec():
    with fsspec.open("memory://bucket/a.csv", "w") as file:
        file.write("text,label\na,x\n")
    assert rows(read("memory://bucket/a.csv", BOTH)) == [("a", "x", 2)]
    with pytest.raises(UserError, match=r"no such file or folder. Close to it there: a.csv"):
        read("memory://bucket/b.csv", BOTH)
    with pytest.raises(UserError, match="cannot be opened: ValueError"):
        read("nothing://bucket/a.csv", BOTH)


def test_a_hub_id_is_loaded_with_its_configuration_and_split(monkeypatch, tmp_path):
    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return Dataset.from_dict({"text": ["a"], "label": [0]})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert rows(read("nyu-mll/glue/sst2:validation", BOTH)) == [("a", 0, 1)]
    read("imdb", BOTH, split="test")
    assert asked == [
        (("nyu-mll/glue", "sst2"), {"split": "validation"}),
        (("imdb", None), {"split": "test"}),
    ]


def test_a_hub_out_of_reach_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"(?s)no file or folder here.*save_to_disk.*HF_HUB_OFFLINE"
    ):
        read("some-owner/some-set", BOTH)


def test_quiet_leaves_the_progress_bars_and_logging_as_they_were():
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity_info()
    try:
        before = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
        with quiet():
            assert datasets.are_progress_bars_disabled()
            assert datasets.logging.get_verbosity() > before[1]
        assert (datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()) == before
    finally:
        datasets.logging.set_verbosity(level)


# --- mistakes ---------------------------------------------------------------------------------

HEADED = "text,label\na,x\nb,y\n"


@pytest.mark.parametrize(
    ("name", "content", "columns", "options", "said"),
    [
        ("a.csv", "", BOTH, {}, "is empty"),
        ("a.csv", "\ufeff \n\n", BOTH, {}, "is empty"),
        ("a.parquet", "", BOTH, {}, "is empty"),
        ("a.jsonl", "\n\n", BOTH, {}, "is empty"),
        ("a.json", "[]", BOTH, {}, "no rows"),
        ("a.csv", "text,label\n", BOTH, {}, "no rows under the header in line 1"),
        ("a.xlsx", "PK", BOTH, {}, r"unknown extension .xlsx. Known are .csv .*data.delimiter"),
        ("a.csv", HEADED, {"text": "txt", "label": "lbl"}, {}, "txt: no.*lbl: no.*'text', 'label'"),
        ("a.csv", "a,a,label\n1,2,3\n", {"text": "a"}, {}, "data.text_column=a: 2 columns are"),
        ("a.csv", HEADED, {"text": 0, "label": 2}, {}, "data.label_column=2: positions are 0 to 1"),
        ("a.csv", HEADED, {"text": -1}, {}, "data.text_column=-1: positions are 0 to 1"),
        ("a.csv", "good,1\nbad,0\n", BOTH, {}, "looks like a row: data.header=false"),
        ("a.csv", "good,1\nbad,0\nfine,1\n", FIRST, {}, "taken as the header.*data.header=false"),
        ("a.csv", HEADED, BOTH, {"header": False}, "position from 0 to 1.*data.header=true"),
        ("a.csv", "text;label\na;x\n", BOTH, {}, "'text;label'.*data.delimiter=';'"),
        ("a.csv", HEADED, BOTH, {"delimiter": "||"}, "one character is allowed"),
        ("a.csv", HEADED, BOTH, {"encoding": "utf-9"}, "no text encoding"),
        ("a.csv", "text,label\na,x\nb\n", BOTH, {}, "line 3: 1 fields, expected 2.*data.quoting"),
        ("a.csv", "text,label\na,x\nb,c,y\n", BOTH, {}, "line 3: 3 fields, expected 2.*delimiter"),
        ("a.csv", 'text,label\na,x\n"b,y\nc,x\n', BOTH, {}, "line 3: a quote opens.*quoting=false"),
        ("a.tsv", 'text\tlabel\n"so" he said\tx\n', BOTH, {}, "line 2: a quote opens.*quoting=fa"),
        (
            "a.tsv",
            't\tl\n"so\tx\nb\ty\nend"\tx\n',
            FIRST,
            {},
            "line 2: .*closes 2 line.*looks like",
        ),
        (
            "a.csv",
            b"text,label\na,x\ncaf\xe9,x\n",
            BOTH,
            {},
            "line 3: byte 0xe9 at offset 18.*latin",
        ),
        ("a.csv", HEADED.encode("utf-16"), BOTH, {}, "line 1: byte 0xff.*data.encoding=utf-16"),
        ("a.csv", "text,label\na\0,x\n", BOTH, {}, "line 2: a NUL byte"),
        ("a.txt", "LABEL one\nLABEL\n", FIRST, {"delimiter": " ", "header": False}, "line 2: 1 f"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"\n', {"text": "text"}, {}, "line 2: broken JSON"),
        ("a.json", '[{"text": "a"},\n{"text": "b"}', {"text": "text"}, {}, "line 2: broken JSON"),
        ("a.json", '[{"text": "a"}] x', {"text": "text"}, {}, "line 1: broken JSON"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', {"text": "text"}, {}, "line 2: a row is an object"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}', {"text": "text"}, {}, "line 2.*there: 'txt'"),
        ("a.jsonl", '{"text": 5}\n', {"text": "text"}, {}, "line 1: 'text' is text.*a int"),
        ("a.jsonl", '{"text": "\\ud83d"}\n', {"text": "text"}, {}, "surrogate"),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n',
            BOTH,
            {},
            r"one type, found int \(line 1\), str \(line 2\)",
        ),
        ("a.parquet", "PAR1 torn", BOTH, {}, "not a whole Parquet file"),
    ],
)
def test_each_mistake_in_a_file_is_one_message(write, name, content, columns, options, said):
    path = write(name, content)
    with pytest.raises(UserError, match=f"(?s){said}") as raised:
        read(path, columns, **options)
    # A wrong option is about the option; all else says which file.
    assert path in str(raised.value) or "data." in str(raised.value)


def test_a_numeric_header_as_pandas_writes_it_is_no_row(write):
    assert len(read(write("a.csv", "0,1\ngood,1\nbad,0\n"), FIRST)) == 2


def test_a_multi_line_tsv_text_is_not_taken_for_swallowed_rows(write):
    assert len(read(write("a.tsv", 'text\tlabel\n"two\nlines"\tx\n'), BOTH)) == 1


def test_a_text_column_of_numbers_in_parquet_is_refused(tmp_path):
    pd.DataFrame({"text": [1, 2]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'text' is text, found"):
        read(str(tmp_path / "a.parquet"), {"text": "text"})


def test_a_missing_file_names_its_neighbours_and_a_plain_folder_its_files(write, tmp_path):
    write("train.csv", HEADED)
    with pytest.raises(UserError, match=r"no such file or folder\. Close to it there: train\.csv"):
        read(str(tmp_path / "trian.csv"), BOTH)
    with pytest.raises(UserError, match="Nothing there is called so"):
        read(str(tmp_path / "no" / "such.csv"), BOTH)
    with pytest.raises(UserError, match=r"not one written by .*Give one of its files: train.csv"):
        read(str(tmp_path), BOTH)


def test_the_csv_field_limit_of_the_process_is_restored(write):
    before = textfiles.csv.field_size_limit()
    with pytest.raises(UserError):
        read(write("a.csv", 'text,label\n"b,y\n'), BOTH)
    assert textfiles.csv.field_size_limit() == before


# --- real files -------------------------------------------------------------------------------

PAIR = {"text": "#1 String", "text_pair": "#2 String", "label": "Quality"}
TREC = {"delimiter": " ", "header": False, "encoding": "latin-1"}


@pytest.mark.skipif(not REAL.exists(), reason="the real data of ../shared/data is absent")
@pytest.mark.parametrize(
    ("name", "columns", "options", "count", "labels"),
    [
        ("sst2/train.tsv", FIRST, {"header": False}, 6920, 2),
        ("trec/TREC.train.all", {"text": 1, "label": 0}, TREC, 5452, 6),
        ("trec/raw_TREC.train", {"text": 1, "label": 0}, TREC, 5452, 50),
        ("trec/raw_TREC.test", {"text": 1, "label": 0}, TREC, 500, 42),
        ("mrpc/msr_paraphrase_train.txt", PAIR, {"quoting": False}, 4076, 2),
        ("mrpc/msr_paraphrase_test.txt", PAIR, {"quoting": False}, 1725, 2),
        ("stsb/stsb-en-train.csv", {"text": 0, "text_pair": 1, "label": 2}, {"header": 0}, 5749, 0),
        ("banking77/train.csv", {"text": "text", "label": "category"}, {}, 10003, 77),
        ("goemotions/train.tsv", FIRST, {"header": False}, 43410, 0),
    ],
)
def test_real_files_are_read_whole_and_fast(name, columns, options, count, labels):
    start = time.process_time()
    found = read(str(REAL / name), columns, **options)
    assert time.process_time() - start < 2
    assert len(found) == count
    assert all(text.strip() for text in found["text"])
    assert not labels or len(set(found["label"])) == labels
    if not labels:
        json.loads(f"[{','.join(found['label'])}]")  # numbers, or numbers between commas
