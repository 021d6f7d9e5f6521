"""Which processes join a job by themselves, and what is said where JAX does not find it."""

import os
import socket
import subprocess
import sys
from typing import Any

import jax
import pytest
from conftest import REPOSITORY
from jobs import FASTER

from jaxft import processes, xla_flags
from jaxft.errors import UserError

SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
SALLOC = {name: SRUN[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")}
MPIRUN = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "1",
}
BY_ITSELF = (None, None, None)


@pytest.fixture
def joined(monkeypatch) -> list[tuple[tuple, dict[str, Any]]]:
    """What JAX is asked to join, from now on; nothing is joined. Only srun and mpirun set more."""
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "JAX_PLATFORMS")):
            monkeypatch.delenv(name)
    calls: list[tuple[tuple, dict[str, Any]]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **kw: calls.append((a, kw)))
    return calls


JOBS = {
    "srun": (SRUN, False, True),
    "srun of one": (SRUN | {"SLURM_NTASKS": "1"}, False, False),
    "salloc": (SALLOC, False, False),
    "mpirun": (MPIRUN, False, True),
    "mpirun of one": (MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1"}, False, False),
    "none": ({}, False, False),
    "a TPU": ({}, True, True),
    "a TPU in salloc": (SALLOC, True, True),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_job_is_joined_without_flags_where_there_is_one(job, joined, monkeypatch):
    environment, tpu, joins = JOBS[job]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(xla_flags, "on_tpu", lambda: tpu)
    processes.start_processes()
    assert [given for given, _ in joined] == [BY_ITSELF] * joins
    assert all(options["cluster_detection_method"] is None for _, options in joined)


@pytest.mark.parametrize(("tpu", "detection"), [(True, "deactivate"), (False, None)])
def test_flags_say_all_on_a_tpu_which_may_be_out_of_the_clouds_reach(
    tpu, detection, joined, monkeypatch
):
    monkeypatch.setattr(xla_flags, "on_tpu", lambda: tpu)
    processes.start_processes("node-0:8476", 2, 1)
    ((given, options),) = joined
    assert given == ("node-0:8476", 2, 1)
    assert options["cluster_detection_method"] == detection


@pytest.mark.parametrize(
    "error", [ValueError("coordinator_address should be defined."), ConnectionError("no metadata")]
)
def test_a_tpu_whose_job_is_not_found_is_told_the_flags(error, joined, monkeypatch):
    def fail(*given: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(xla_flags, "on_tpu", lambda: True)
    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match=f"cannot be joined: {error}") as told:
        processes.start_processes()
    for flag in ("--coordinator_address=HOST:PORT", "--num_processes=N", "--process_id=I"):
        assert flag in str(told.value)
    with pytest.raises(UserError) as told:
        processes.start_processes("node-0:8476", 2, 1)
    assert "HOST:PORT" not in str(told.value), "they were given"


def test_two_tasks_of_srun_become_one_job():
    """JAX makes the coordinator's port of the job's number."""
    first, count = 61440, 4096
    with socket.socket() as listening:
        port = next(port for port in range(first, first + count) if _is_free(listening, port))
    code = (
        "from jaxft.processes import process_count, process_index, start_processes, tell\n"
        "start_processes()\n"
        "said = tell('name', f'process {process_index()}')\n"
        "print(process_index(), process_count(), said)"
    )
    of_job = FASTER | SRUN | {"SLURM_JOB_ID": str(port - first)}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | of_job | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for task in range(2)
    ]
    said = [task.communicate(timeout=120)[0] for task in tasks]
    assert said == ["0 2 process 0\n", "1 2 process 0\n"]


def _is_free(listening: socket.socket, port: int) -> bool:
    try:
        listening.bind(("localhost", port))
    except OSError:
        return False
    return True
