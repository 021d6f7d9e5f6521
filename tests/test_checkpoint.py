"""What is kept, what is never picked up, and that a checkpoint is the state at its step."""

import itertools
import shutil
import threading
import time
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from jaxft.checkpoint import Checkpoints, check_room
from jaxft.errors import UserError
from jaxft.sharding import make_mesh

STEP = {"step": np.zeros(1, np.int32)}


@pytest.fixture
def opened(tmp_path):
    """Opens the checkpoints of one folder; all are closed at the end."""
    made = []

    def make(**options: Any) -> Checkpoints:
        made.append(Checkpoints(epath.Path(tmp_path / "checkpoints"), **options))
        return made[-1]

    yield make
    for checkpoints in made:
        checkpoints.close()


def save(checkpoints: Checkpoints, step: int, score: float | None = None, **meta: Any) -> None:
    params = {"kernel": jnp.full(4, step, jnp.float32)}
    scores = None if score is None else {"loss": -score, "accuracy": score}
    checkpoints.save(step, params=params, optimizer=STEP, meta=meta, scores=scores)


HISTORIES = {
    "the best came early": ([0.9, 0.1, 0.2, 0.3], {}, [1, 4], 1),
    "a later equal one is no better": ([0.1, 0.5, 0.5, 0.5, 0.1], {}, [2, 5], 2),
    "lower is better": ([0.5, 0.1, 0.2, 0.3], {"lower_is_better": True}, [2, 4], 2),
    "NaN is never the best": ([0.1, float("nan"), float("nan"), float("nan")], {}, [1, 4], 1),
    "NaN is never the lowest": ([0.1, 9.0, float("nan")], {"lower_is_better": True}, [1, 3], 1),
    "saves without a score do not push it out": ([0.9, None, None, None], {}, [1, 4], 1),
    "the best two": ([0.9, 0.1, 0.8, 0.3, 0.2], {"keep_best": 2}, [1, 3, 5], 1),
    "none is kept for its score": ([0.9, 0.1], {"keep_best": 0, "keep_last": 2}, [1, 2], None),
    "the last two": ([0.9, 0.1, 0.2, 0.3], {"keep_last": 2}, [1, 3, 4], 1),
}


@pytest.mark.parametrize("what", HISTORIES)
def test_pitfall_16_the_best_checkpoint_survives_rotation(what, opened):
    scores, options, kept, best = HISTORIES[what]
    checkpoints = opened(**{"keep_last": 1, "keep_best": 1, "metric": "accuracy"} | options)
    for step, score in enumerate(scores, 1):
        save(checkpoints, step, score)
    checkpoints.wait()
    assert checkpoints.steps == kept
    assert checkpoints.best == best
    reopened = opened(
        **{"keep_last": 1, "keep_best": 1, "metric": "accuracy"} | options, writes=False
    )
    assert (reopened.steps, reopened.best) == (kept, best)


def test_another_metric_may_decide_after_a_restart(opened):
    first = opened(keep_last=1, keep_best=1, metric="loss")
    save(first, 1, 0.9)
    save(first, 2, 0.1)
    first.close()
    second = opened(keep_last=1, keep_best=1, metric="accuracy")
    assert second.best == 2
    save(second, 3, 0.05)
    second.wait()
    assert (second.steps, second.best) == ([2, 3], 2)


def test_nothing_was_scored(opened):
    checkpoints = opened(keep_last=2, metric="accuracy")
    save(checkpoints, 1)
    checkpoints.wait()
    assert checkpoints.best is None


@pytest.mark.parametrize("split", [PartitionSpec(), PartitionSpec("data")])
def test_a_checkpoint_is_the_state_at_its_step_though_donated_updates_run_while_it_is_written(
    opened, split
):
    sharding = NamedSharding(make_mesh({"data": -1}), split)

    @partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def update(x: jax.Array) -> jax.Array:
        return x * 1.5 + 1

    x = update(jax.device_put(jax.random.normal(jax.random.key(0), (1024, 1024)), sharding))
    expected = np.array(x)
    checkpoints = opened()
    checkpoints.save(1, params={"kernel": x}, optimizer=STEP, meta={}, scores=None)
    for _ in range(5):
        x = update(x)
    jax.block_until_ready(x)
    checkpoints.wait()
    abstract = {"kernel": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)}
    assert np.array_equal(checkpoints.restore(abstract).params["kernel"], expected)


def test_pitfall_14_a_reader_leaves_a_save_in_progress_alone_and_a_writer_removes_a_torn_one(
    opened, tmp_path
):
    save(first := opened(), 1)
    first.close()
    torn = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "1", torn)
    reader = opened(writes=False)
    assert reader.steps == [1]
    reader.close()
    time.sleep(0.2)  # orbax cleans in a thread
    assert torn.exists(), "the run that is writing it would fail"
    writer = opened(writes=True)
    assert writer.steps == [1]
    save(writer, 3)
    writer.wait()
    assert not torn.exists()


def test_pitfall_15_a_writer_that_outlives_its_failed_save_does_not_spoil_the_next(
    opened, tmp_path
):
    said: list[str] = []
    checkpoints, late = opened(say=said.append), tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    save(checkpoints, 1)
    checkpoints.wait()
    over = threading.Event()

    def write(number: int) -> None:
        late.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            (late / str(number)).touch()

    def write_on() -> None:
        for number in itertools.takewhile(lambda _: not over.is_set(), itertools.count(1000)):
            write(number)

    for number in range(1000):  # which take a while to remove
        write(number)

    writer = threading.Thread(target=write_on)
    writer.start()
    threading.Timer(0.5, over.set).start()
    checkpoints._failed(OSError(28, "No space left on device"))
    save(checkpoints, 3)
    checkpoints.wait()
    writer.join()
    assert [line.partition(",")[0] for line in said] == ["WARNING: a checkpoint could not be saved"]
    assert checkpoints.steps == [3]


def test_a_step_that_is_there_keeps_its_score(opened):
    checkpoints = opened(keep_last=1, keep_best=1, metric="accuracy")
    save(checkpoints, 1, 0.5)
    save(checkpoints, 1, None)
    checkpoints.wait()
    assert checkpoints.best == 1


def test_what_a_run_remembers_comes_back(opened):
    save(first := opened(), 1, losses=[0.1 + 0.2], evaluations=[[1, {"loss": 1 / 3}]], nothing=None)
    first.close()
    abstract = {"kernel": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=jnp.zeros(4).sharding)}
    meta = opened(writes=False).restore(abstract).meta
    assert meta == {"losses": [0.1 + 0.2], "evaluations": [[1, {"loss": 1 / 3}]], "nothing": None}


def test_a_step_that_is_not_there_is_refused_by_name(opened):
    save(checkpoints := opened(), 1)
    checkpoints.wait()
    with pytest.raises(UserError, match=r"has no step 7; there are \[1\]"):
        checkpoints.restore({}, step=7)


def test_room_is_counted_for_the_checkpoints_to_come_only(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=300)
    )
    folder = epath.Path(tmp_path) / "not" / "yet" / "there"
    with pytest.raises(UserError, match="4 checkpoints of 1e-07 GB"):
        check_room(folder, 100, 4)
    assert [str(path) for path in asked] == [str(tmp_path)]
    (folder / "12").mkdir(parents=True)
    check_room(folder, 100, 4)  # one is there already
    check_room(epath.Path("gs://bucket/run"), 10**15, 4)
