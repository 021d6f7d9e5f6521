"""The command line of every verb: its flags, `--config.KEY=VALUE`, its messages, its exit code."""

import argparse
import dataclasses
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxft import schema
from jaxft.config import TaskOptions, closest
from jaxft.errors import UserError

DEFAULT_CONFIG = "configs/bert_cls.py"
PREFIX = "--config."
READING = ("text_column", "text_pair_column", "delimiter", "quoting", "encoding", "header")
"""Keys of the config's data section that say how rows are read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What the command line of `train` says."""

    config: str  # the recipe file
    arg: str = ""  # what its get_config is called with
    workdir: str | None = None
    overrides: dict[str, str] = dataclasses.field(default_factory=dict)  # dotted key -> word
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    compilation_cache_dir: str | None = None

    @property
    def plan(self) -> str:
        """The command that plans this run."""
        recipe = f"{self.config}:{self.arg}" if self.arg else self.config
        keys = [f"{PREFIX}{key}={word}" for key, word in self.overrides.items()]
        return shlex.join(["python", "-m", "jaxft.plan", f"--config={recipe}", *keys])


class Parser(argparse.ArgumentParser):
    """The flags of one verb; a mistake in them is a UserError that names the flag meant."""

    def __init__(self, verb: str, what: str, **options: Any) -> None:
        super().__init__(
            prog=f"python -m jaxft.{verb}", description=what, allow_abbrev=False, **options
        )

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The flags given. Raises: UserError; SystemExit(0) after printing for --help."""
        known, rest = self.parse_known_args(list(argv))
        if rest:
            unknown = [self._unknown(word) for word in rest if word.startswith("-")]
            self.error("; ".join(unknown) or f"{rest[0]!r} belongs to no flag")
        for name, value in vars(known).items():
            if value == "":  # most likely --workdir=$W where the shell knows no W
                self.error(f"--{name} is empty")
        return known

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\n  all flags: {self.prog} --help")

    def _unknown(self, word: str) -> str:
        flag = word.partition("=")[0]
        bare = flag.lstrip("-")
        known = {name.lstrip("-"): name for name in self._option_string_actions}
        guess = closest(bare, known)
        return f"unknown flag {flag}" + (f"; did you mean {known[guess]}?" if guess else "")


class RowsParser(Parser):
    """The flags of a verb that gives a run rows to read, which may be spelt otherwise than its
    own: `keys` are those of the config's data section that say how.
    """

    def __init__(self, verb: str, what: str, keys: Sequence[str]) -> None:
        super().__init__(verb, what)
        self._keys = keys
        self.add_argument(
            f"{PREFIX}data.KEY",
            metavar="VALUE",
            help=f"how rows are read, where not as the run's: {', '.join(keys)}",
        )

    def given(self, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
        """The flags by name, and the config's keys that they replace (dotted key -> word)."""
        overrides, rest = _overrides(argv)
        for key in overrides:
            if key.removeprefix("data.") not in self._keys:
                self.error(
                    f"{PREFIX}{key} is the run's own; rows may differ in {', '.join(self._keys)}"
                )
        return self.parse(rest), overrides


class ConfigParser(Parser):
    """The flags of a verb that reads a recipe, among them one for every key of the config."""

    def __init__(self, verb: str, what: str, task_options: TaskOptions) -> None:
        super().__init__(verb, what, formatter_class=argparse.RawDescriptionHelpFormatter)
        self._keys = schema.keys(task_options(schema.DEFAULT_TASK))
        add = self.add_argument
        add("--config", metavar="F[:ARG]", help=f"the recipe file, by default {DEFAULT_CONFIG}")
        add("--config.KEY", metavar="VALUE", help="override a key of the recipe: see below")

    def given(self, argv: Sequence[str]) -> dict[str, Any]:
        """The flags by name; `config`, `arg` and `overrides` for the recipe."""
        overrides, rest = _overrides(argv)
        given = vars(self.parse(rest))
        del given["config.KEY"]
        path, arg = split_config(given.pop("config") or default_config())
        return {"config": path, "arg": arg, "overrides": overrides, **given}

    def format_help(self) -> str:
        return f"{super().format_help()}\n{key_table(self._keys)}"

    def _unknown(self, word: str) -> str:
        flag = word.partition("=")[0]
        first, _, rest = flag.lstrip("-").partition(".")
        said = super()._unknown(word)
        key = rest if closest(first, ["config"]) else None
        if not key and "did you mean" not in said:
            key = closest(flag.lstrip("-"), [key.name for key in self._keys])
        return f"unknown flag {flag}; did you mean {PREFIX}{key}?" if key else said


class TrainParser(ConfigParser):
    """The flags of `train`."""

    def __init__(self, task_options: TaskOptions) -> None:
        super().__init__("train", "Fine-tune a checkpoint.", task_options)
        add = self.add_argument
        add("--workdir", metavar="W", help="folder of the run; an unfinished run in it goes on")
        add_processes(self)
        add(
            "--compilation_cache_dir",
            metavar="D",
            help="where compiled programs are kept, or none; by default jaxft/xla in your cache",
        )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """The flags of a verb that several processes can share."""
    add = parser.add_argument
    add("--coordinator_address", metavar="HOST:PORT", help="of process 0, for several hosts")
    add("--num_processes", type=int, metavar="N", help="how many processes there are")
    add("--process_id", type=int, metavar="I", help="which one this is, from 0")


def train_flags(argv: Sequence[str], task_options: TaskOptions) -> Flags:
    """The command line of `train`; the overrides are checked by `config.load`.

    Raises: UserError; SystemExit(0) after printing for --help.
    """
    parser = TrainParser(task_options)
    given = parser.given(argv)
    index, count = given["process_id"], given["num_processes"]
    if None not in (index, count) and not 0 <= index < count:
        parser.error(f"--process_id={index} must be from 0 to {count - 1}")
    return Flags(**given)


def split_config(word: str) -> tuple[str, str]:
    """F[:ARG] as F and ARG; F ends in .py, so either may hold colons of its own."""
    path, mark, arg = word.rpartition(".py:")
    return (f"{path}.py", arg) if mark else (word, "")


def default_config() -> str:
    """The default recipe: in the current folder, else in the repository the package lies in."""
    here, beside = Path(DEFAULT_CONFIG), Path(__file__).parent.parent / DEFAULT_CONFIG
    return str(beside if beside.is_file() and not here.is_file() else here)


def key_table(keys: Sequence[schema.Key]) -> str:
    """The keys of the config as --help prints them."""
    width = min(shutil.get_terminal_size().columns, 100)
    lines = ["config keys, each a flag --config.KEY=VALUE:"]
    for key in keys:
        text = f"{key.help} ({key.allowed})" if key.help else key.allowed
        lines.append(f"  {key.name} = {key.default!r}")
        lines += textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a verb; a user's mistake is one message and exit code 2, a traceback a bug of ours."""
    try:
        main(sys.argv[1:])
        sys.stdout.flush()  # so that a closed pipe shows here, not at the interpreter's end
    except UserError as error:
        print(f"jaxft: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("jaxft: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; what is still buffered goes nowhere, quietly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _overrides(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The --config.KEY=VALUE and --config.KEY VALUE flags, and the words that are left."""
    overrides, rest = {}, []
    words = iter(argv)
    for word in words:
        if not word.startswith(PREFIX):
            rest.append(word)
            continue
        key, mark, value = word.removeprefix(PREFIX).partition("=")
        if not mark:
            value = next(words, "--")
            if value.startswith("--"):
                raise UserError(f"{word} needs a value: {word}=VALUE")
        overrides[key] = value
    return overrides, rest
