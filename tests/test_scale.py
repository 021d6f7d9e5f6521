"""Two rows of docs/scale.md, compiled again."""

import importlib.util
import re
import sys
from functools import cache
from types import ModuleType

import pytest
from tpu import ROOT, needs_libtpu

SAME = 0.05
"""Relative difference of bytes: another libtpu allocates otherwise."""
GOAL_BYTES = 80e9
"""Llama-3-8B's full fine-tuning on one chip."""


@cache
def scale() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["scale"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented_gb(number: int) -> float:
    """The peak that the page gives for a row."""
    (found,) = re.findall(rf"^\| {number} \|.*", (ROOT / "docs/scale.md").read_text(), re.MULTILINE)
    cells = [cell.strip() for cell in found.strip("|").split("|")]
    return float(cells[scale().COLUMNS.index("peak GB")])


@needs_libtpu
@pytest.mark.parametrize(
    ("number", "most_bytes"), [(1, 16e9), (6, GOAL_BYTES)], ids=["BERT-base", "8 B on one chip"]
)
def test_a_row_of_the_table_is_what_the_compiler_says(number, most_bytes, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, config, topology, keys = scale().ROWS[number - 1]
    _, found = scale().plan(config, topology, keys)
    assert found["fits"]
    assert found["update"]["peak_bytes"] <= most_bytes
    assert found["update"]["peak_bytes"] / 1e9 == pytest.approx(documented_gb(number), rel=SAME)
