"""Recipes, overrides, checks and comparison of configs."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_values import Options

from jaxft import config, tasks
from jaxft.config import Config
from jaxft.errors import UserError


def options(name: str) -> type:
    if name != "classify":
        raise UserError(f"task.name={name!r} is no task; there is classify")
    return Options


BASE = """
from ml_collections import ConfigDict

def get_config(arg=""):
    config = ConfigDict()
    config.model = {"pretrained": arg or "some/model"}
    config.data = {"train": "train.csv"}
"""
Recipe = Callable[..., str]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    def write(body: str = "", base: str = BASE) -> str:
        path = tmp_path / "recipe.py"
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        path.write_text(base + lines + "    return config\n" if base == BASE else base)
        return str(path)

    return write


@pytest.fixture
def load(recipe: Recipe) -> Callable[..., Config]:
    def run(body: str = "", arg: str = "", **flags: str) -> Config:
        overrides = {name.replace("__", "."): word for name, word in flags.items()}
        return config.load(recipe(body), arg, overrides, options)

    return run


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_a_recipe_sets_keys_over_the_defaults(load):
    got = load(
        "config.optim = {'learning_rate': 1}\nconfig.seed = 7\nconfig.task = {'mode': 'one'}"
    )
    assert got.model.pretrained == "some/model"
    assert got.optim.learning_rate == 1.0
    assert isinstance(got.optim.learning_rate, float)
    assert got.seed == 7
    assert got.train == config.Train(num_train_epochs=3.0)
    assert (got.task.name, got.task.mode, got.task.sizes) == ("classify", "one", (1, 2))
    assert isinstance(got.task, Options)


def test_a_recipe_may_return_a_plain_dict_whose_regexes_hold_dots(recipe):
    path = recipe(
        base="def get_config():\n"
        "    return dict(model=dict(pretrained='m'), data=dict(train='t.csv'),\n"
        "                optim=dict(lr_multipliers={'layers.0/.*': 0.5}))\n"
    )
    assert config.load(path, "", {}, options).optim.lr_multipliers == {"layers.0/.*": 0.5}


def test_a_recipe_gets_its_argument_and_knows_where_it_lies(load):
    assert load(arg="other/model").model.pretrained == "other/model"
    got = load("import pathlib\nconfig.data.test = pathlib.Path(__file__).parent / 'test.csv'")
    assert Path(str(got.data.test)).is_absolute()


CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-0.5B", "llama3-8b", "gpt2", "distilgpt2", "mine"])
def test_a_recipe_fits_a_model_that_a_flag_names_as_the_one_behind_its_colon(
    path, model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    named = config.load(str(path), model, {}, tasks.options)
    assert config.load(str(path), "", {"model.pretrained": model}, tasks.options) == named
    hub = {"llama3-8b": "meta-llama/Llama-3.1-8B", "gpt2": "openai-community/gpt2"}
    assert named.model.pretrained == hub.get(model, model)


@pytest.mark.parametrize("name", ["clm", "llama_sft"])
def test_a_decoders_recipe_trains_a_real_model_gently(name):
    path = str(CONFIGS / f"{name}.py")
    smoke, real = (
        config.load(path, "", flags, tasks.options)
        for flags in ({}, {"model.pretrained": "Qwen/Qwen2.5-0.5B"})
    )
    assert (smoke.model.pretrained, smoke.optim.learning_rate) == (None, 2e-3)
    assert (real.model.config, real.optim.learning_rate) == (None, 1e-5)
    assert real.train.num_train_epochs <= 2
    assert real.model.activation_checkpointing == "full"


def test_a_recipes_own_argument_goes_before_a_flag_which_overrides_one_key_all_the_same(load):
    body = "config.seed = len(arg)"
    got = load(body, arg="a/b", model__pretrained="other/model")
    assert (got.seed, got.model.pretrained) == (3, "other/model")
    assert load(body, model__pretrained="other/model").seed == 11
    assert load(body, model__pretrained="'other/model'").seed == 11
    got = load(body, model__pretrained="None", model__config="{}")
    assert (got.seed, got.model.pretrained) == (0, None)
    message = refusal(load, "config.seed = [0][len(arg)]", model__pretrained="m/n")
    assert "failed at line 8 with the argument 'm/n': IndexError" in message


def test_a_recipe_without_an_argument_is_given_none(recipe):
    base = "def get_config():\n    return dict(model=dict(pretrained='m'), data=dict(train='t'))\n"
    flags = {"model.pretrained": "other/model"}
    assert config.load(recipe(base=base), "", flags, options).model.pretrained == "other/model"


def test_a_flags_training_set_leaves_out_what_the_recipe_held_out_of_its_own(recipe):
    def said(**flags: str) -> tuple[Config, list[str]]:
        lines: list[str] = []
        overrides = {f"data.{name}": word for name, word in flags.items()}
        path = recipe("config.data.update({'validation': 'v.csv', 'test': 't.csv'})")
        return config.load(path, "", overrides, options, say=lines.append), lines

    got, lines = said(train="mine.csv")
    assert (got.data.train, got.data.validation, got.data.test) == ("mine.csv", None, None)
    (line,) = lines
    assert "leaves out the recipe's data.validation=v.csv, data.test=t.csv;" in line
    got, lines = said(train="mine.csv", validation="held.csv")
    assert (got.data.validation, got.data.test) == ("held.csv", None)
    assert "leaves out the recipe's data.test=t.csv;" in lines[0]
    got, lines = said(train="mine.csv", validation="v.csv", test="none")
    assert (got.data.validation, got.data.test, lines) == ("v.csv", None, [])
    got, lines = said(**{"train.mine.csv": "1"})
    assert (got.data.train, got.data.validation) == ({"mine.csv": 1.0}, None)
    for flags in ({}, {"max_length": "9"}, {"test": "other.csv"}):
        got, lines = said(**flags)
        assert (got.data.validation, lines) == ("v.csv", [])


def test_loading_a_recipe_leaves_no_bytecode_and_sees_each_edit(load, tmp_path):
    assert load("config.seed = 1").seed == 1
    assert load("config.seed = 2").seed == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.py"]


@pytest.mark.parametrize(
    ("text", "arg", "said"),
    [
        ("def get_config():\n    return {}\n", "big", "takes no argument, and 'big' was given"),
        ("x = 1\n", "", "has no function get_config"),
        ("def get_config():\n    return 3\n", "", "must return a ConfigDict or a dict"),
        ("def get_config():\n    return {}[1]\n", "", "failed at line 2: KeyError: 1"),
        ("def get_config(:\n", "", "failed at line 1: SyntaxError"),
        ("import nothing_of_this_name\n", "", "failed at line 1: ModuleNotFoundError"),
    ],
)
def test_a_broken_recipe_is_a_clear_error(recipe, text, arg, said):
    assert said in refusal(config.load, recipe(base=text), arg, {}, options)


def test_a_missing_recipe_names_the_one_that_is_there(recipe):
    path = Path(recipe())
    said = refusal(config.load, str(path.with_name("recip.py")), "", {}, options)
    assert f"did you mean {path}?" in said
    assert "recipe.py" in refusal(config.load, str(path.with_name("zzz.py")), "", {}, options)


def test_a_wrong_value_is_refused_with_the_key_the_value_and_what_is_allowed(load):
    message = refusal(load, optim__layer_decay="1.1")
    assert re.match(r"1 problem in the config \S+recipe.py:\n", message)
    assert message.endswith("\n  --config.optim.layer_decay=1.1: must be > 0 and <= 1")


def test_a_recipes_values_are_held_to_the_same_types(load):
    message = refusal(load, "config.train = {'batch_size': '8'}\nconfig.data.header = 1")
    assert "train.batch_size = '8': must be a whole number" in message
    assert "data.header = 1: must be true or false" in message


def test_a_subkey_sets_one_entry_of_a_dict(load):
    got = load(
        "config.optim = {'lr_scheduler_kwargs': {'a': 1}}",
        optim__lr_scheduler_kwargs__num_cycles="2",
        model__config__hidden_size="64",
        model__config__rope__factor="2.5",
        model__config__act="gelu",
        task__weights__refund="3",
    )
    assert got.optim.lr_scheduler_kwargs == {"a": 1, "num_cycles": 2}
    assert got.model.config == {"hidden_size": 64, "rope": {"factor": 2.5}, "act": "gelu"}
    assert got.task.weights == {"refund": 3.0}


def test_dots_below_a_dict_of_regexes_belong_to_the_regex(recipe):
    flags = {"optim.lr_multipliers.layers.*/kernel": "0.5"}
    got = config.load(recipe(), "", flags, options)
    assert got.optim.lr_multipliers == {"layers.*/kernel": 0.5}
    message = refusal(config.load, recipe(), "", {"optim.lr_multipliers.a": "-1"}, options)
    assert "--config.optim.lr_multipliers.a=-1: must be >= 0" in message


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("optim.lr", "optim.learning_rate"),
        ("optim.learnig_rate", "optim.learning_rate"),
        ("train.learning_rate", "optim.learning_rate"),
        ("train.epochs", "train.num_train_epochs"),
        ("train.per_device_train_batch_size", "train.batch_size"),
        ("wd", "optim.weight_decay"),
        ("task.smooting", "task.smoothing"),
        ("sed", "seed"),
        ("optm", "optim"),
    ],
)
def test_pitfall_25_unknown_or_misspelt_key_is_an_error(recipe, name, meant):
    by_flag = refusal(config.load, recipe(), "", {name: "1"}, options)
    assert f"--config.{name}=1: no such key; did you mean {meant}?" in by_flag
    raw: dict[str, Any] = {"model": {"pretrained": "m"}, "data": {"train": "t"}}
    home, _, last = name.rpartition(".")
    (raw.setdefault(home, {}) if home else raw)[last] = 1
    by_file = refusal(config.from_dict, raw, options)
    assert f"no such key; did you mean {meant}?" in by_file


def test_a_misspelt_section_is_found_from_its_name_or_from_a_key_in_it(load):
    assert "did you mean optim.learning_rate?" in refusal(load, optm__learning_rate="1")
    assert "did you mean optim?" in refusal(load, "config.optm = {'learning_rate': 1}")


def test_an_unknown_key_lists_the_keys_of_its_section(load):
    message = refusal(load, mesh__q="1")
    assert "mesh has: data, fsdp, context, tensor, zero_stage" in message
    assert "did you mean" not in message
    assert "there are: model, task, data," in refusal(load, zzz="1")


def test_a_section_and_a_key_are_not_taken_for_each_other(load):
    assert "a section; set its keys: mesh.data, mesh.fsdp, mesh.context, mesh.tensor" in refusal(
        load, mesh="3"
    )
    assert "mesh = 3: a section" in refusal(load, "config.mesh = 3")
    assert "optim.name is one of" in refusal(load, optim__name__x="3")


def test_all_problems_come_in_one_message(load):
    message = refusal(
        load,
        "config.optim = {'learning_rate': -1.0, 'nam': 'sgd'}",
        train__batch_size="x",
        task__name="clasify",
        task__smoothing="9",
    )
    assert message.startswith("4 problems in the config ")
    lines = re.findall(r"^  (\S+)", message, re.MULTILINE)
    assert sorted(lines) == [
        "--config.train.batch_size=x:",
        "optim.learning_rate",
        "optim.nam",
        "task.name='clasify'",
    ]


def test_a_flag_takes_the_place_of_the_recipes_other_choice(load):
    got = load("config.train = {'num_train_epochs': 2}", train__max_steps="5")
    assert (got.train.max_steps, got.train.num_train_epochs) == (5, None)
    got = load("config.train = {'max_steps': 5}", train__num_train_epochs="1")
    assert (got.train.max_steps, got.train.num_train_epochs) == (None, 1.0)
    got = load(model__config="{}")
    assert (got.model.pretrained, got.model.config) == (None, {})
    message = refusal(load, train__max_steps="5", train__num_train_epochs="1")
    assert "both say when to stop" in message
    assert load("config.train = {'max_steps': 5}", train__max_steps="None") == load()


def test_a_wrong_key_does_not_also_count_as_missing(load):
    message = refusal(
        config.from_dict, {"data": {"trian": "t"}, "model": {"pretraned": 1}}, options
    )
    assert message.startswith("2 problems")


def test_a_config_survives_json(load):
    got = load("config.task = {'sizes': (3, 4), 'weights': {'a': 1}}", optim__warmup_steps="7")
    again = config.from_dict(json.loads(json.dumps(config.to_dict(got))), options)
    assert again == got
    assert again.task.sizes == (3, 4)
    assert config.differences(got, again) == {}


def test_differences_are_dotted_and_hold_both_values(load):
    a, b = load(), load(seed="3", optim__lr_multipliers="{'x': 2}")
    assert config.differences(a, b) == {
        "seed": (0, 3),
        "optim.lr_multipliers": ({}, {"x": 2.0}),
    }


def test_resuming_may_change_where_a_run_is_computed_and_kept_but_not_what(load):
    saved = load()
    moved = load(
        mesh__fsdp="2",
        checkpoint__keep_last="5",
        train__logging_steps="1",
        train__report_to="",
        train__eval_batch_size="7",
        data__cache_dir="/elsewhere",
    )
    assert len(config.differences(saved, moved)) == 6
    assert config.resume_conflicts(saved, moved) == []
    other = load(
        optim__learning_rate="1e-3", task__mode="one", mesh__fsdp="2", train__batch_size="1"
    )
    conflicts = ["optim.learning_rate", "task.mode", "train.batch_size"]
    assert sorted(config.resume_conflicts(saved, other)) == conflicts


def test_a_config_cannot_be_changed(load):
    with pytest.raises(dataclasses.FrozenInstanceError):
        load().train.batch_size = 3


def test_steps_are_counts_or_shares_rounded_up():
    assert config.steps(7, 100) == 7
    assert config.steps(0.1, 100) == 10
    assert config.steps(0.1, 101) == 11
    assert config.steps(1e-9, 100) == 1
    assert config.steps(0.0, 100) == config.steps(0, 100) == 0
    assert config.steps(0.999, 10) == 10
