import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from jaxft import metrics

LABELS = ["billing", "delivery", "refund"]


def test_classification_equals_the_library_on_random_answers():
    rng = np.random.default_rng(0)
    predicted, true = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    scores = metrics.classification(predicted, true, LABELS)
    assert scores == pytest.approx(
        {
            "accuracy": sk.accuracy_score(true, predicted),
            "macro_f1": sk.f1_score(true, predicted, average="macro"),
            "micro_f1": sk.f1_score(true, predicted, average="micro"),
            "matthews": sk.matthews_corrcoef(true, predicted),
        }
    )
    assert next(iter(scores)) == "accuracy"
    assert all(type(value) is float for value in scores.values())


def test_a_class_that_the_split_lacks_neither_warns_nor_costs():
    scores = metrics.classification([0, 1, 0], [0, 1, 0], LABELS)
    assert scores == {"accuracy": 1.0, "macro_f1": 1.0, "micro_f1": 1.0, "matthews": 1.0}
    # predicted but never true: it counts, with F1 0
    assert metrics.classification([0, 2], [0, 1], LABELS)["macro_f1"] == pytest.approx(1 / 3)
    assert metrics.classification([0], [0], ["only"])["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("predicted", "true"), [([0, 3], [0, 1]), ([0, -1], [0, 1]), ([0], [0, 1]), ([], [])]
)
def test_impossible_classes_and_unequal_lengths_are_refused(predicted, true):
    with pytest.raises(ValueError, match=r"class|want"):
        metrics.classification(predicted, true, LABELS)


def test_multi_label_equals_the_library_and_counts_exact_matches():
    rng = np.random.default_rng(1)
    chance, true = rng.random((50, 3)), rng.integers(0, 2, (50, 3))
    scores = metrics.multi_label(chance, true, LABELS)
    assert scores == pytest.approx(
        {
            "micro_f1": sk.f1_score(true, chance >= 0.5, average="micro"),
            "macro_f1": sk.f1_score(true, chance >= 0.5, average="macro"),
            "accuracy": sk.accuracy_score(true, chance >= 0.5),
        }
    )


def test_multi_label_without_any_positive_neither_warns_nor_crashes():
    scores = metrics.multi_label(np.zeros((4, 3)), np.zeros((4, 3)), LABELS)
    assert scores == {"micro_f1": 0.0, "macro_f1": 0.0, "accuracy": 1.0}
    one = metrics.multi_label([[0.9], [0.1]], [[1], [1]], ["only"])
    assert one["micro_f1"] == pytest.approx(2 / 3)
    assert one["accuracy"] == 0.5


def test_regression_equals_the_library():
    rng = np.random.default_rng(2)
    true = rng.normal(size=80)
    predicted = (true + rng.normal(size=80)).astype(np.float32)
    scores = metrics.regression(predicted[:, None], true)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(predicted, true)[0])
    assert scores["spearman"] == pytest.approx(stats.spearmanr(predicted, true)[0])
    assert scores["mse"] == pytest.approx(sk.mean_squared_error(true, predicted))
    assert scores["mae"] == pytest.approx(sk.mean_absolute_error(true, predicted))


@pytest.mark.parametrize("predicted", [[2.5, 2.5, 2.5], [2.5, 2.5, np.nextafter(2.5, 3)]])
def test_constant_regression_predictions_give_no_correlation_and_no_warning(predicted):
    scores = metrics.regression(predicted, [1.0, 2.0, 3.0])
    assert scores["mse"] == pytest.approx((1.5**2 + 0.5**2 + 0.5**2) / 3)
    if len(set(predicted)) == 1:
        assert scores["pearson"] == scores["spearman"] == 0.0
    assert metrics.regression([1.0], [2.0])["pearson"] == 0.0


def test_pitfall_11_a_nan_prediction_is_not_averaged_away():
    assert all(np.isnan(v) for v in metrics.regression([1.0, np.nan], [1.0, 2.0]).values())
    scores = metrics.multi_label([[0.2, np.nan, 0.9]], [[0, 0, 1]], LABELS)
    assert all(np.isnan(value) for value in scores.values())


def test_the_confusion_matrix_has_a_row_for_each_true_class():
    predicted, true = [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 0]
    matrix = metrics.confusion_matrix(predicted, true, LABELS)
    assert matrix.tolist() == [[1, 1, 0], [2, 2, 0], [0, 0, 0]]


def test_pitfall_23_a_run_that_predicts_one_class_only_says_so():
    warning = metrics.one_class_warning([1, 1, 1, 1], [0, 1, 2, 1], LABELS)
    assert "'delivery' for all 4 rows" in warning
    assert "50.0%" in warning
    for advice in ("learning_rate", "warmup_steps", "seed", "bias correction"):
        assert advice in warning
    assert metrics.one_class_warning([1, 1, 1, 0], [0, 1, 2, 1], LABELS) is None
    assert metrics.one_class_warning([1, 1], [1, 1], LABELS) is None  # only that class is there
    assert metrics.majority_share([1, 1, 1, 0]) == 0.75


def test_the_constant_answer_of_a_regression_is_a_mean():
    assert metrics.constant_answer({"mse": 2.19, "r2": 0.0}) == "the mean"
    assert metrics.constant_answer({"accuracy": 0.4}) == "the commonest answer"


def test_pitfall_23_the_same_number_for_all_rows_is_warned_of_where_the_right_ones_differ():
    said = metrics.one_number_warning([2.5, 2.5, 2.5], [1.0, 2.0, 4.0])
    assert "answers 2.5 for all 3 rows (the right ones are 1 to 4)" in said
    assert metrics.one_number_warning([2.5, 2.5, 2.5], [1.0, 1.0, 1.0]) is None
    assert metrics.one_number_warning([2.5, 2.5, 2.6], [1.0, 2.0, 4.0]) is None
