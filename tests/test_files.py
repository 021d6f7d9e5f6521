"""Writing files: replaced as a whole, links followed, pipes and devices written to."""

import os
import stat
import sys
import tomllib
from threading import Thread

import pytest
from conftest import REPOSITORY

from jaxft import card, files, summary
from jaxft.errors import UserError
from jaxft.workdir import Workdir


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/file")  # first there is none
    for content in (b"one", b"two"):
        files.write_file(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "file").read_bytes() == content
    assert os.listdir(tmp_path / "real") == ["file"]


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    heard = []
    reader = Thread(target=lambda: heard.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()
    files.write_file(tmp_path / "pipe", b"rows")
    reader.join(10)
    assert heard == [b"rows"]
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_writing_that_fails_leaves_the_old_content_and_nothing_else(tmp_path):
    files.write_file(tmp_path / "file", b"old")
    with pytest.raises(TypeError), files.replacing(tmp_path / "file") as file:
        file.writelines([b"new", "no bytes"])  # type: ignore[list-item]
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_two_that_write_beside_each_other_have_what_they_wrote(tmp_path):
    names = ("out.shard1.jsonl", "out.shard2.jsonl")
    with (
        files.replacing(tmp_path / names[1]) as second,
        files.replacing(tmp_path / names[0]) as first,
    ):
        first.write(b"one")
        second.write(b"two")
    assert [(tmp_path / name).read_bytes() for name in names] == [b"one", b"two"]
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_a_bucket_without_its_package_names_the_extra_that_has_it(monkeypatch):
    """The `tpu` extra has it too: launch/tpu_vm.sh takes no other workdir."""
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://b/run.*gcsfs.*pip install 'jaxft\[gcs\]'"):
        files.locate("gs://b/run")
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"]
    assert any(needed.startswith("gcsfs") for needed in extras["gcs"])
    assert "jaxft[gcs]" in extras["tpu"]


def test_scores_that_are_not_finite_are_numbers_again_when_a_result_is_read(tmp_path, capsys):
    """Its second start and its export write them."""
    workdir = Workdir(str(tmp_path))
    scores = {"loss": 800.0, "perplexity": float("inf"), "pearson": float("nan")}
    made = {
        "step": 2,
        "best_step": 2,
        "validation": scores,
        "before": {},
        "baseline": {"validation": None},
        "examples_per_s": 1.0,
    }
    workdir.write_json("result.json", {**made, "device": "8 x cpu", "steady_tokens_per_s": None})
    read = workdir.result()
    assert read["validation"] == pytest.approx(scores, nan_ok=True)
    assert (read["device"], read["steady_tokens_per_s"]) == ("8 x cpu", None)
    shown = "loss 800.0000, perplexity inf, pearson nan"
    assert f"| validation | {shown} |" in card._scores(read)
    said = []
    summary.announce(read, workdir, said.append)
    assert f"  validation  {shown}" in said
    assert '"perplexity": "Infinity"' in capsys.readouterr().out
    assert Workdir(str(tmp_path / "none")).result() is None
