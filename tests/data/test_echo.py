"""Every row with every column, for files whose fields or names are unlike others'."""

import gzip
import json

import pytest

from jaxft.data.echo import read_raw

ROWS = [{"id": "1", "text": "one, two"}, {"id": "2", "text": "three"}]
CSV = 'id, text\n1,"one, two"\n2,three\n'


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv", CSV, {}),
        ("a.CSV.gz", CSV, {}),
        ("a.list", CSV, {"delimiter": ","}),
        ("a.jsonl", "\n".join(map(json.dumps, ROWS)), {"delimiter": ","}),
    ],
)
def test_text_files_give_all_columns_whatever_they_are_called(tmp_path, name, content, options):
    path, data = tmp_path / name, content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read_raw(str(path), **options) == ROWS


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        ("a;b\n1;2\n", {"delimiter": ";"}, [{"a": "1", "b": "2"}]),
        ("1;2\n", {"delimiter": ";", "header": False}, [{"0": "1", "1": "2"}]),
        ("label text\nx a b c\n", {"delimiter": " "}, [{"label": "x", "text": "a b c"}]),
        (
            "x a b c\ny d\n",
            {"delimiter": " ", "header": False, "columns": 2},
            [{"0": "x", "1": "a b c"}, {"0": "y", "1": "d"}],
        ),
        # As pandas writes an index, and spreadsheets empty columns.
        (",text,,\n0,a,,\n", {"delimiter": ","}, [{"0": "0", "text": "a", "2": "", "3": ""}]),
    ],
)
def test_columns_without_a_name_go_by_position(tmp_path, content, options, expected):
    path = tmp_path / "rows.dat"
    path.write_text(content)
    assert read_raw(str(path), **options) == expected
