"""`python -m jaxft.evaluate`: scores of a run's weights on a file; one JSON object on stdout."""

from dataclasses import replace

from jaxft import files, flags
from jaxft.data.features import read_rows, read_splits
from jaxft.data.sources import refuse_unread
from jaxft.experiment import tokenise_splits
from jaxft.processes import joined, process_index, wait_for_all
from jaxft.scoring import Scorer
from jaxft.trained import STEP_HELP, in_place_of_keys, open_trained
from jaxft.workdir import Workdir

LABELLED = (*flags.READING, "label_column", "max_dropped", "cache_dir")


def main(argv: list[str]) -> None:
    parser = flags.RowsParser("evaluate", "Score a run's weights.", LABELLED)
    parser.add_argument("--workdir", required=True, metavar="W", help="folder of the run")
    parser.add_argument(
        "--data",
        metavar="F",
        help="labelled rows; by default the run's test split, else validation",
    )
    parser.add_argument("--exact_match", metavar="X", help="in place of the run's task.exact_match")
    parser.add_argument("--step", default="best", metavar="best|last|N", help=STEP_HELP)
    flags.add_processes(parser)
    given, overrides = parser.given(argv)
    with (
        joined(given) as say,
        open_trained(Workdir(given.workdir), given.step, say, overrides) as trained,
    ):
        words = {} if given.exact_match is None else {"exact_match": given.exact_match}
        told = in_place_of_keys(trained.experiment, words, words)
        experiment = replace(trained.experiment, task=replace(trained.experiment.task, **told))
        data = experiment.config.data
        own = ("test", data.test) if data.test else ("validation", data.validation)
        split, source = ("test", given.data) if given.data else own
        refuse_unread(overrides, [source] if source else [])
        if source is None:  # the run cut its validation rows from its training data
            rows = read_splits(experiment.module, data, experiment.config.task, say)[split]
        else:
            rows = read_rows(experiment.module, source, data, say, split=split)
        if not given.data:
            # Cut anew from other training data, validation would hold rows that were trained on.
            digests = {split: rows.digest}
            trained.workdir.refuse_other_inputs(digests, "give the rows to score as --data")
        splits = tokenise_splits(experiment, {"data": rows}, say)
        wait_for_all("the scores")
        scores, _ = Scorer(experiment, splits).scores(trained.params, "data")
        result = {"step": trained.step, "data": rows.source, "rows": len(splits["data"]), **scores}
        if process_index() == 0:
            print(files.dumps(result))


if __name__ == "__main__":
    flags.run(main)
