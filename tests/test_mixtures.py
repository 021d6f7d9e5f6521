"""Several sources in one run: shares by weight, and named sets that show what is forgotten."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
import talk

from jaxft import train
from jaxft.data.features import Rows, read_splits
from jaxft.data.plan import Plan
from jaxft.errors import UserError
from jaxft.sections import Data
from jaxft.stderr import silently
from jaxft.tasks import classify

EPOCHS = 4
COUNTS, WEIGHTS = (60, 23, 200), (0.6, 0.3, 0.1)
WANTED = [60, 30, 10]
"""Items of each source in an epoch: all of the first, the others in proportion."""


def mixture(packing: str, **changed) -> Plan:
    lengths = np.random.default_rng(0).integers(3, 30, sum(COUNTS))
    given = {"lengths": lengths, "batch_size": 8, "max_length": 32, "seed": 1, "epochs": EPOCHS}
    return Plan(**given | {"packing": packing, "counts": COUNTS, "weights": WEIGHTS} | changed)


def dealt(plan: Plan, epoch: int) -> list[int]:
    """The examples of an epoch."""
    size = plan.batches_per_epoch
    batches = [plan[k][0] for k in range(epoch * size, (epoch + 1) * size)]
    return sorted(int(i) for batch in batches for i in batch[batch >= 0])


@pytest.mark.parametrize("packing", ["batch", "none"])
def test_an_epoch_is_one_pass_over_the_first_source_and_a_share_of_the_others(packing):
    plan = mixture(packing)
    edges = np.cumsum([0, *COUNTS])
    for epoch in range(EPOCHS):
        counted, _ = np.histogram(dealt(plan, epoch), edges)
        assert counted.tolist() == WANTED
        assert dealt(plan, epoch)[:60] == list(range(60))


@pytest.mark.parametrize("packing", ["batch", "none"])
def test_every_example_of_a_smaller_share_has_its_turn_before_one_comes_again(packing):
    plan = mixture(packing)
    long = [i - 83 for epoch in range(EPOCHS) for i in dealt(plan, epoch) if i >= 83]
    assert len(set(long)) == len(long) == 40, "40 of 200, none twice"
    short = [i for epoch in range(EPOCHS) for i in dealt(plan, epoch) if 60 <= i < 83]
    times = np.bincount(np.asarray(short) - 60, minlength=23)
    assert times.sum() == 120
    assert times.min() == 5
    assert times.max() == 6


def test_rows_of_max_length_are_mixed_by_rows_and_no_row_holds_two_sources():
    plan = mixture("rows")
    edges = np.cumsum([0, *COUNTS])
    sources = []
    for k in range(plan.batches_per_epoch):
        for row in plan[k][0]:
            if (row >= 0).any():
                (source,) = set(np.searchsorted(edges, row[row >= 0], side="right") - 1)
                sources.append(source)
    shares = np.bincount(sources, minlength=3)
    assert shares[1] == round(shares[0] * 0.5)
    assert shares[2] == round(shares[0] / 6)


def test_a_mixture_is_a_function_of_seed_and_k():
    one, other = mixture("batch"), mixture("batch", row_unit=4)
    late = 3 * one.batches_per_epoch + 2
    assert np.array_equal(np.unique(one[late][0]), np.unique(other[late][0]))
    assert dealt(mixture("batch", seed=2), 0) != dealt(one, 0)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixture")
    return {
        "model": talk.folder(root),
        "mine": talk.lines(root / "mine.jsonl", talk.questions()),
        "other": talk.lines(root / "other.jsonl", talk.questions("Stir", "Paint")),
        "root": root,
    }


def test_pitfall_33_what_is_forgotten_is_scored_before_training_and_at_every_evaluation(
    sources, capsys
):
    raw = talk.recipe(sources["model"], sources["mine"])
    raw["data"] |= {
        "train": repr({str(sources["mine"]): 0.5, str(sources["other"]): 0.5}),
        "evaluations": repr({"other": str(sources["other"])}),
    }
    raw["train"] = {"max_steps": 6, "batch_size": 8, "eval_steps": 3}
    workdir = sources["root"] / "run"
    train.main(talk.words(raw, workdir))
    shown = capsys.readouterr()
    rows = {
        r["step"]: r["eval/other/loss"] for r in runs.metrics(workdir) if "eval/other/loss" in r
    }
    assert sorted(rows) == [0, 3, 6]
    result = json.loads((workdir / "result.json").read_text())
    assert result["before"]["eval/other"]["loss"] == pytest.approx(rows[0])
    assert result["eval/other"]["loss"] < rows[0], "it is in the mixture"
    assert "step 0: eval/other loss" in shown.err
    assert "(before training: loss" in shown.err


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"mine": -1.0, "other": 1.0}, ">= 0"),
        ({"mine": 0.0, "other": 1.0}, "whose weight must be above 0"),
        ({"mine": 0.0, "other": 0.0}, "whose weight must be above 0"),
    ],
)
def test_a_weight_that_makes_no_mixture_is_refused(weights, words, sources, capsys):
    raw = talk.recipe(sources["model"], sources["mine"])
    raw["data"]["train"] = repr({str(sources[name]): w for name, w in weights.items()})
    workdir = sources["root"] / "never"
    message = runs.refused(capsys, "train", talk.words(raw, workdir))
    assert words in message
    assert not workdir.exists()


def test_a_source_all_of_whose_rows_are_dropped_is_refused_by_name(sources, capsys):
    long = [{"prompt": "Mix: ", "completion": "word " * 200}]
    lost = talk.lines(sources["root"] / "lost.jsonl", long)
    raw = talk.recipe(sources["model"], sources["mine"])
    raw["data"] |= {"train": repr({str(sources["mine"]): 0.5, str(lost): 0.5}), "max_dropped": 0.5}
    message = runs.refused(capsys, "train", talk.words(raw, sources["root"] / "never"))
    assert f"{lost}: no row is left" in message


CELLS = {
    "text.csv": ["1", "2"],
    "floats.csv": ["1.0", "2.00"],
    "whole.jsonl": [2, 1],
    "real.jsonl": [2.0, 1.0],
    "large.parquet": ["1", "2"],
    "lists.jsonl": [["1"], []],
    "numbered.jsonl": [[1, 2], [2]],
}


def mixed(folder: Path, *names: str, **keys) -> dict[str, Rows]:
    """What `train` reads of a mixture of files of these names, with those labels."""
    for name in names:
        rows = [{"text": f"{name} {i}", "label": cell} for i, cell in enumerate(CELLS[name])]
        if name.endswith(".parquet"):  # as polars writes it
            long = pa.schema([("text", pa.large_string()), ("label", pa.large_string())])
            pq.write_table(pa.Table.from_pylist(rows, long), folder / name)
        elif name.endswith(".csv"):
            runs.table(folder / name, [tuple(row.values()) for row in rows])
        else:
            talk.lines(folder / name, rows)
    sources = {str(folder / name): 1.0 for name in names}
    data = Data(train=sources, validation=next(iter(sources)), **keys)
    return read_splits(classify, data, classify.Options(), silently)


@pytest.mark.parametrize("text", ["text.csv", "floats.csv"])
@pytest.mark.parametrize("other", ["whole.jsonl", "real.jsonl", "large.parquet"])
def test_labels_may_be_text_in_one_source_and_numbers_in_another(text, other, tmp_path):
    rows = mixed(tmp_path, text, other)["train"]
    task = classify.Task.from_rows(classify.Options(), rows, ())
    assert task.labels == ("1", "2")
    assert rows.dataset["origin"][:] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("names", "keys", "unread"),
    [
        (["whole.jsonl"], {"delimiter": ",", "header": False}, "data.delimiter=,, data.header=F"),
        (["whole.jsonl"], {"encoding": "ascii"}, ""),
        (["large.parquet"], {"encoding": "ascii"}, "data.encoding=ascii"),
        (["large.parquet", "whole.jsonl"], {"quoting": False}, "data.quoting=False"),
        (["large.parquet", "whole.jsonl"], {"encoding": "ascii"}, ""),
        (["whole.jsonl", "text.csv"], {"delimiter": ",", "quoting": False}, ""),
    ],
)
def test_pitfall_25_how_text_is_written_is_said_where_a_source_reads_it(
    names, keys, unread, tmp_path
):
    if not unread:
        assert mixed(tmp_path, *names, **keys)
        return
    with pytest.raises(UserError) as error:
        mixed(tmp_path, *names, **keys)
    assert str(error.value).startswith(unread)
    assert all(name in str(error.value) for name in names)


def test_lists_of_labels_are_mixed_with_lists_alone(tmp_path):
    rows = mixed(tmp_path, "lists.jsonl", "numbered.jsonl")["train"]
    assert rows.dataset["label"][:] == [["1"], [], ["1", "2"], ["2"]]
    with pytest.raises(UserError, match=r"lists in .*lists\.jsonl, but not in .*text\.csv"):
        mixed(tmp_path, "text.csv", "lists.jsonl")
