"""The compiler's own numbers for an update and an evaluation; nothing is run."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from jaxft.planning.collectives import Collective, collectives
from jaxft.planning.sketch import Sketch

_REFUSED = re.compile(r"\((\d+(?:\.\d+)?)([KMGT])\) exceeds available")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Program:
    """What a compiled program needs of one device."""

    peak_bytes: int
    """What must fit in the device's memory, as the compiler counts it; where it refuses, as much as
    it says it would need.
    """
    arguments_bytes: int
    temporaries_bytes: int
    compile_s: float
    host_arguments_bytes: int = 0
    host_temporaries_bytes: int = 0
    copied_bytes: int = 0
    """Of results that take no argument's place, in any memory."""
    collectives: tuple[Collective, ...] | None = None
    """None where they could not be read, or there is no program."""
    refused: str = ""
    """Why there is no program."""

    def fits(self, room: int) -> bool:
        """In so many bytes of a device's memory."""
        return not self.refused and self.peak_bytes <= room

    @property
    def host_bytes(self) -> int:
        return self.host_arguments_bytes + self.host_temporaries_bytes


def compile_update(sketch: Sketch) -> Program:
    """The program of one optimizer update."""
    experiment = sketch.experiment
    optimizer = experiment.optimizer(sketch.steps or 1000)
    state, step = experiment.abstract_state(optimizer), experiment.train_step(optimizer)
    number = jax.ShapeDtypeStruct((), np.int32, sharding=experiment.replicated)
    return _compile(sketch, step, state, sketch.batch(sketch.rows), number)


def compile_evaluation(sketch: Sketch) -> Program:
    """The program of one evaluation batch."""
    experiment = sketch.experiment
    batch = sketch.batch(sketch.evaluation_rows)
    return _compile(sketch, experiment.eval_step(), sketch.working, batch)


def _compile(sketch: Sketch, step: jax.stages.Wrapped, *arguments: Any) -> Program:
    began_s = time.perf_counter()
    mesh = sketch.experiment.mesh
    cached = mesh.devices.flat[0] in jax.devices()
    try:
        with jax.set_mesh(mesh), nullcontext() if cached else _uncached():
            compiled: Any = step.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        size = _REFUSED.search(str(error))
        needed = int(float(size[1]) * _UNITS[size[2]]) if size else 0
        took_s = time.perf_counter() - began_s
        return Program(needed, 0, 0, took_s, refused=str(error).splitlines()[0])
    took_s = time.perf_counter() - began_s
    memory = compiled.memory_analysis()
    apart = memory.output_size_in_bytes - memory.alias_size_in_bytes
    together = memory.argument_size_in_bytes + memory.temp_size_in_bytes + apart
    try:
        found = tuple(collectives(compiled.as_text()))
    except ValueError:  # an HLO that is written in a way the parser has not seen
        found = None
    # The CPU's compiler calls the arguments alone its peak; its buffers do not share memory. The
    # TPU's counts what the host holds for the program as well. Its temporaries are more than it
    # allocates, and than what it goes by where it refuses a program: half as many again.
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    peak = memory.peak_memory_in_bytes - memory.host_argument_size_in_bytes
    return Program(
        peak_bytes=peak if on_tpu else together,
        arguments_bytes=memory.argument_size_in_bytes,
        temporaries_bytes=memory.temp_size_in_bytes,
        compile_s=took_s,
        host_arguments_bytes=memory.host_argument_size_in_bytes,
        host_temporaries_bytes=memory.host_temp_size_in_bytes,
        copied_bytes=apart + memory.host_output_size_in_bytes - memory.host_alias_size_in_bytes,
        collectives=found,
    )


@contextmanager
def _uncached() -> Iterator[None]:
    """Without JAX's compilation cache, which takes programs for devices that are not here and then
    cannot read them.
    """
    name = "jax_enable_compilation_cache"
    before = jax.config.values[name]
    jax.config.update(name, False)
    reset_cache()
    try:
        yield
    finally:
        jax.config.update(name, before)
        reset_cache()
