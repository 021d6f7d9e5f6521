"""The token cache: a hit only for the same content, tokenizer and options; never a torn one."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from datasets import Dataset, DatasetDict

from jaxft.data import cache
from jaxft.data.cache import cache_key, cached_map, content_hash
from jaxft.data.sources import read
from jaxft.errors import UserError


class Counting:
    """Features that count how often they were asked for."""

    def __init__(self):
        self.calls = 0

    def __call__(self, columns):
        self.calls += 1
        return {"input_ids": [[ord(c) for c in text] for text in columns["text"]]}


@pytest.fixture
def data():
    return Dataset.from_dict({"text": ["a", "bc"], "line": [1, 2]})


def test_pitfall_27_tokens_are_made_again_only_after_a_change(tmp_path):
    features, path, folder = Counting(), tmp_path / "a.csv", str(tmp_path / "tokens")

    def tokens(content="text\na\nbc\n", tokenizer="v1", max_length=8):
        path.write_text(content)
        key = cache_key(content=content_hash(str(path)), tokenizer=tokenizer, max_length=max_length)
        before = features.calls
        made = cached_map(read(str(path), {"text": "text"}), features, key, folder)
        return made["input_ids"][:], features.calls - before

    assert tokens() == ([[97], [98, 99]], 1)
    assert tokens() == ([[97], [98, 99]], 0)
    assert tokens(tokenizer="v2")[1] == 1
    assert tokens(max_length=9)[1] == 1
    assert tokens(content="text\nb\nbc\n") == ([[98], [98, 99]], 1)
    assert tokens()[1] == 0


def test_a_hit_gives_what_was_made_and_only_that(data, tmp_path):
    made = [cached_map(data, Counting(), "key", str(tmp_path)) for _ in range(2)]
    assert made[0].column_names == made[1].column_names == ["input_ids"]
    assert made[0][:] == made[1][:] == {"input_ids": [[97], [98, 99]]}
    assert sorted(os.listdir(tmp_path)) == [".key.lock", "key"], "nothing of the making is left"


@pytest.mark.parametrize("torn", ["state.json", "data-00000-of-00001.arrow"])
def test_a_broken_cache_folder_is_made_again_and_said(data, tmp_path, caplog, torn):
    cached_map(data, Counting(), "key", str(tmp_path))
    whole = (tmp_path / "key" / torn).read_bytes()
    (tmp_path / "key" / torn).write_bytes(whole[: len(whole) // 2])
    again = Counting()
    assert cached_map(data, again, "key", str(tmp_path))["input_ids"][:] == [[97], [98, 99]]
    assert again.calls == 1
    assert "is broken and is made again" in caplog.text


def test_a_failure_while_mapping_leaves_no_folder_behind(data, tmp_path):
    with pytest.raises(UserError, match="label of line 2"):
        cached_map(data, _refuse, "key", str(tmp_path))
    assert os.listdir(tmp_path) == [".key.lock"]


def _refuse(columns):
    raise UserError("the label of line 2")


def test_pitfall_28_those_that_need_the_same_at_once_tokenise_once(data, tmp_path):
    features = Counting()

    def slow(columns):
        time.sleep(0.5)
        return features(columns)

    with ThreadPoolExecutor() as pool:
        made = [pool.submit(cached_map, data, slow, "key", str(tmp_path)) for _ in range(3)]
    assert [one.result()["input_ids"][:] for one in made] == [[[97], [98, 99]]] * 3
    assert features.calls == 1


def test_without_a_folder_the_users_cache_is_taken(data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached_map(data, Counting(), "key", None)
    assert (tmp_path / "jaxft" / "tokens" / "key").is_dir()


def test_a_cache_folder_that_cannot_be_made_is_a_users_mistake(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*data\.cache_dir"):
        cached_map(data, Counting(), "key", str(tmp_path / "file" / "tokens"))


def test_a_key_depends_on_names_and_values_and_not_on_order_or_process():
    key = cache_key(a=1, b={"x": [0.1], "y": None})
    assert key == cache_key(b={"y": None, "x": [0.1]}, a=1)
    assert len({key, cache_key(a=2, b={"x": [0.1], "y": None}), cache_key(c=1), cache_key()}) == 4
    with pytest.raises(TypeError):
        cache_key(tokenizer=object())
    code = "from jaxft.data.cache import cache_key; print(cache_key(a={'b': 1, 'a': 'é'}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == cache_key(a={"a": "é", "b": 1})


def test_content_is_hashed_by_bytes_and_not_by_name(data, tmp_path):
    for name, content in {"a.csv": "x", "b.csv": "x", "c.csv": "y"}.items():
        (tmp_path / name).write_text(content)
    a, b, c = (content_hash(str(tmp_path / name)) for name in ("a.csv", "b.csv", "c.csv"))
    assert a == b != c
    with cache.quiet():
        data.save_to_disk(tmp_path / "saved")
    before = content_hash(str(tmp_path / "saved"))
    assert before == content_hash(f"{tmp_path / 'saved'}:train")
    state = tmp_path / "saved" / "state.json"
    state.write_text(state.read_text() + " ")
    assert content_hash(str(tmp_path / "saved")) != before
    assert content_hash(data) == content_hash(Dataset.from_dict(data.to_dict()))
    assert content_hash(data) != content_hash(data.select([1, 0]))


def test_splits_of_one_folder_have_digests_of_their_own(data, tmp_path):
    with cache.quiet():
        DatasetDict(train=data, test=data.select([1])).save_to_disk(tmp_path / "both")
    both = str(tmp_path / "both")
    train, test = content_hash(both), content_hash(both, "test")
    assert train == content_hash(f"{both}:train") != test == content_hash(f"{both}:test")
    with cache.quiet():
        DatasetDict(train=data, test=data).save_to_disk(tmp_path / "both")
    assert content_hash(both) == train
    assert content_hash(both, "test") != test


def test_without_a_key_tokens_are_made_and_not_kept(data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = cached_map(data, Counting(), None, str(tmp_path / "tokens"))
    assert made[:] == {"input_ids": [[97], [98, 99]]}
    assert os.listdir(tmp_path) == []
