"""How much of the host's memory loading and exporting take beyond the weights themselves.

    python benchmarks/load_memory.py                     # 2 GB, 1 device and 8, load and export

Writes a sharded safetensors checkpoint of a Llama with random weights, and does in a process of its
own for each line what `train` and `export` do with one: `pretrained.read` into the shards of
`fsdp`, and `saving` with `pretrained.block` from a checkpoint's weights on such a mesh. A thread
looks at RssAnon every few milliseconds; pages of the mapped files are not in it. On CPU the host's
memory is the devices' too, so the weights are counted in, and the aim is

    peak - before <= weights in float32 + largest tensor in float32

where a tensor is one of the file's, not a stack. The baseline is taken after JAX has compiled
something.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

SHAPES = {
    2000: {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "layers": 8},
    180: {"vocab_size": 12000, "hidden_size": 512, "intermediate_size": 3072, "layers": 6},
}
"""By about how many megabytes it takes in float32."""
DTYPES = {"float32": 4, "bfloat16": 2}


def config_of(megabytes: int) -> dict[str, Any]:
    sizes = dict(SHAPES[megabytes])
    return {
        "model_type": "llama",
        "num_hidden_layers": sizes.pop("layers"),
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        **sizes,
    }


class Watch(threading.Thread):
    """The highest RssAnon of this process since `start()`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = anonymous_bytes()
        self.going = True

    def run(self) -> None:
        while self.going:
            self.peak = max(self.peak, anonymous_bytes())
            time.sleep(0.002)

    def grown(self) -> int:
        """Bytes between the beginning and the peak; stops."""
        self.going = False
        self.join()
        return self.peak - self.before


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status)[1])


@contextmanager
def watched(name: str, facts: dict[str, Any]) -> Iterator[None]:
    watch, began = Watch(), time.perf_counter()
    watch.start()
    yield
    facts[f"{name}_peak_bytes"] = watch.grown()
    facts[f"{name}_s"] = round(time.perf_counter() - began, 1)


def write(folder: Path, megabytes: int, dtype: str) -> None:
    """A checkpoint in shards, its tensors drawn one at a time."""
    import numpy as np

    from jaxft import saving
    from jaxft.models import Blueprint

    config = config_of(megabytes)
    drawn = Blueprint.draw(config, output="causal_lm")
    random = np.random.default_rng(0)

    def tensor(one: saving.Tensor) -> saving.Tensor:
        def rows() -> Iterator[np.ndarray]:
            yield random.standard_normal(one.shape, np.float32)

        return saving.Tensor(one.name, one.shape, rows)

    nothing = dict.fromkeys(drawn.weights)
    tensors = [tensor(one) for one in saving.to_tensors(nothing, drawn.weights, prefix="model.")]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    saving.write(folder, tensors, dtype, shard_bytes=megabytes * 10**6 // 4)


def measure(folder: Path) -> dict[str, Any]:
    """In this process: loads, then exports and reads back."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxft import models, pretrained, saving
    from jaxft.models import Blueprint
    from jaxft.sharding import Places, make_mesh

    checkpoint = pretrained.Checkpoint(folder)
    drawn = Blueprint.draw(checkpoint.config, output="causal_lm")
    shardings = Places(drawn.weights, make_mesh({"fsdp": -1})).params
    jax.block_until_ready(jax.jit(lambda x: x @ x)(jnp.ones((64, 64))))
    facts: dict[str, Any] = {
        "devices": len(jax.devices()),
        "weights_bytes": 4 * sum(weight.size for weight in drawn.weights.values()),
        "largest_tensor_bytes": max(4 * prod(w.hf_shape) for w in drawn.weights.values()),
        "largest_stack_bytes": max(4 * weight.size for weight in drawn.weights.values()),
    }
    with watched("load", facts):
        params = jax.block_until_ready(
            pretrained.read(drawn.match(checkpoint), drawn.weights, shardings)
        )
    with watched("export", facts):
        models.write_folder(
            folder / "out", checkpoint.config, params, drawn.weights, output="causal_lm"
        )
    with watched("read_back", facts):
        matched = drawn.match(pretrained.Checkpoint(folder / "out"))
        for path, weight in drawn.weights.items():
            for span in weight.blocks():
                meant = saving.fetch(params[path], weight, span)
                assert np.array_equal(meant, pretrained.block(matched, weight, span))
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, choices=SHAPES, default=2000)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the checkpoint")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--measure", type=Path, help="a checkpoint to measure in this process")
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return
    with tempfile.TemporaryDirectory() as root:
        write(Path(root) / "model", given.megabytes, given.dtype)
        for devices in given.devices:
            process = subprocess.run(
                [sys.executable, __file__, f"--measure={root}/model"],
                env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            print(process.stdout, end="", flush=True)


if __name__ == "__main__":
    main()
