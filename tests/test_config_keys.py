"""Every key of the config is read by what computes, not only by what checks and saves the
config.
"""

import sys
from dataclasses import fields

import pytest
import runs
import talk

from jaxft import evaluate, export, predict, schema, tasks, train
from jaxft.config import Schedule
from jaxft.optim import make_optimizer
from jaxft.source import load_tokenizer

pytestmark = pytest.mark.usefixtures("hurry")
BOOKKEEPING = ("dataclasses", "copy", "jaxft.schema", "jaxft.values", __name__)
"""Modules that look at every key, whatever it means."""
COPIES = ("Options.clashes", "Task.from_rows", "__create_fn__")
"""Functions that compare or copy a task's keys; dataclasses writes the last ones."""
TASKS = ("classify", "causal_lm")


@pytest.fixture
def read(monkeypatch) -> set[str]:
    """Dotted keys that were read since the fixture was made."""
    seen: set[str] = set()

    def watch(section: str, kind: type) -> None:
        names = {field.name for field in fields(kind)}

        def look(self: object, name: str) -> object:
            asker = sys._getframe(1)
            copies = asker.f_code.co_qualname.startswith(COPIES)
            if asker.f_globals["__name__"] not in BOOKKEEPING and not copies:
                # vars(config.mesh) takes all of a section.
                seen.update(
                    f"{section}.{key}" for key in (names if name == "__dict__" else {name} & names)
                )
            return object.__getattribute__(self, name)

        monkeypatch.setattr(kind, "__getattribute__", look)

    for task in TASKS:
        for section, kind in schema.sections(tasks.options(task)).items():
            watch(section, kind)
        watch("task", tasks.options(task))  # which a task may inherit
    watch("", schema.Config)
    return seen


def keys(task: str) -> set[str]:
    return {key.name for key in schema.keys(tasks.options(task))}


def test_pitfall_25_every_config_key_is_read(read, tmp_path, tiny_bert_folder, capsys):
    finished = runs.finished(tiny_bert_folder)
    read.clear()
    runs.run(tmp_path / "run", finished.keys)
    evaluate.main([f"--workdir={tmp_path}/run"])
    predict.main([f"--workdir={tmp_path}/run", f"--input={finished.keys['data.test']}"])
    holed = runs.table(tmp_path / "holed.csv", [*runs.rows(20, 1), ("", "good")])
    other = {"data.train": holed, "data.validation": "none", "data.max_dropped": 0.1}
    other |= {"model.pretrained": "none", "model.config": tiny_bert_folder}
    other |= {"train.max_steps": "none", "train.num_train_epochs": 2}
    experiment, *_ = runs.assembled(finished.keys | other)
    assert Schedule.of(experiment.config, 5).total == 10
    for name in ("sgd", "lion", "adafactor"):
        make_optimizer(schema.Optim(name=name), experiment.drawn.weights, 10)
    unread = keys("classify") - {key.removeprefix(".") for key in read}
    assert not unread


def test_pitfall_25_and_8_keys_of_causal_lm_are_read_and_a_named_template_is_exported(
    read, tmp_path, capsys
):
    data, folder = talk.lines(tmp_path / "rows.jsonl", talk.chats()), talk.folder(tmp_path)
    (folder / "chat_template.jinja").unlink()
    raw = talk.recipe(folder, data, train={"max_steps": 4, "eval_steps": 4})
    raw["task"] |= {"chat_template": "plain", "exact_match": "text", "max_new_tokens": 4}
    train.main(talk.words(raw, tmp_path / "run"))
    assert "User: red and blue⏎\n⏎\nAssistant: violet<|endoftext|>" in capsys.readouterr().err
    predict.main([f"--workdir={tmp_path}/run", f"--input={data}"])
    unread = keys("causal_lm") - keys("classify") - {key.removeprefix(".") for key in read}
    assert not unread
    export.main([f"--workdir={tmp_path}/run", f"--output={tmp_path}/out"])
    exported = load_tokenizer(tmp_path / "out")
    asked = exported.apply_chat_template(
        talk.chats()[0]["messages"][:1], add_generation_prompt=True, tokenize=False
    )
    assert asked == "User: red and blue\n\nAssistant:"


def test_a_key_that_nothing_reads_would_be_found(read, tiny_bert_folder):
    finished = runs.finished(tiny_bert_folder)
    read.clear()
    experiment, *_ = runs.assembled(finished.keys)
    assert "data.max_length" in read
    assert "checkpoint.keep_last" not in read, "assembling keeps nothing"
    assert experiment.config.checkpoint.keep_last == 2  # read by this test, which does not count
    assert "checkpoint.keep_last" not in read
