"""`python -m jaxft.plan`: what a run needs and costs, and whether it fits, before it is begun."""

import json
import sys

import jax

from jaxft import config as configs
from jaxft import flags, tasks, xla_flags
from jaxft.config import Config
from jaxft.planning import places, rendering
from jaxft.planning.advice import OBJECTIVES
from jaxft.planning.report import Questions, Report, make
from jaxft.stderr import aloud, silently


class PlanParser(flags.ConfigParser):
    """The flags of `plan`."""

    def __init__(self) -> None:
        super().__init__("plan", "What a run needs and costs, before it is begun.", tasks.options)
        add, plain = self.add_argument, Questions()
        add("--topology", metavar="T", help="such as v5e:4x4 or h100:8; by default this machine")
        add("--json", action="store_true", help="one JSON object in place of text")
        add("--no_compile", action="store_true", help="estimates alone, in seconds")
        add("--rows", type=int, metavar="N", help="examples of the training set, if not at hand")
        add("--price", type=float, metavar="P", help="of a chip for an hour")
        add("--mfu", type=float, default=plain.mfu, help="share of the peak expected (%(default)s)")
        add("--budget", type=float, metavar="B", help="for the run, in the price's currency")
        add("--variants", type=int, default=1, metavar="N", help="models wanted of one base")
        add("--objective", choices=OBJECTIVES, help="what is learnt; by default from the config")


def main(argv: list[str]) -> None:
    """The command line: prints the plan; exit code 1 where the run does not fit."""
    parser = PlanParser()
    given = parser.given(argv)
    for name, least in (("rows", 1), ("variants", 1), ("price", 0), ("budget", 0)):
        if given[name] is not None and given[name] < least:
            parser.error(f"--{name}={given[name]} must be at least {least}")
    if not 0 < given["mfu"] <= 1:
        parser.error(f"--mfu={given['mfu']} must be above 0 and at most 1")
    recipe, arg, overrides = given["config"], given["arg"], given["overrides"]
    config = configs.load(recipe, arg, overrides, tasks.options, needs_data=False, say=aloud)
    if given["topology"]:
        # The devices planned for are not here, and those here are not to be taken from others.
        jax.config.update("jax_platforms", "cpu")
    else:
        xla_flags.choose()  # as the run will
    place = places.find(given["topology"], compiling=not given["no_compile"])
    asked = ("rows", "price", "budget", "variants", "objective", "mfu")
    questions = Questions(**{name: given[name] for name in asked})
    report = make(config, place, aloud, questions)
    if given["json"]:
        print(json.dumps(report.to_json()))
    else:
        rendering.show(report)
    if not report.fits:
        sys.exit(1)


def compile_for(config: Config, topology: str | None = None) -> Report:
    """The plan of a config on a topology, compiled; by default on the devices here."""
    return make(config, places.find(topology), silently)


if __name__ == "__main__":
    flags.run(main)
