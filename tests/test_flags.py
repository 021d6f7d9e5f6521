"""The command line: flags, messages, exit codes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxft import flags
from jaxft.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    smoothing: float = 0.0


def options(name: str) -> type:
    return Options


def parse(*argv: str) -> flags.Flags:
    return flags.train_flags(argv, options)


def refusal(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*argv)
    return str(caught.value)


def test_flags_and_overrides_are_told_apart():
    got = parse(
        "--config=a/b.py:big",
        "--config.optim.learning_rate=1e-5",
        "--workdir",
        "runs/x",
        "--config.mesh.data",
        "-1",
        "--config.data.train=a=b.csv",
        "--config.train.report_to=",
        "--coordinator_address=h:1",
        "--num_processes=2",
        "--process_id=1",
        "--config.mesh.data=2",
    )
    assert got == flags.Flags(
        config="a/b.py",
        arg="big",
        workdir="runs/x",
        overrides={
            "optim.learning_rate": "1e-5",
            "mesh.data": "2",
            "data.train": "a=b.csv",
            "train.report_to": "",
        },
        coordinator_address="h:1",
        num_processes=2,
        process_id=1,
    )


@pytest.mark.parametrize(
    ("word", "path", "arg"),
    [
        ("c.py", "c.py", ""),
        ("c.py:", "c.py", ""),
        ("c.py:x", "c.py", "x"),
        ("a:b/c.py:x", "a:b/c.py", "x"),
        ("a:b/c.py", "a:b/c.py", ""),
        ("a.py:d/c.py:x", "a.py:d/c.py", "x"),
        ("c.py:x=1:2", "c.py", "x=1:2"),
        ("c.txt", "c.txt", ""),
    ],
)
def test_a_config_is_split_from_its_argument_at_the_colon_after_py(word, path, arg):
    assert flags.split_config(word) == (path, arg)


def test_the_default_config_is_here_or_else_beside_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beside = Path(flags.__file__).parent.parent / flags.DEFAULT_CONFIG
    assert parse().config == (str(beside) if beside.is_file() else flags.DEFAULT_CONFIG)
    (tmp_path / "configs").mkdir()
    (tmp_path / flags.DEFAULT_CONFIG).touch()
    assert parse().config == flags.DEFAULT_CONFIG


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--confg=x.py", "unknown flag --confg; did you mean --config?"),
        ("--confg.optim.name=x", "did you mean --config.optim.name?"),
        ("--wokrdir=x", "did you mean --workdir?"),
        ("--learning_rate=1", "did you mean --config.optim.learning_rate?"),
        ("--optim.lr=1", "did you mean --config.optim.learning_rate?"),
        ("--smoothing=1", "did you mean --config.task.smoothing?"),
        ("--work=x", "unknown flag --work"),
        ("stray", "'stray' belongs to no flag"),
        ("--num_processes=two", "--num_processes: invalid int value: 'two'"),
        ("--config.seed", "--config.seed needs a value: --config.seed=VALUE"),
        ("--workdir=", "--workdir is empty"),
    ],
)
def test_pitfall_25_a_wrong_flag_is_refused_by_name(word, said):
    assert said in refusal(word)


def test_an_override_does_not_swallow_the_next_flag():
    assert "--config.seed needs a value" in refusal("--config.seed", "--workdir=x")


def test_a_process_id_beyond_the_processes_is_refused():
    assert "must be from 0 to 1" in refusal("--num_processes=2", "--process_id=2")


def test_help_shows_the_flags_and_every_key(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert not stop.value.code
    text = capsys.readouterr().out
    for part in ("--workdir", "optim.learning_rate = 5e-05", "task.smoothing", "seed = 0", ">= 0"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 100


def test_another_verb_uses_the_same_parser():
    parser = flags.Parser("predict", "Label texts.")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--output")
    assert parser.parse(["--workdir=w"]).workdir == "w"
    with pytest.raises(UserError, match=r"--workdir[^\n]*\n  all flags: python -m jaxft.predict"):
        parser.parse([])
    with pytest.raises(UserError, match="unknown flag --out"):
        parser.parse(["--workdir=w", "--out=x"])
    with pytest.raises(UserError, match="did you mean --output"):
        parser.parse(["--workdir=w", "--ouput=x"])


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UserError("no such file\n  look there"), 2, "jaxft: error: no such file\n  look there\n"),
        (KeyboardInterrupt(), 130, "jaxft: interrupted\n"),
    ],
)
def test_a_mistake_and_an_interruption_have_their_exit_codes(raised, code, said, capsys):
    def main(argv: list[str]) -> None:
        raise raised

    with pytest.raises(SystemExit) as stop:
        flags.run(main)
    assert stop.value.code == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", said)


def test_a_bug_of_ours_keeps_its_traceback():
    def main(argv: list[str]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        flags.run(main)


SCRIPT = """
import sys
from jaxft import config, flags
from test_flags import options

def main(argv):
    given = flags.train_flags(argv, options)
    got = config.load(given.config, given.arg, given.overrides, options)
    for line in range(20000 if got.seed else 1):
        print(got.train.batch_size, got.optim.warmup_steps, got.task.smoothing)

flags.run(main)
"""


def test_a_real_shell_gets_values_messages_and_exit_codes(tmp_path):
    recipe = tmp_path / "r.py"
    recipe.write_text(
        "def get_config():\n    return {'model': {'pretrained': 'm'}, 'data': {'train': 't'}}\n"
    )
    root = Path(flags.__file__).parent.parent
    script = tmp_path / "verb.py"
    script.write_text(SCRIPT)
    good = f"{sys.executable} {script} --config={recipe}"
    command = f"""
        {good} --config.train.batch_size=8 --config.optim.warmup_steps 5 ; echo "exit $?"
        {good} --config.optim.lr=3 ; echo "exit $?"
        {good} --config.seed=1 | head -n 1 ; echo "exit ${{PIPESTATUS[0]}}"
    """
    done = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "8 5 0.0",
        "exit 0",
        "exit 2",
        "32 0.1 0.0",
        "exit 141",
    ]
    assert done.stderr.startswith("jaxft: error: 1 problem in the config ")
    assert "did you mean optim.learning_rate?" in done.stderr
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
