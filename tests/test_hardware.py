"""What `auto` chooses for a device, and what an explicit choice is refused for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import runs

from jaxft import drawing, hardware
from jaxft.errors import UserError
from jaxft.hardware import (
    choose_attention,
    choose_dtype,
    choose_matmul_precision,
    memory_bytes,
)

GPU: Any = SimpleNamespace(platform="gpu", compute_capability="9.0")
CPU: Any = SimpleNamespace(platform="cpu")
TPU: Any = SimpleNamespace(platform="tpu")
PRECISION = "jax_default_matmul_precision"
AMPERE: Any = SimpleNamespace(platform="gpu", compute_capability="8.0")
CAN: dict[str, Any] = {
    "dtype": "bfloat16",
    "dropout": 0.0,
    "device": GPU,
    "head_width": 64,
    "packed": False,
}
OBSTACLES = {
    "a cpu device": {"device": CPU},
    "float32 computation": {"dtype": "float32"},
    "attention dropout 0.1": {"dropout": 0.1},
    "heads 68 wide (cuDNN's are multiples of 8, here up to 256)": {"head_width": 68},
    "heads 264 wide": {"head_width": 264},
    "heads 136 wide (cuDNN's are multiples of 8, here up to 128)": {
        "head_width": 136,
        "device": AMPERE,
    },
    "examples that share rows (data.packing=none keeps them apart)": {"packed": True},
    "rows that mesh.context=2 splits": {"parts": 2},
}


def test_cudnn_is_chosen_where_it_can_do_what_is_asked():
    assert choose_attention("auto", **CAN) == "cudnn"
    assert choose_attention("cudnn", **CAN) == "cudnn"
    assert choose_attention("xla", **CAN) == "xla"
    for device, widest in (GPU, 256), (AMPERE, 128):
        assert choose_attention("auto", **CAN | {"device": device, "head_width": widest}) == "cudnn"


@pytest.mark.parametrize("what", OBSTACLES)
def test_pitfall_21_cudnn_is_not_chosen_and_refused_where_it_cannot(what):
    given = CAN | OBSTACLES[what]
    assert choose_attention("auto", **given) == ("blocked" if given["device"] is CPU else "xla")
    assert choose_attention("xla", **given) == "xla"
    with pytest.raises(UserError) as error:
        choose_attention("cudnn", **given)
    assert what in str(error.value)
    assert sum(words in str(error.value) for words in OBSTACLES) == 1


def test_splash_is_chosen_on_a_tpu_packed_or_not_unless_attention_is_dropped():
    for packed in (True, False):
        given = CAN | {"device": TPU, "packed": packed}
        assert choose_attention("auto", **given) == "splash"
        assert choose_attention("auto", **given | {"dropout": 0.1}) == "xla"
    for device, dropout, words in (GPU, 0.0, "a gpu device"), (TPU, 0.1, "attention dropout"):
        with pytest.raises(UserError, match=words):
            choose_attention("splash", **CAN | {"device": device, "dropout": dropout})


def test_a_cpu_goes_in_blocks_whatever_is_asked_and_no_other_device_does():
    for more in {}, {"dropout": 0.1}, {"packed": True}, {"parts": 2}, {"dtype": "float32"}:
        assert choose_attention("auto", **CAN | {"device": CPU} | more) == "blocked"
    for device in TPU, GPU:
        with pytest.raises(UserError, match=f"a {device.platform} device"):
            choose_attention("blocked", **CAN | {"device": device})


@pytest.mark.parametrize("packing", ["batch", "rows", "none"])
def test_an_experiment_tells_whether_its_rows_are_shared_and_how_wide_its_heads_are(
    packing, tiny_bert_folder, monkeypatch
):
    told, keys = [], runs.finished(tiny_bert_folder).keys

    def note(*args: Any, **facts: Any) -> str:
        told.append((facts["packed"], facts["head_width"]))
        return hardware.choose_attention(*args, **facts)

    monkeypatch.setattr(drawing, "choose_attention", note)
    runs.assembled(keys | {"data.packing": packing})
    assert told == [(packing != "none", 8)]


AMPERE: Any = SimpleNamespace(platform="gpu", compute_capability="8.0")
TURING: Any = SimpleNamespace(platform="gpu", compute_capability="7.5")


@pytest.mark.parametrize(
    ("device", "chosen"),
    [(TPU, "bfloat16"), (AMPERE, "bfloat16"), (TURING, "float32"), (CPU, "float32")],
)
def test_computation_is_in_bfloat16_where_the_device_multiplies_it_fast(device, chosen):
    assert choose_dtype("auto", device) == chosen
    assert choose_dtype("float32", device) == "float32"
    assert choose_dtype("bfloat16", device) == "bfloat16"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system has no /proc")
def test_memory_in_use_follows_what_the_process_holds():
    before = memory_bytes()
    held = np.ones(25_000_000)  # 200 MB
    assert before is not None
    assert memory_bytes() - before > 0.9 * held.nbytes
    del held
    assert memory_bytes() - before < 100e6
    assert memory_bytes(peak=True) > before + 180e6, "and the peak stays"


def test_the_peak_is_in_bytes_whatever_unit_the_system_counts_in(monkeypatch):
    usage = SimpleNamespace(ru_maxrss=5_000_000)
    monkeypatch.setattr("resource.getrusage", lambda who: usage)
    for platform, peak in {"linux": 5_120_000_000, "darwin": 5_000_000}.items():
        monkeypatch.setattr("sys.platform", platform)
        assert memory_bytes(peak=True) == peak


def test_a_devices_own_memory_is_told_where_it_counts(monkeypatch):
    told = {"bytes_in_use": 3, "peak_bytes_in_use": 7}
    device = SimpleNamespace(memory_stats=lambda: told)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert (memory_bytes(), memory_bytes(peak=True)) == (3, 7)


def test_float32_computation_multiplies_float32_on_every_device():
    """Left alone, JAX takes bfloat16 on TPU and tensorfloat32 on GPU."""
    assert choose_matmul_precision("auto", "float32") == "float32"
    assert choose_matmul_precision("bfloat16", "float32") == "bfloat16"
    assert choose_matmul_precision("auto", "bfloat16") is None
    with pytest.raises(UserError, match="leave it out, or take"):
        choose_matmul_precision("float32", "bfloat16")


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16"])
def test_an_experiment_sets_the_precision_of_products(asked, amx, tiny_bert_folder, monkeypatch):
    monkeypatch.setattr(drawing, "has_amx", lambda: amx)
    keys, said = runs.finished(tiny_bert_folder).keys, []
    before = jax.config.values[PRECISION]
    try:
        runs.assembled(keys | {"model.matmul_precision": asked}, say=said.append)
        chosen = jax.config.values[PRECISION]
    finally:
        jax.config.update(PRECISION, before)
    assert chosen == ("bfloat16" if asked == "bfloat16" else "float32")
    words = " ".join(said)
    assert ("products in bfloat16" in words) == (asked == "bfloat16")
    assert ("model.matmul_precision=bfloat16" in words) == (amx and asked != "bfloat16")
