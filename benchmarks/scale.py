"""The table of docs/scale.md: what known models need on TPU slices, by their compiler.

    python benchmarks/scale.py --output=docs/scale.md

Needs libtpu (`pip install 'jaxft[tpu]'`) and no TPU. Every row is a command of `jaxft.plan`, run in
a process of its own; a row that does not fit is followed by the plan's first suggestion.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxft.shapes import fields_of, hub_id

LLAMA, BERT = "configs/llama_sft.py", "configs/bert_cls.py"
OFFLOAD = ("optim.offload=True", "model.kept_activations={'block_input': 'host'}")
ROWS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("BERT-base", f"{BERT}:bert-base", "v5e:1x1", ()),
    ("BERT-base", f"{BERT}:bert-base", "v5e:2x4", ("train.batch_size=256",)),
    ("Llama-3-8B, 4096", f"{LLAMA}:llama3-8b", "v5e:4x4", ()),
    ("Llama-3-8B, 4096", f"{LLAMA}:llama3-8b", "v6e:2x4", ()),
    ("Llama-3-8B, 4096", f"{LLAMA}:llama3-8b", "v5p:2x2x1", ()),
    (
        "Llama-3-8B, 4096, one chip",
        f"{LLAMA}:llama3-8b",
        "v5p:1x1x1",
        ("train.batch_size=4", *OFFLOAD),
    ),
    ("Llama-3-70B, 4096", f"{LLAMA}:llama3-70b", "v5p:4x4x4", ("train.batch_size=64",)),
    ("Llama-3-70B, 4096", f"{LLAMA}:llama3-70b", "v6e:16x16", ("train.batch_size=256",)),
    ("Llama-3-70B, 4096, 512 chips", f"{LLAMA}:llama3-70b", "v5p:8x8x8", ("train.batch_size=512",)),
    (
        "Llama-3.1-8B, 131072",
        f"{LLAMA}:llama3-8b",
        "v5p:4x4x4",
        ("data.max_length=131072", "train.batch_size=4", "mesh.fsdp=4", "mesh.context=16"),
    ),
    ("Llama-3-8B, 4096, too few chips", f"{LLAMA}:llama3-8b", "v5e:2x4", ()),
    (
        "Llama-3-70B, 4096, four copies",
        f"{LLAMA}:llama3-70b",
        "v5p:4x4x4",
        ("train.batch_size=64", "mesh.data=4", "mesh.fsdp=16"),
    ),
)
COLUMNS = (
    "#",
    "model, length",
    "chips",
    "rows",
    "fits",
    "peak GB",
    "args + temp GB",
    "rule GB",
    "limit GB",
    "compile s",
    "FLOPs",
    "sent GB",
    "outside GB",
)
DEPTHS = (16, 80)
"""Layers of a 70 B model whose compilation is timed."""
RULE = 16
"""Bytes a parameter: float32 weight, gradient and two moments. Source: Rajbhandari et al. 2020."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="the page to write; by default stdout")
    given = parser.parse_args()
    page = "\n".join(lines())
    if given.output:
        given.output.write_text(page + "\n")
    else:
        print(page)


def plan(config: str, topology: str, keys: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The command, and what `jaxft.plan` says."""
    words = [f"--config={config}", f"--topology={topology}", *(f"--config.{key}" for key in keys)]
    print(shlex.join(words), file=sys.stderr, flush=True)
    began_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "jaxft.plan", *words, "--json"], capture_output=True, text=True
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{done.stderr}\nexit code {done.returncode}")
    print(f"  {time.perf_counter() - began_s:.0f} s", file=sys.stderr, flush=True)
    quoted = [f'"{word}"' if "'" in word else shlex.quote(word) for word in words]
    return " ".join(["python -m jaxft.plan", *quoted]), json.loads(done.stdout)


def lines() -> Iterator[str]:
    """The page."""
    yield "# Scale: compiled, not hoped"
    yield ""
    yield (
        "What known models need on TPU slices, by the compiler that would run them (libtpu "
        f"{version('libtpu')}, jax {version('jax')}): nothing ran on a TPU. Written by "
        "`python benchmarks/scale.py --output=docs/scale.md`. GB are 1e9 bytes; the rule is "
        f"{RULE} bytes a parameter over the chips, for weights, gradients and two moments in "
        "float32 alone. Sent is what a chip sends in an update, read from the compiled program: "
        "of it, outside is outside of the loops over layers and micro-batches."
    )
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|" + "---|" * len(COLUMNS)
    commands, sends = [], []
    for number, (name, config, topology, keys) in enumerate(ROWS, 1):
        command, found = plan(config, topology, keys)
        yield row(str(number), name, topology, found)
        commands.append(f"{number}. `{command}`")
        sends.append(f"{number}. {collectives(found)}")
        if not found["fits"] and found["suggestions"]:
            flags = tuple(found["suggestions"][0]["flags"])
            keys = tuple(flag.removeprefix("--config.") for flag in flags)
            command, mended = plan(config, topology, keys)
            yield row(f"{number}, mended", name, topology, mended)
            commands.append(f"   mended: `{command}`")
            sends.append(f"   mended: {collectives(mended)}")
    yield ""
    yield "Commands, which print all this and more:"
    yield ""
    yield from commands
    yield ""
    yield "## What is sent"
    yield ""
    yield (
        "Kind, how often, GB a chip sends in an update. Outside of the loops stand word vectors "
        "and head with their gradients (of Llama-3-8B 1.05 B weights), and what the compiler takes "
        "out of them to overlap it, one layer's at most. Where a gather or a "
        "scattered sum runs over all chips of v5e:4x4, v5p:2x2x4 or v5p:4x4x4, the compiler may "
        "make an all-reduce of it, even of an explicit `psum_scatter`: twice the bytes, over every "
        "link of the torus at once. Row 12 splits weights over two of a cube's three dimensions."
    )
    yield ""
    yield from sends
    yield ""
    yield "## Depth costs nothing to compile"
    yield ""
    seconds = dict(depths())
    told = ", ".join(f"{layers} layers {took_s:.0f} s" for layers, took_s in seconds.items())
    few, many = (seconds[layers] for layers in DEPTHS)
    yield (
        f"The update of a model as wide as Llama-3-70B on v5p:4x4x4: {told}; {many / few:.2f} "
        "times as long."
    )


def row(number: str, name: str, topology: str, found: dict[str, Any]) -> str:
    update, sent = found["update"], found["collectives"] or {}
    rule = RULE * found["parameters"]["total"] / found["devices"]
    cells = [
        number,
        name,
        f"{found['devices']} ({topology})",
        found["data"]["rows"],
        "yes" if found["fits"] else "no",
        _gb(found["peak_bytes_per_device"]),
        _gb(update["arguments_and_temporaries_bytes"]) if not update["refused"] else "",
        _gb(rule),
        _gb(found["hbm_bytes_per_device"]),
        f"{update['compile_s']:.0f}",
        f"{found['flops_per_step']:.2e}",
        _gb(sum(kind["bytes"] for kind in sent.values())),
        _gb(sum(kind["outside_loops_bytes"] for kind in sent.values())),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def collectives(found: dict[str, Any]) -> str:
    sent = found["collectives"] or {}
    said = [f"{kind} {row['count']:.0f} x, {_gb(row['bytes'])}" for kind, row in sent.items()]
    return "; ".join(said) or "nothing"


def depths() -> Iterator[tuple[int, float]]:
    """Layers and seconds."""
    fields = fields_of(hub_id("llama3-70b"))
    assert fields is not None
    for layers in DEPTHS:
        keys = (
            f"model.config={fields | {'num_hidden_layers': layers}}",
            "model.activation_checkpointing=full",
            "mesh.data=1",
            "mesh.fsdp=-1",
            "train.batch_size=64",
        )
        _, found = plan(LLAMA, "v5p:4x4x4", keys)
        yield layers, found["update"]["compile_s"]


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g}"


if __name__ == "__main__":
    main()
