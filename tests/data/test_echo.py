"""Rows as they were, for the answers to stand beside."""

import gzip
import json

import pytest
from datasets import Dataset

from jaxft.data.echo import read_raw

ROWS = [{"id": "1", "text": "one, two"}, {"id": "2", "text": "three"}]
CSV = 'id, text\n1,"one, two"\n2,three\n'


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv", CSV, {}),
        ("a.CSV.gz", CSV, {}),
        ("a.list", CSV, {"delimiter": ","}),
        (
            "a.txt",
            CSV.replace('"', "").replace(",", ";").replace("one;", "one,"),
            {"delimiter": ";"},
        ),
        ("a.jsonl", "\n".join(map(json.dumps, ROWS)), {"delimiter": ","}),
    ],
)
def test_text_files_give_all_columns_whatever_they_are_called(tmp_path, name, content, options):
    path, data = tmp_path / name, content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read_raw(str(path), **options) == ROWS


def test_columns_without_a_header_have_their_positions(tmp_path):
    (tmp_path / "a.tsv").write_text("x\ty\nz\tw\n")
    found = read_raw(str(tmp_path / "a.tsv"), header=False)
    assert found == [{"0": "x", "1": "y"}, {"0": "z", "1": "w"}]


def test_other_sources_have_no_such_rows(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "words").write_text("first line\nsecond line\n")
    assert read_raw(str(tmp_path / "saved"), delimiter=",") is None
    assert read_raw(str(tmp_path / "a.parquet")) is None
    assert read_raw(str(tmp_path / "words"), delimiter=" ") is None
