"""Several processes that train as one: how they meet, agree before they compute, and fail together.

What they say to each other goes through the key-value store of JAX's coordinator, which is process
0, and not through the devices: so nobody waits in a collective while another one still tokenises,
and whoever does wait in one hears that it will never end.
"""

import atexit
import json
import os
import socket
import sys
import threading
import time
import traceback
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the store has no public name; orbax too takes it from here

from jaxft import xla_flags
from jaxft.errors import UserError
from jaxft.stderr import Say, aloud, silently

MEET_S = 300
"""How long processes wait for each other at the start; pods and queues start them one by one."""
HEARTBEAT_S = 30
"""A process that is silent for so long is dead, and JAX ends the others."""
_LISTEN_S, _LINGER_S = 1.0, 5.0
_DAY_MS = 24 * 3600 * 1000
_FAILED, _HEARD = "jaxft/failed/", "jaxft/heard/"
_CLUSTERS = (
    {"SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"},
    {"OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"},
)
"""What JAX reads of srun and of Open MPI's mpirun."""
_leaving = threading.Lock()


def start_processes(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Join the other processes of the job: by flags, or by itself on TPU pods, under srun and under
    Open MPI.

    Raises:
        UserError: only some of the flags are given, or process 0 cannot listen at its address.
    """
    given = (coordinator, count, index)
    if any(flag is not None for flag in given):
        if any(flag is None for flag in given):
            raise UserError(
                "--coordinator_address, --num_processes and --process_id go together: give all "
                "three or none."
            )
        if not str(coordinator).rpartition(":")[2].isdigit():
            raise UserError(
                f"--coordinator_address={coordinator}: HOST:PORT of process 0 is needed, such as "
                "node-0:8476."
            )
    elif not _in_cluster():
        return
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # gloo announces its connections on the process's stdout, which is for results.
        sys.stdout = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
    # JAX aborts with a C++ stack where processes do not meet: the timer is there before it.
    timer = threading.Timer(MEET_S, _give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=MEET_S + 60,
            heartbeat_timeout_seconds=HEARTBEAT_S,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"The processes of the job cannot be joined: {error}") from error
    finally:
        timer.cancel()
    if process_count() > 1:
        _listen()


@contextmanager
def joined(given: Namespace) -> Iterator[Say]:
    """A verb's part in the job that its flags name, under XLA's flags as the run's; what yields
    speaks in process 0 alone.
    """
    xla_flags.choose()
    start_processes(given.coordinator_address, given.num_processes, given.process_id)
    with together():
        yield aloud if process_index() == 0 else silently


def process_count() -> int:
    """As `jax.process_count`, without starting the devices."""
    return distributed.global_state.num_processes


def process_index() -> int:
    """As `jax.process_index`, without starting the devices."""
    return distributed.global_state.process_id


def _store() -> Any:
    return distributed.global_state.client


def tell(name: str, value: Any) -> Any:
    """Process 0's value, in every process; JSON, once per name."""
    if process_count() == 1:
        return value
    key = f"jaxft/told/{name}"
    if process_index() == 0:
        _store().key_value_set(key, json.dumps(value))
    return json.loads(_store().blocking_key_value_get(key, _DAY_MS))


def agree(name: str, facts: Mapping[str, Any], advice: str) -> None:
    """Raises UserError with the facts in which this process differs from process 0."""
    first = tell(name, facts)
    mine = json.loads(json.dumps(facts))
    differ = [key for key in first | mine if first.get(key) != mine.get(key)]
    if differ:
        lines = [
            f"  {key}: {mine.get(key)!r}, and {first.get(key)!r} in process 0" for key in differ
        ]
        raise UserError(
            "\n".join([f"Process {process_index()} differs from process 0:", *lines, advice])
        )


def wait_for_all(name: str) -> None:
    """Until every process has come here; however long one of them still tokenises."""
    if process_count() > 1:
        _store().wait_at_barrier(f"jaxft/{name}", _DAY_MS)


@contextmanager
def together() -> Iterator[None]:
    """Where one process fails, all leave: it at once, without the barriers of an orderly end, and
    the others as soon as they hear of it, with its message and its exit code.

    A process alone fails as ever.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:  # Stopped is neither: all leave in order
        if process_count() == 1:
            raise
        _fail(error)


def _fail(error: BaseException) -> NoReturn:
    code, message = 1, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if isinstance(error, UserError):
        code, message = 2, str(error)
    elif isinstance(error, KeyboardInterrupt):
        code, message = 130, "interrupted"
    else:
        traceback.print_exc()
    if isinstance(error, jax.errors.JaxRuntimeError):
        message += (
            "\nA collective fails when another process died: its log says why. The same command "
            "with the same --workdir goes on from the last checkpoint."
        )
    with suppress(Exception):  # the coordinator may be what died
        _store().key_value_set(f"{_FAILED}{process_index()}", json.dumps([code, message]))
    _leave(code, message)


def _leave(code: int, message: str) -> NoReturn:
    """Ends this process, once; process 0 a little later, since it keeps what the others read."""
    _leaving.acquire()
    print(f"jaxft: error: {message}", file=sys.stderr, flush=True)
    until_s = time.monotonic() + _LINGER_S
    with suppress(Exception):
        if process_index() > 0:
            _store().key_value_set(f"{_HEARD}{process_index()}", "")
        while process_index() == 0 and time.monotonic() < until_s:
            if len(_store().key_value_dir_get(_HEARD)) == process_count() - 1:
                break
            time.sleep(0.1)
    os._exit(code)


def _listen() -> None:
    """Starts the thread that hears of the others' failures while this process computes or waits."""
    over = threading.Event()

    def listen() -> None:
        while not over.wait(_LISTEN_S):
            try:
                failures = _store().key_value_dir_get(_FAILED)
            except Exception:  # no coordinator any more: JAX's heartbeat ends the process
                return
            for key, said in failures:
                code, message = json.loads(said)
                _leave(code, f"process {key.rpartition('/')[2]} failed: {message}")

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()

    def stop() -> None:
        over.set()
        thread.join(2 * _LISTEN_S)

    atexit.register(stop)  # before JAX's own, which takes the store away


def _give_up() -> None:
    """Called in place of JAX's abort when the processes have not met."""
    state = distributed.global_state
    host, _, port = (state.coordinator_address or "").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        why = f"it answers, but not all of its processes have come within {MEET_S} s"
    except (OSError, ValueError) as error:
        why = f"no answer within {MEET_S} s ({error})"
    print(
        f"jaxft: error: Process {state.process_id} waited for the coordinator at "
        f"{state.coordinator_address}: {why}. Start every process with the same address and "
        "number, and open the port between the hosts.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _in_cluster() -> bool:
    sizes = {"SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"}
    for names in _CLUSTERS:
        if names <= os.environ.keys():
            return any(int(os.environ[name]) > 1 for name in names & sizes)
    return xla_flags.on_tpu()
