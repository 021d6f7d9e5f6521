import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxft.data.inspection import Split, inspect
from jaxft.html import write_report
from jaxft.svg import Series, line_chart, short, smooth

LABELS = ["billing", "delivery <fast> & free", "refund"]
CONFIG = {
    "model": {"pretrained": "somebody/some-bert", "dropout": None},
    "task": {"name": "classify"},
    "optim": {"learning_rate": 5e-5, "lr_multipliers": {}},
    "seed": 7,
}
RESULT = {
    "step": 90,
    "best_step": 60,
    "validation": {"loss": 0.3, "accuracy": 0.9, "macro_f1": 0.88},
    "test": {"loss": 0.35, "accuracy": 0.875, "macro_f1": 0.86},
    "before": {},
    "wall_s": 134.2,
    "compile_s": 3.5,
    "examples_per_s": 61.2,
    "tokens_per_s": 2000.5,
    "steady_examples_per_s": 72.8,
    "peak_memory_bytes": 1.43e9,
    "device": "2 x cpu",
    "processes": 1,
    "versions": {"jax": "0.10.2"},
    "command": "python -m jaxft.train",
    "baseline": {"test": {"accuracy": 0.4}, "validation": None},
}


def metrics_of(steps: int = 90, depths: int = 3) -> list[dict]:
    rows: list[dict] = []
    for step in range(1, steps + 1):
        row = {"step": step, "time": 1.0 * step, "train/loss": 2 / step, "train/grad_norm": 1.0}
        row |= {"train/tokens_per_s": 2000.0 + step, "train/mfu": 0.25}
        row["train/learning_rate"] = 1e-4 * step
        row |= {f"train/learning_rate/depth_{d:02}": 1e-4 * step / 2**d for d in range(depths)}
        rows.append(row)
        if step % 30 == 0:
            scores = {"validation/loss": 1 / step, "validation/accuracy": step / 100}
            rows.append({"step": step, "time": 1.0 * step, **scores})
    return rows


PARTS = {
    "config": CONFIG,
    "result": RESULT,
    "metrics": metrics_of(),
    "metric": "accuracy",
    "confusion": None,
    "counts": None,
    "labels": LABELS,
    "mistakes": [],
    "inspection": {"splits": {}, "overlap": [], "advice": []},
}


class Page(HTMLParser):
    """Reads a page; fails on a tag that is not closed, or closed by another."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split()).replace("\u00a0", " ")

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)


def written(tmp_path, **parts) -> tuple[str, Page]:
    write_report(tmp_path / "report.html", **(PARTS | parts))
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    for picture in re.findall(r"<svg.*?</svg>", source, re.DOTALL):
        ElementTree.fromstring(picture)  # well-formed XML too
        assert "nan" not in re.sub(r"<title>.*?</title>", "", picture, flags=re.DOTALL).lower()
    return source, Page(source)


def inspection_of(labels: list) -> dict:
    texts = [f"text number {row} of the set" for row in range(len(labels))]
    train = Split(texts, labels, range(4, 4 + len(labels)))
    test = Split(texts[:2], labels[:2], [5, 6])
    return inspect({"train": train, "test": test}, max_length=10) | {"advice": ["a <hint>"]}


def confused(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """The parts of a page that follow from who was taken for whom."""
    counts = [matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix)]
    return {"confusion": matrix, "counts": np.stack(counts, axis=1)}


@pytest.fixture
def full(tmp_path):
    return written(
        tmp_path,
        **confused(np.array([[3, 1, 0], [0, 4, 0], [2, 0, 6]])),
        mistakes=[
            {"text": "<script>alert(1)</script> & 5 < 6", "truth": LABELS[1]}
            | {"prediction": "billing", "confidence": 0.97},
            {"text": "x" * 5000, "text_pair": "second", "truth": ["a", "b"], "prediction": []},
        ],
        inspection=inspection_of([*["refund"] * 5, *["billing"] * 3]),
    )


def test_the_page_says_what_was_reached_against_always_the_commonest_class(full):
    text = full[1].text
    assert "87.5 % accuracy on the test set" in text
    assert "Always giving the commonest answer would reach 40.0 %." in text
    assert "best checkpoint is step 60 of 90, 90.0 % on validation." in text
    assert "2 min 14 s" in text
    assert "1.43 GB" in text


def test_the_page_needs_nothing_from_elsewhere_and_runs_no_script(full):
    source = full[0].lower()
    for way_out in ("http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link"):
        assert way_out not in source, way_out
    assert "prefers-color-scheme: dark" in source
    assert 'name="viewport"' in source


def test_texts_are_escaped_and_long_ones_cut(full):
    source, page = full
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; 5 &lt; 6" in source
    assert "<script>alert(1)</script> & 5 < 6" in page.text
    assert "delivery <fast> & free is true 97.0% sure" in page.text
    assert "none was answered, a, b is true" in page.text
    assert "x" * 700 + "…" in page.text
    assert "x" * 701 not in page.text


def test_the_confusion_matrix_shows_counts_shares_and_the_commonest_mistakes(full):
    source, page = full
    assert 'title="refund → billing: 2 of 8 (25.0%)"' in source
    assert "Most often refund taken for billing: 2 of 8" in page.text
    # precision 6 of 6, recall 6 of 8
    assert "refund 1.000 0.750 0.857 8 6" in page.text


def test_classes_are_told_one_by_one_where_a_row_may_have_several(tmp_path):
    counts = np.array([[4, 2, 1], [0, 3, 0], [5, 0, 0]])
    page = written(tmp_path, counts=counts)[1]
    assert "Class by class class precision recall F1 rows answers" in page.text
    for told in ("billing 0.500 0.250 0.333 4 2", "free 0.000 0.000 0.000 0 3", "refund 0.000"):
        assert told in page.text
    assert "answers went" not in page.text


def test_curves_carry_tooltips_the_best_step_and_one_line_a_depth(full):
    source, page = full
    assert "<title>step 60\ntrain, as logged 0.03333\n" in source
    assert "accuracy 30\u00a0%" in source
    assert source.count('class="mark"') == 2
    assert "Learning rate by depth" in page.text
    assert all(f"depth 0{depth} " in source for depth in range(3))
    assert "More curves" in page.text
    assert "train/mfu" in page.text


def test_data_config_and_environment_are_listed(full):
    text = full[1].text
    for part in ("train 8 0 7 10 11 12.50 %", "2 classes train test refund 5 2 billing 3 0"):
        assert part in text, part
    for part in ("Tokens in a row of train", "test rows in train 2 0", "a <hint>", "jax 0.10.2"):
        assert part in text, part
    for part in ("pretrained somebody/some-bert", "dropout None", "learning_rate 5e-05", "seed 7"):
        assert part in text, part


def test_a_regression_without_test_set_is_held_against_the_mean(tmp_path):
    result = RESULT | {"validation": {"pearson": 0.81, "mse": 0.4}}
    result |= {"baseline": {"validation": {"mse": 2.19, "r2": 0.0}}}
    del result["test"]
    mistakes = [{"text": "a", "truth": 1.0, "prediction": 3.45678}]
    rows = [{"step": 10, "time": 1.0, "validation/pearson": 0.81}]
    inspection = inspection_of([0.5, 1.5, 2.5])
    given = {"result": result, "mistakes": mistakes, "metrics": rows, "inspection": inspection}
    page = written(tmp_path, **given, metric="pearson")[1]
    assert "train 3 0" in page.text
    assert "0.810 pearson on the validation set" in page.text
    assert "3.457 was answered, 1 is true" in page.text
    assert "pearson mse validation 0.810 0.400 always the mean – 2.190" in page.text
    assert "commonest answer" not in page.text
    assert "Class by class" not in page.text


def test_texts_without_a_true_answer_are_shown_with_their_loss(tmp_path):
    page = written(tmp_path, mistakes=[{"row": 3, "text": "Once upon", "loss per token": 4.25}])[1]
    assert "Where it went most wrong Once upon 4.25 loss a learnt token" in page.text
    assert "was answered" not in page.text


CHAT = {"loss": 2.0, "perplexity": 7.389, "exact_match": 0.25}


@pytest.mark.parametrize(
    ("metric", "told"), [("exact_match", "0.250 exact match"), ("loss", "7.389 perplexity")]
)
def test_the_page_is_headed_by_the_score_that_chose(tmp_path, metric, told):
    result = RESULT | {"validation": CHAT, "test": CHAT, "baseline": {"test": None}}
    result["baseline"]["validation"] = None
    page = written(tmp_path, result=result, metric=metric)[1]
    assert f"{told} on the test set" in page.text
    assert f"step 60 of 90, {told.split()[0]} on validation" in page.text


def test_named_evaluation_sets_stand_with_their_scores_before_and_after(tmp_path):
    held = {"loss": 2.5, "accuracy": 0.75, "macro_f1": 0.5}
    result = RESULT | {"before": {"eval/old": held}, "eval/old": held | {"accuracy": 0.5}}
    rows = [{"step": step, "time": 1.0, "eval/old/loss": 1.0 + step} for step in (0, 90)]
    source, page = written(tmp_path, result=result, metrics=rows)
    assert "eval/old before 2.500 75.0 % 0.500 eval/old after 2.500 50.0 % 0.500" in page.text
    assert source.count("<circle") == 2
    assert "smoothed" not in source


def test_pitfall_11_a_nan_is_marked_in_the_curve_and_never_joined_over(tmp_path):
    rows = metrics_of()
    rows[40]["train/loss"] = "NaN"
    rows[41]["train/loss"] = float("inf")
    result = RESULT | {"test": {"accuracy": math.nan}}
    source, page = written(tmp_path, metrics=rows, result=result)
    assert page.text.count("NaN accuracy on the test set") == 1
    assert source.count('class="bad"') == 2
    assert re.search(r"<title>step \d+: train, as logged is NaN</title>", source)
    raw = re.search(r'class="faint" d="([^"]*)"', source)
    assert raw is not None
    assert raw[1].count("M") == 2


def test_long_runs_and_many_classes_stay_small_and_keep_their_spikes(tmp_path):
    rows = metrics_of(20000, 8)
    rows[11111]["train/grad_norm"] = 999.0
    size = 77
    matrix = np.eye(size, dtype=int) * 30
    source, _ = written(
        tmp_path, metrics=rows, **confused(matrix), labels=[f"class {i}" for i in range(size)]
    )
    assert len(source) < 1_500_000
    grad = source[source.index("Gradient norm") :]
    heights = re.findall(r"L[\d.]+ ([\d.]+)", re.search(r'class="faint" d="([^"]*)"', grad)[1])
    assert min(map(float, heights)) < 40 < 200 < max(map(float, heights))


def test_pitfall_17_of_very_many_classes_the_commonest_mistakes_are_told(tmp_path):
    size = 800
    matrix = np.eye(size, dtype=int) * 30
    matrix[3, 5] = 7
    source, page = written(tmp_path, **confused(matrix), labels=[f"class {i}" for i in range(size)])
    assert "class 3 taken for class 5: 7 of 37" in page.text
    assert "800 classes are too many" in page.text
    assert len(source) < 500_000


def test_the_page_can_be_written_to_an_object_store():
    import fsspec

    url = "memory://html-bucket/report.html"
    write_report(url, **PARTS)
    fs = fsspec.filesystem("memory")
    assert b"87.5" in fs.cat_file(url)
    fs.rm_file(url)


@pytest.mark.parametrize(
    "ys", [[0.0, 0.0], [5.0], [1e-9, 2e-9], [-3.0, 1e6], [math.nan], [0.1, math.inf, 0.2]]
)
@pytest.mark.parametrize("log", [False, True])
def test_a_chart_of_any_numbers_lies_within_its_frame(ys, log):
    chart = line_chart("t", [Series(name="s", points=list(enumerate(ys)), kind="dots")], log=log)
    numbers = re.findall(r' (?:cx|cy|x1|x2|y1|y2|x|y)="([^"]*)"', chart)
    assert numbers
    assert all(-1 <= float(value) <= 520 for value in numbers)


def test_smoothing_has_no_lag_and_leaves_nans_out():
    ramp = [(float(x), float(x)) for x in range(100)]
    middle = smooth(ramp, 0.1)[20:80]
    assert all(x == pytest.approx(y) for x, y in middle)
    assert [x for x, _ in smooth([(0.0, 1.0), (1.0, math.nan), (2.0, 3.0)])] == [0.0, 2.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345, "12,345"),
        (0.1 + 0.2, "0.3"),
        (2e-05, "2e-05"),
        (0, "0"),
        (-math.inf, "-∞"),
        (math.nan, "NaN"),
        (12345.678, "12,346"),
        (-2.0, "-2"),
    ],
)
def test_numbers_are_written_as_people_do(value, text):
    assert short(value) == text
