"""The launch scripts: shellcheck finds nothing; what they would run is `python -m jaxft.train`."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

LAUNCH = REPOSITORY / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
TRAIN = [".venv/bin/python", "-m", "jaxft.train"]
BESIDE_PYTHON = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
SHELLCHECK = shutil.which("shellcheck", path=BESIDE_PYTHON)
FLAGS = ["--workdir=gs://bucket/run", "--config.data.train={'my texts.csv': 1}", "--config.seed=$1"]


def printed(script: str, *words: str) -> str:
    done = subprocess.run(
        ["bash", LAUNCH / script, "--print", *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("local.sh", ["--workdir=W"]),
        ("multi_gpu.sh", ["--workdir=W"]),
        ("slurm.sbatch", ["--workdir=W"]),
        ("tpu_vm.sh", ["pod", "--zone=z", "--", "--workdir=gs://bucket/run"]),
        ("jobset.sh", ["t", "--image=i", "--hosts=2", "--gpus=1", "--", "--workdir=gs://b/run"]),
    ],
)
def test_print_starts_nothing_wherever_it_stands(script, words):
    first = printed(script, *words).splitlines()[-2:]
    end = words.index("--") if "--" in words else len(words)
    nothing = {"PATH": "/usr/bin:/bin"}  # neither gcloud nor kubectl: a real start fails
    for place in range(1, end + 1):
        given = [*words[:place], "--print", *words[place:]]
        done = subprocess.run(
            ["bash", LAUNCH / script, *given],
            capture_output=True,
            text=True,
            timeout=60,
            env=nothing,
        )
        assert done.returncode == 0, done.stderr
        if script != "tpu_vm.sh":  # its archive has another name each time
            assert done.stdout.splitlines()[-2:] == first


NEVER_EMPTY = {"command", "slurm.sbatch words", "tpu_vm.sh words", "jobset.sh words"}
"""Arrays that have words where they are read: without a --workdir these scripts end before."""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_array_that_may_be_empty_is_read_bare(script: Path):
    """macOS has bash 3.2, where `set -u` takes one for unset."""
    bare = re.findall(r'(?<!\+)"\$\{(\w+)\[[@*]\]\}', script.read_text())
    assert {name for name in bare if not {name, f"{script.name} {name}"} & NEVER_EMPTY} == set()


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path):
    words = [str(SHELLCHECK), "--external-sources", "--source-path=SCRIPTDIR", str(script)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["local.sh", "multi_gpu.sh", "slurm.sbatch"])
def test_one_command_a_host_is_printed_as_it_can_be_typed(script):
    words = shlex.split(printed(script, *FLAGS))
    start = words.index(TRAIN[0])
    assert words[start:] == TRAIN + FLAGS
    assert ("srun" in words[:start]) == (script == "slurm.sbatch")
    if script != "slurm.sbatch":
        assert shlex.split(printed(script))[start:] == TRAIN, "no flags at all"


def test_every_worker_of_a_tpu_slice_runs_the_command():
    zone = "--zone=us-central2-b"
    lines = [
        shlex.split(line) for line in printed("tpu_vm.sh", "pod", zone, "--", *FLAGS).splitlines()
    ]
    assert [line[:5] for line in lines[1:]] == [
        ["gcloud", "compute", "tpus", "tpu-vm", verb] for verb in ("scp", "ssh")
    ]
    assert all({"--worker=all", zone} <= set(line) for line in lines[1:])
    (remote,) = [word for word in lines[2] if word.startswith("--command=")]
    typed = shlex.split(remote.removeprefix("--command="))
    assert typed[typed.index("launch/local.sh") + 1 :] == FLAGS


def test_the_workers_of_a_tpu_slice_get_the_tracked_files_as_they_are(tmp_path):
    """A gcloud of ours keeps what it is told to copy."""
    here, shipped, gcloud = tmp_path / "here", tmp_path / "shipped", tmp_path / "bin" / "gcloud"
    shutil.copytree(LAUNCH, here / "launch")
    for name in ("changed", "gone"):
        (here / name).write_text("committed")
    who = ["-c", "user.name=me", "-c", "user.email=me@here"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "--message=all"]):
        subprocess.run(["git", *words], cwd=here, check=True, timeout=60)
    (here / "changed").write_text("not committed")
    (here / "gone").unlink()
    (here / "untracked").write_text("")
    gcloud.parent.mkdir()
    gcloud.write_text(f'#!/bin/sh\n[ "$4" = ssh ] || tar -xzf "$5" -C {shipped}\n')
    gcloud.chmod(0o755)
    shipped.mkdir()
    path = f"{gcloud.parent}{os.pathsep}{os.environ['PATH']}"
    words = ["bash", here / "launch" / "tpu_vm.sh", "pod", "--", *FLAGS]
    subprocess.run(words, env=os.environ | {"PATH": path}, check=True, timeout=60)
    assert {each.name for each in shipped.iterdir()} == {"launch", "changed"}
    assert (shipped / "changed").read_text() == "not committed"
    assert (here / "changed").read_text() == "not committed", "the work stays as it was"


def test_the_jobset_gives_each_pod_its_place_and_the_command():
    flags = [*FLAGS, "--config.data.delimiter=\t"]
    said = printed("jobset.sh", "tune", "--image=me/jaxft:1", "--hosts=4", "--gpus=8", "--", *flags)
    assert said.startswith("# kubectl apply -f -")
    jobset = yaml.safe_load(said)
    assert jobset["metadata"]["name"] == "tune"
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (4, 4, "Indexed")
    (container,) = job["template"]["spec"]["containers"]
    assert container["image"] == "me/jaxft:1"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    shell, option, command = *container["command"], container["args"][0]
    shown = command.replace("exec python", "printf '%s\\n' python")
    done = subprocess.run(
        [shell, option, shown], capture_output=True, text=True, env={"JOB_COMPLETION_INDEX": "3"}
    )
    job_name = f"{jobset['metadata']['name']}-{replicated['name']}-0"
    assert done.stdout.splitlines() == [
        "python",
        "-m",
        "jaxft.train",
        f"--coordinator_address={job_name}-0.tune:8476",
        "--num_processes=4",
        "--process_id=3",
        *flags,
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["slurm.sbatch"],
        ["tpu_vm.sh", "pod", "--zone=z", "--", "--workdir=/local"],
        ["tpu_vm.sh"],
        ["jobset.sh", "tune", "--image=i", "--hosts=2", "--gpus=1", "--"],
        ["jobset.sh", "tune", "--image=i", "--", "--workdir=gs://bucket/run"],
    ],
)
def test_what_could_not_run_is_refused(words):
    done = subprocess.run(
        ["bash", LAUNCH / words[0], "--print", *words[1:]], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert words[0] in done.stderr
