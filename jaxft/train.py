"""`python -m jaxft.train`: fine-tune every weight of a checkpoint, and score it. The algorithm is
`Run.loop`.
"""

import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

import jax
import numpy as np

from jaxft import config as configs
from jaxft import flags, summary, tasks, xla_flags
from jaxft.checkpoint import check_room
from jaxft.compilation import keep_compiled
from jaxft.config import Config
from jaxft.data.batches import stream
from jaxft.data.cache import cache_key
from jaxft.data.encoding import tokenizer_content
from jaxft.data.features import EVALUATION
from jaxft.errors import NonFiniteAnswers, UserError
from jaxft.experiment import assemble
from jaxft.history import History
from jaxft.interrupts import Interrupts, Stopped
from jaxft.memory_error import explained, memory_by_cause
from jaxft.nn.weights import Tree
from jaxft.parts import Parts
from jaxft.pretrained import Match
from jaxft.processes import agree, start_processes, tell, together, wait_for_all
from jaxft.recorder import NonFiniteLoss, Recorder
from jaxft.report import check_reporters
from jaxft.scoring import Outputs
from jaxft.source import origin
from jaxft.stderr import Say, aloud, silently
from jaxft.step import TrainState
from jaxft.workdir import Workdir

SAME_COMMAND = (
    "Every process of a job takes the same command and recipe; only --process_id may differ."
)
SAME_INPUTS = (
    "These are digests of what was read: every host needs the same files and the same tokenizer."
)


def main(argv: list[str]) -> None:
    """The command line: a new run, an unfinished one that goes on, or a finished one's result."""
    given = flags.train_flags(argv, tasks.options)
    notes: list[str] = []
    config = configs.load(given.config, given.arg, given.overrides, tasks.options, say=notes.append)
    chosen = xla_flags.choose()
    start_processes(given.coordinator_address, given.num_processes, given.process_id)
    with together():
        kept = keep_compiled(given.compilation_cache_dir)
        cache = {"--compilation_cache_dir": jax.config.values["jax_compilation_cache_dir"]}
        command = {**configs.flatten(config), "--workdir": given.workdir, **cache}
        agree("command", command, SAME_COMMAND)
        leads = jax.process_index() == 0
        say = aloud if leads else silently
        count, kind = len(jax.devices()), jax.devices()[0].device_kind
        say(f"jaxft on {count} x {kind}, {jax.process_count()} process(es)")
        for line in (*chosen, kept, *notes):
            say(line)
        workdir = Workdir(given.workdir) if given.workdir else Workdir.new(given.config)
        workdir.refuse_other_config(config, tasks.options)
        result = tell("result", workdir.result()) or train(config, workdir, say, given.plan)
        if leads:
            summary.announce(result, workdir, say)


def train(config: Config, workdir: Workdir, say: Say, plan: str) -> dict[str, Any]:
    """Runs to the end and returns what `result.json` holds. `plan` is the command that says what
    would fit.

    Raises:
        Stopped: by a signal; the same command goes on.
        UserError: what the user can mend; whatever was reached is saved before.
    """
    if jax.process_index() == 0:
        check_reporters(config.train.report_to)
    experiment, splits, matched = assemble(config, say)
    run = Run(experiment, splits, workdir, say)
    run.inspect()
    with ExitStack() as stack:
        run.prepare_workdir(stack)
        stack.callback(lambda: run.checkpoints.close())
        wait_for_all("the start")  # reading and tokenising lie behind everyone; collectives begin
        with together(), explained(lambda: memory_by_cause(run), plan):
            newest = run.recall()
            steps = {} if run.is_over(newest) else run.compile(newest)
            state, step = run.begin(matched)
            if step < newest:  # that one could not be read
                steps = run.compile(step)
            if not run.is_over(step):
                state, step = run.loop(steps, state, step)
            return run.finish(state, step)


@dataclass
class Run(Parts):
    """One run: what it does with its parts."""

    validated: dict[int, tuple[dict[str, float], Outputs]] = field(default_factory=dict)
    """The last evaluation, by its step."""
    began_s: float = field(default_factory=time.perf_counter)
    inspection: dict[str, Any] = field(default_factory=dict)

    def inspect(self) -> None:
        """Shows what the data are, what looks wrong and what devices hold, before step 1."""
        _ = self.scorer  # which refuses rows that task.exact_match cannot ask
        epochs = self.schedule.total / self.plan.batches_per_epoch
        self.inspection = summary.inspect(self.experiment, self.splits, epochs, self.plan)
        self.say(summary.padding(self.plan))
        self.say(summary.held(self.experiment, self.abstract))

    def prepare_workdir(self, stack: ExitStack) -> None:
        """Checks that the run can be written down, and writes what describes it; no other run may
        do so before the stack is closed.
        """
        digests = {"tokenizer": cache_key(**tokenizer_content(self.experiment.tokenizer))}
        digests |= {name: split.rows.digest for name, split in self.splits.items()}
        agree("inputs", digests, SAME_INPUTS)
        if jax.process_index() == 0:
            leaves = jax.tree.leaves(self.abstract)
            keep = self.config.checkpoint
            check_room(
                self.workdir.checkpoints,
                sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
                keep.keep_last + keep.keep_best + 1,
            )
            self.workdir.prepare()
            stack.enter_context(self.workdir.locked(self.say))
            # Asked again: another run may have trained here while this one read its data.
            self.workdir.refuse_other_config(self.config, tasks.options)
            self.workdir.refuse_other_inputs(digests)
            self.workdir.write_json("config.json", configs.to_dict(self.config))
            self.workdir.save_model(self.experiment.hf_config, self.experiment.tokenizer)
            self.workdir.write_json("origin.json", origin(self.config.model.pretrained))
            self.workdir.write_json("task.json", asdict(self.experiment.task))
            self.workdir.write_json("inputs.json", digests)
        self.workdir.require_shared()
        self.say(f"Writing to {self.workdir}")

    def begin(self, matched: Match | None) -> tuple[TrainState, int]:
        """The state to start from and how many updates it has behind it."""
        if not self.checkpoints.steps:
            return self.experiment.initial_state(self.optimizer, matched), 0
        abstract = self.abstract
        optimizer = {"step": abstract.step, "moments": abstract.opt_state}
        restored = self.checkpoints.restore(abstract.params, optimizer)
        compile_s, self.history = self.history.compile_s, History.from_meta(restored.meta)
        self.history.compile_s = compile_s  # with what has been compiled since
        self.say(f"Resuming after step {restored.step} of {self.schedule.total}")
        moments = restored.optimizer
        return TrainState(moments["step"], restored.params, {}, moments["moments"]), restored.step

    def is_over(self, step: int) -> bool:
        """Whether nothing is left to do after this step: the schedule has ended, or the score
        stopped improving.
        """
        return step == self.schedule.total or self._has_stalled()

    def loop(
        self, steps: dict[int, Callable], state: TrainState, start: int
    ) -> tuple[TrainState, int]:
        """Updates until the run is over; returns the state and its step.

        Raises: Stopped: a signal came, and all is saved.
        """
        with ExitStack() as stack:
            recorder = self.recorder(start, stack)
            interrupts = stack.enter_context(Interrupts())
            batches = stream(self.source, start, self.experiment.rows)
            if start == 0:
                summary.log_preview(recorder.log, self.experiment, self.splits["train"])
                self._evaluate_further(recorder, state, 0)
            try:
                for step, batch in enumerate(batches, start + 1):
                    length = batch.tokens.ids_BL.shape[1]
                    before = recorder.look(step, state.params)
                    state, metrics = steps[length](state, batch, np.int32(step - 1))
                    metrics |= recorder.compare(before, state.params)
                    recorder.push(step, metrics, self.work(step, length))

                    leaving, scores = interrupts.stop(step), None
                    if step % self.schedule.evaluate == 0 or step == self.schedule.total:
                        scores = self._evaluate(recorder, state, step)
                    if scores or leaving or step % self.schedule.save == 0:
                        self._save(recorder, state, step, scores)
                    if over := self.is_over(step):
                        self.checkpoints.wait()  # before a signal may end the process again
                    if leaving or (over and interrupts.stop(step + 1)):
                        self._leave(recorder, interrupts, step)
                    if over:
                        return state, step
            except NonFiniteLoss as error:
                self._save(recorder, state, error.step - 1, None)
                folder = summary.dump_batch(self.workdir, self.source, self.splits["train"], error)
                raise UserError(summary.advise_non_finite(error, folder)) from error
        raise AssertionError("the plan ended before the schedule")

    def finish(self, state: TrainState, end: int) -> dict[str, Any]:
        """Scores the best weights and writes result.json and report.html.

        Raises: UserError where there is no room for them.
        """
        if end < self.schedule.total:
            waited = self.config.train.early_stopping_patience
            self.say(f"Early stopping: {self.metric} has not improved for {waited} evaluations")
        best = self.checkpoints.best or end
        params = state.params
        if best != end:
            self.say(f"Restoring the best checkpoint (step {best})")
            params = self.checkpoints.restore(self.abstract.params, step=best).params
        found = {
            name: self._final_scores(params, best, name) for name in self.splits if name != "train"
        }
        self.history.wall_s += time.perf_counter() - self.began_s
        result = summary.result(self.experiment, self.history, end, best, found)
        if jax.process_index() == 0:
            try:
                summary.write(
                    self.workdir, self.experiment, self.splits, result, found, self.inspection
                )
            except OSError as error:
                raise UserError(
                    f"The result cannot be written to {self.workdir}: {error}. Make room; the "
                    "same command goes on from the last checkpoint."
                ) from error
        return result

    def _evaluate(self, recorder: Recorder, state: TrainState, step: int) -> dict[str, float]:
        recorder.drain()
        scores, outputs = self._scores(state.params, step, "validation")
        self.validated = {step: (scores, outputs)}
        self.history.evaluations.append((step, scores))
        targets = self.splits["validation"].targets
        summary.log_scores(recorder, self.experiment.task, step, scores, outputs, targets)
        self._evaluate_further(recorder, state, step)
        return scores

    def _evaluate_further(self, recorder: Recorder, state: TrainState, step: int) -> None:
        """Scores of the named evaluation sets; at step 0, what there is to forget."""
        for name in self.splits:
            if name.startswith(EVALUATION):
                scores, _ = self._scores(state.params, step, name)
                summary.log_further(recorder, name, step, scores)
                if step == 0:
                    self.history.before[name] = scores
        recorder.restart_clock()

    def _final_scores(self, params: Tree, best: int, name: str) -> tuple[dict[str, float], Outputs]:
        if name == "validation" and best in self.validated:
            return self.validated[best]
        return self._scores(params, best, name)

    def _scores(self, params: Tree, step: int, name: str) -> tuple[dict[str, float], Outputs]:
        try:
            return self.scorer.scores(params, name)
        except NonFiniteAnswers as error:
            raise UserError(summary.advise_non_finite_answers(error, step, name)) from error

    def _has_stalled(self) -> bool:
        patience, lower = self.config.train.early_stopping_patience, self.experiment.lower_is_better
        return (
            patience is not None
            and self.history.without_improvement(self.metric, lower) >= patience
        )

    def _save(
        self, recorder: Recorder, state: TrainState, step: int, scores: dict[str, float] | None
    ) -> None:
        recorder.drain()
        self.history.wall_s += time.perf_counter() - self.began_s
        self.began_s = time.perf_counter()
        self.checkpoints.save(
            step,
            params=state.params,
            optimizer={"step": state.step, "moments": state.opt_state},
            meta=self.history.to_meta(),
            scores=scores,
        )
        recorder.log.flush()
        recorder.restart_clock(counting=True)

    def _leave(self, recorder: Recorder, interrupts: Interrupts, step: int) -> NoReturn:
        self.checkpoints.wait()
        assert interrupts.received is not None
        recorder.bar.say(
            f"Stopped by {interrupts.received.name} after step {step}, which is saved. The same "
            f"command with --workdir={shlex.quote(str(self.workdir))} goes on."
        )
        raise Stopped(interrupts.received)


if __name__ == "__main__":
    flags.run(main)
