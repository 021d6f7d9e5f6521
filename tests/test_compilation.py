"""Compiled programs are kept between starts, where the user says."""

import jax
import pytest
import runs
from jobs import FASTER

from jaxft import compilation
from jaxft.compilation import keep_compiled
from jaxft.errors import UserError

ALONE = {"JAX_NUM_CPU_DEVICES": "1"}
NAME = "jax_compilation_cache_dir"


@pytest.fixture(autouse=True)
def cache_of_the_tests():
    before = jax.config.values[NAME]
    yield
    jax.config.update(NAME, before)


def test_the_second_start_compiles_nothing_anew(tmp_path, tiny_bert_folder):
    keys = {"model.pretrained": tiny_bert_folder} | runs.tables(tmp_path)
    keys |= {"train.max_steps": 1, "train.eval_steps": 1, "optim.warmup_steps": 0}
    environment = FASTER | {"JAX_NUM_CPU_DEVICES": "1"}
    kept = []
    for number in range(2):
        words = [
            *runs.argv(keys, tmp_path / str(number)),
            f"--compilation_cache_dir={tmp_path}/xla",
        ]
        _, err = (process := runs.start(words, **environment)).communicate(timeout=150)
        assert process.returncode == 0, err
        assert f"Compilation cache: {tmp_path}/xla" in err
        kept.append({path.name for path in (tmp_path / "xla").iterdir()})
    assert any("train_step" in name for name in kept[0])
    assert kept[1] == kept[0]


@pytest.mark.parametrize(
    ("folder", "variable", "processes", "where"),
    [
        (None, None, 1, "{home}/jaxft/xla"),
        (None, "{home}/mine", 1, "{home}/mine"),
        ("{home}/flag", "{home}/mine", 1, "{home}/flag"),
        ("none", "{home}/mine", 1, None),
        (None, None, 2, None),
        ("gs://bucket/xla", None, 2, "gs://bucket/xla"),
    ],
)
def test_where_programs_are_kept(folder, variable, processes, where, tmp_path, monkeypatch):
    folder, variable, where = (
        word and word.format(home=tmp_path) for word in (folder, variable, where)
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compilation, "process_count", lambda: processes)
    jax.config.update(NAME, variable)
    said = keep_compiled(folder)
    assert jax.config.values[NAME] == where
    assert (where or "none") in said


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--compilation_cache_dir"):
        keep_compiled(str(tmp_path / "file" / "cache"))
