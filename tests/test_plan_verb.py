"""`plan` as its user meets it: what it prints, its exit codes, and that it fetches nothing."""

import json
import sys
from importlib.util import find_spec
from typing import Any
from unittest import mock

import huggingface_hub
import jax
import pytest
import runs
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from jaxft import flags, plan
from jaxft.planning import places
from jaxft.shapes import fields_of, hub_id

KEYS = {
    "fits",
    "peak_bytes_per_device",
    "hbm_bytes_per_device",
    "compile_s",
    "flops_per_step",
    "suggestions",
}
LLAMA = "--config=configs/llama_sft.py:llama3-1b"


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    """Which files of which models the hub was asked for: none but a config.json. The hub has
    org/small.
    """
    asked: list[tuple[str, str]] = []

    def give(name: str, file: str) -> str:
        validate_repo_id(name)
        asked.append((name, file))
        if name != "org/small":
            raise LocalEntryNotFoundError("no network")
        (tmp_path / file).write_text(json.dumps(fields_of(hub_id("minilm"))))
        return str(tmp_path / file)

    def refuse(name: str, *args: Any, **keys: Any) -> None:
        asked.append((name, "everything"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", give)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    yield asked
    assert {file for _, file in asked} <= {"config.json"}


@pytest.fixture
def call(capsys):
    """Runs the verb; its exit code, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        with mock.patch.object(sys, "argv", ["plan", *words]):
            try:
                flags.run(plan.main)
            except SystemExit as left:
                code = left.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def test_a_run_on_this_machine_is_compiled_and_counted(call, tiny_bert_folder, hurry):
    finished = runs.finished(tiny_bert_folder)
    code, out, err = call(*runs.argv(finished.keys), "--json")
    report = json.loads(out)
    assert code == 0
    assert report.keys() >= KEYS
    assert report["fits"]
    assert report["suggestions"] == []
    assert report["device_kind"] == jax.devices()[0].device_kind
    assert report["mesh"]["data"] == 8
    assert report["steps"] == 12
    data = report["data"]
    assert data["examples"] == 37
    assert data["truncated"] == 0
    assert 37 * 9 <= data["tokens"] <= 37 * runs.LENGTH
    assert report["compile_s"] > 0
    assert report["collectives"]["all-reduce"]["bytes"] > report["estimate"]["parameters"]
    assert report["peak_bytes_per_device"] >= report["estimate"]["parameters"] * 3
    assert max(report["learning_rates"]) == pytest.approx(1e-2)
    held = 3 * report["estimate"]["parameters"]  # the weights and two moments
    assert report["checkpoint_bytes"] == pytest.approx(held, abs=16)
    assert report["checkpoints"] == 4
    assert "Compiling" in err


def test_the_text_begins_with_the_answer(call):
    words = (LLAMA, "--no_compile", "--rows=1000", "--price=1.2")
    code, out, _ = call("--topology=v5e:2x4", *words)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("FITS meta-llama/Llama-3.2-1B on v5e:2x4 (8 x TPU v5 lite)")
    assert "1.24 B" in out
    assert "126" in out  # updates: two passes over 1000 rows, 16 at a time
    assert "per chip and hour" in out
    assert any(level in out for level in "▁▂▃▄▅▆▇█")
    assert "No: take an adapter (LoRA on every linear layer) here." in out
    assert "task.exact_match" not in out
    assert max(map(len, lines)) <= 100


def test_the_advice_follows_the_flags(call):
    def planned(*words: str) -> dict[str, Any]:
        domain = (LLAMA, "--topology=h100:8", "--json", "--objective=domain")
        return json.loads(call(*domain, *words)[1])

    def reasons(report: dict[str, Any]) -> str:
        return " ".join(reason["text"] for reason in report["advice"]["reasons"])

    alone = planned("--rows=1000", "--price=2")
    assert alone["advice"]["choice"] == "full"
    assert "budget" not in reasons(alone)
    tight = planned("--rows=1000", "--price=2", f"--budget={0.8 * alone['bill']}")
    assert f"the bill of {alone['bill']:,.2f} is over the budget" in reasons(tight)
    many = planned("--variants=20")
    assert many["advice"]["choice"] == "adapter"
    assert "20 variants of one base" in reasons(many)


def test_rows_that_are_cut_are_counted(call, tiny_bert_folder):
    keys = runs.finished(tiny_bert_folder).keys | {"data.max_length": 12}
    cut = sum(len(text.split()) + 2 > 12 for text, _ in runs.rows(37, seed=0))
    assert 0 < cut < 37
    _, out, _ = call(*runs.argv(keys), "--no_compile")
    assert f"{cut} ({cut / 37:.1%}) cut to data.max_length=12" in " ".join(out.split())


def test_what_a_plan_leaves_out_is_said(call):
    words = (LLAMA, "--topology=v5e:2x4", "--no_compile", "--config.task.exact_match=text")
    assert "left out     the answers that task.exact_match has the model write" in call(*words)[1]


def test_what_does_not_fit_is_exit_code_1_with_flags_that_help(call):
    words = (LLAMA, "--topology=v5e:2x2", "--no_compile", "--json", "--config.mesh.fsdp=1")
    code, out, _ = call(*words, "--config.mesh.data=-1")
    report = json.loads(out)
    assert code == 1
    assert not report["fits"]
    assert report["peak_bytes_per_device"] > report["hbm_bytes_per_device"]
    assert 1 <= len(report["suggestions"]) <= 3
    assert any("mesh.fsdp" in flag for flag in report["suggestions"][0]["flags"])
    code, out, _ = call(*words[:4], *report["suggestions"][0]["flags"])
    again = json.loads(out)
    assert code == 0
    peak = report["suggestions"][0]["estimated_peak_bytes_per_device"]
    assert again["peak_bytes_per_device"] == peak
    code, out, _ = call(LLAMA.replace("1b", "70b"), "--topology=v5e:1x1", "--no_compile")
    assert code == 1
    assert out.startswith("DOES NOT FIT")
    assert "parameters, gradients and optimizer state" in out
    assert "No change of mesh" in out


def test_what_is_suggested_fits_the_evaluation_too(call):
    words = (LLAMA, "--topology=h100:1", "--config.train.batch_size=256")
    code, out, _ = call(*words)
    assert code == 1
    assert "The evaluation takes the most, with 256 rows at once (train.eval_batch_size)" in out
    first = next(line for line in out.splitlines() if line.startswith("  1. "))
    (flag,) = first.split()[1:]
    assert flag.startswith("--config.train.gradient_accumulation_steps=")
    code, _, _ = call(*words, flag)
    assert code == 0


def test_price_time_and_operations_follow_from_each_other(call):
    words = (LLAMA, "--topology=v5e:2x4", "--no_compile", "--json", "--rows=16000")
    _, out, _ = call(*words, "--price=2", "--mfu=0.5")
    one = json.loads(out)
    _, out, _ = call(*words, "--price=2", "--mfu=0.25")
    slow = json.loads(out)
    assert one["steps"] == 2000
    expected_s = one["flops_per_step"] / (0.5 * 8 * 197e12)
    assert one["step_s"] == pytest.approx(expected_s)
    assert one["step_s_at_best"] < one["step_s"] < slow["step_s"]
    assert one["bill"] == pytest.approx(2 * 8 * 2000 * expected_s / 3600)
    # 6 a weight that multiplies, and attention's share.
    tokens = one["data"]["tokens_per_step"]
    assert 1.0 < one["flops_per_step"] / (6 * 1.2358e9 * tokens) < 1.35


def test_gpus_are_planned_for_without_a_compiler(call):
    code, out, _ = call(LLAMA, "--topology=h100:8", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["compile_s"] is None
    assert report["hbm_bytes_per_device"] == 80e9
    assert report["device_kind"] == "NVIDIA H100"


def test_what_fits_with_the_hosts_memory_is_found_without_a_compiler(call):
    words = (LLAMA.replace("1b", "8b"), "--topology=h100:2", "--json")
    code, out, _ = call(*words)
    report = json.loads(out)
    assert code == 1
    assert report["estimate"]["host"] == 0
    flags_that_fit = next(
        one["flags"]
        for one in report["suggestions"]
        if "--config.optim.offload=True" in one["flags"]
    )
    code, out, _ = call(*words, *flags_that_fit)
    report = json.loads(out)
    assert code == 0
    assert report["estimate"]["host"] * 2 == pytest.approx(12 * report["parameters"]["total"], 1e-3)


def test_offloaded_weights_are_compiled_for(call, tiny_bert_folder, hurry):
    finished = runs.finished(tiny_bert_folder)
    code, out, _ = call(*runs.argv(finished.keys), "--json", "--config.optim.offload=true")
    report = json.loads(out)
    assert code == 0
    assert report["evaluation"]["peak_bytes"] >= report["estimate"]["parameters"]
    assert report["estimate"]["host"] == report["checkpoint_bytes"] - 4 - 8


BAD = {
    ("--topology=v9:2x2",): "v9:2x2 is not known; there is",
    ("--topology=v5e:3x3",): "v5e:{1x1,2x2",
    ("--topology=v5e:4x4", "--no_compile", "--config.mesh.fsdp=3"): "do not multiply to the 16",
    ("--config=configs/bert_cls.py:bert-huge",): (
        "Shapes that are known without one: minilm, bert-base, bert-large"
    ),
    ("--config.model.pretrained=nobody/nothing",): "the hub did not give its config.json",
    ("--config.model.pretrained=./nothing",): "./nothing is no folder here and no hub id",
    ("--config.data.max_length=1000",): "beyond the model's",
    ("--mfu=2",): "--mfu=2.0 must be above 0",
    ("--rows=0",): "--rows=0 must be at least 1",
    ("--objective=wealth",): "wealth",
    ("--topologie=v5e:2x2",): "did you mean --topology?",
}


@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_bad_input_is_one_message_and_exit_code_2(call, words):
    base = () if words[0].startswith("--config=") else ("--config=configs/bert_cls.py:bert-base",)
    code, out, err = call(*base, *words)
    assert code == 2
    assert out == ""
    assert BAD[words] in err


def test_without_libtpu_a_topology_says_what_to_install(call, monkeypatch):
    real = find_spec
    monkeypatch.setattr(places, "find_spec", lambda name: None if name == "libtpu" else real(name))
    code, _, err = call(LLAMA, "--topology=v5e:2x2")
    assert code == 2
    assert "jaxft[tpu]" in err
    assert "--no_compile" in err


def test_of_a_model_that_is_not_here_the_config_alone_is_downloaded(call, hub):
    words = ("--config=configs/bert_cls.py", "--topology=h100:1", "--json")
    code, out, _ = call(*words, "--config.model.pretrained=org/small")
    assert code == 0
    assert json.loads(out)["parameters"]["total"] == pytest.approx(22.7e6, rel=0.01)
    assert hub == [("org/small", "config.json")]


def test_neither_data_nor_tokenizer_need_be_there(call, hub, tmp_path):
    words = ("--topology=v5e:2x2", "--no_compile", "--json", "--config.data.train=none")
    code, out, _ = call("--config=configs/bert_cls.py:bert-base", *words)
    report = json.loads(out)
    assert code == 0
    assert report["data"]["examples"] is None
    assert report["steps"] is None
    assert report["run_hours"] is None
    assert hub == [], "a known shape needs no config.json"
    folder = tmp_path / "model"
    folder.mkdir()
    tiny = {"model_type": "bert", "hidden_size": 64, "num_attention_heads": 2, "vocab_size": 999}
    (folder / "config.json").write_text(json.dumps(tiny))
    own = f"--config.model.pretrained={folder}"
    code, out, _ = call("--config=configs/bert_cls.py", own, *words[:3])
    report = json.loads(out)
    assert code == 0
    assert report["data"]["examples"] == 403, "rows are counted without a tokenizer"
    assert report["parameters"]["total"] < 1e7
