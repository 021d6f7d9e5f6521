"""The four verbs on decoders: what predict says, what transformers makes of an export."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import talk
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import processors

from jaxft import config as configs
from jaxft import flags, tasks, train
from jaxft.errors import UserError
from jaxft.experiment import assemble
from jaxft.nn.tokens import Tokens
from jaxft.source import byte_tokenizer, load_tokenizer
from jaxft.train import Run
from jaxft.trained import open_trained
from jaxft.workdir import Workdir

pytestmark = pytest.mark.usefixtures("hurry")
SAME_LOGITS = 1e-5
"""Relative difference of logits between transformers and jaxft, in float32. Seen is 1e-6."""
OTHER_ORDER = 1e-6
"""Relative difference of a loss whose batches were cut in another way."""
NO_TORCH = "torch, the oracle, is not installed"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> runs.Finished:
    """A Llama that knows eight chats by heart."""
    return talk.finished(tmp_path_factory.mktemp("finished"), "llama", "chats")


@pytest.fixture
def call(capsys, finished):
    """Runs a verb on the finished run and returns its stdout."""

    def run(verb: str, *words: str, workdir: Path | None = None) -> str:
        capsys.readouterr()
        runs.VERBS[verb].main([f"--workdir={workdir or finished.workdir}", *words])
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys, finished):
    def run(verb: str, *words: str) -> str:
        return runs.refused(capsys, verb, [f"--workdir={finished.workdir}", *words])

    return run


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# train and evaluate


def test_it_learns_eight_chats_by_heart(finished):
    scores = finished.result["validation"]
    assert scores["token_accuracy"] == 1.0
    assert scores["loss"] < 0.05
    assert scores["perplexity"] == pytest.approx(np.exp(scores["loss"]))
    assert scores["exact_match"] == 1.0
    rows = runs.metrics(finished.workdir)
    found = {r["step"]: r["validation/exact_match"] for r in rows if "validation/loss" in r}
    assert list(found) == [40, 80]
    assert found[finished.result["best_step"]] == 1.0
    assert "of chats every answer" in finished.said
    assert "learnt tokens in green" in finished.said


def as_tensorboard_shows(text: str) -> str:
    with warnings.catch_warnings():  # of its own copy of html5lib
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorboard.plugin_util import markdown_to_safe_html
    return markdown_to_safe_html(text)


def test_the_examples_and_the_padding_are_shown_before_the_run(finished):
    events = EventAccumulator(str(finished.workdir)).Reload()
    tags = [f"example/{n}" for n in (1, 2, 3)]
    shown = [events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags]
    for text, chat in zip(shown, talk.chats(), strict=False):
        rendered = as_tensorboard_shows(text)
        assert "&lt;|im_start|&gt;user⏎\n" in rendered
        said = [turn["content"] for turn in chat["messages"] if turn["role"] == "assistant"]
        learnt = re.findall("<strong>(.*?)</strong>", rendered, re.DOTALL)
        assert learnt == [answer + "&lt;|im_end|&gt;" for answer in said]
    (line,) = (line for line in finished.said.splitlines() if line.startswith("Padding: "))
    lengths = [
        len(byte_tokenizer().apply_chat_template(c["messages"])["input_ids"]) for c in talk.chats()
    ]
    figures = re.findall(r"([\d.]+)% \(rows of (\d+)\)", line)
    assert len(figures) == 2, "as it is, and with data.packing=none"
    for padding, width in figures:  # eight devices take eight rows, shared or not
        assert float(padding) == round(100 - 100 * sum(lengths) / 8 / int(width), 1)


@pytest.mark.parametrize("recipe", ["llama_sft", "clm"])
def test_the_smoke_recipes_run_as_they_are_and_say_what_they_are(recipe, tmp_path, capsys):
    """Their own model, chats and texts, for two updates."""
    train.main(
        [
            f"--config=configs/{recipe}.py",
            f"--workdir={tmp_path / 'run'}",
            f"--config.data.cache_dir={tmp_path / 'tokens'}",
            "--config.train.num_train_epochs=none",
            "--config.train.max_steps=2",
            "--config.train.eval_steps=2",
        ]
    )
    said = capsys.readouterr().err
    assert "its weights drawn at random: a smoke run, to see that everything works." in said
    for key in "model.pretrained=FOLDER_OR_HUB_ID", "data.train=FILE":
        assert f"--config.{key}" in said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    # Bytes drawn at random: as much as a guess among all of them.
    assert abs(result["validation"]["loss"] - np.log(len(byte_tokenizer()))) < 0.5


def test_evaluate_scores_the_run_and_any_file(call, finished, tmp_path):
    result = json.loads(call("evaluate"))
    assert result["step"] == finished.result["best_step"]
    assert result["rows"] == len(talk.chats())
    for name, value in finished.result["validation"].items():
        assert result[name] == pytest.approx(value, rel=OTHER_ORDER)
    other = talk.lines(tmp_path / "other.jsonl", talk.questions()[:3])
    assert json.loads(call("evaluate", f"--data={other}"))["loss"] > 1


def test_evaluate_scores_answers_or_not_as_it_is_told(call, refused, finished, tmp_path):
    texts = talk.lines(tmp_path / "texts.jsonl", [{"text": "Once upon a time."}])
    message = refused("evaluate", f"--data={texts}")
    assert "task.exact_match=text finds no answer in it" in message
    assert "--exact_match=none" in message
    found = json.loads(call("evaluate", f"--data={texts}", "--exact_match=none"))
    assert found["loss"] > 0
    assert "exact_match" not in found
    assert "none, number, text" in refused("evaluate", "--exact_match=letter")


def test_rows_that_cannot_be_asked_are_refused_before_anything_is_written(tmp_path, capsys):
    data = talk.lines(tmp_path / "rows.jsonl", talk.questions())
    raw = talk.recipe(talk.folder(tmp_path), data)
    raw["task"] |= {"exact_match": "number"}
    message = runs.refused(capsys, "train", talk.words(raw, tmp_path / "run"))
    assert "rows.jsonl line 1: task.exact_match=number finds no number in it" in message
    assert not (tmp_path / "run").exists()


# predict


def test_predict_says_what_it_has_learnt_and_echoes_every_row(call, tmp_path):
    rows = [
        {"id": i, "messages": chat["messages"][:-1], "more": {"deep": [i]}}
        for i, chat in enumerate(talk.chats())
    ]
    path = talk.lines(tmp_path / "in.jsonl", rows)
    answers = [chat["messages"][-1]["content"] for chat in talk.chats()]
    expected = [{**row, "completion": said} for row, said in zip(rows, answers, strict=True)]
    assert rows_of(call("predict", f"--input={path}")) == expected


def test_a_chat_that_ends_with_an_answer_is_asked_again(call, finished):
    said = rows_of(call("predict", f"--input={finished.keys['data.train']}"))
    for row, chat in zip(said, talk.chats(), strict=True):
        assert row == {**chat, "completion": chat["messages"][-1]["content"]}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_predict_answers_prompts_with_or_without_completions(call, tmp_path, kind):
    prompts = [row["prompt"] for row in talk.questions()[:3]]
    if kind == "csv":
        content = [(prompt, i) for i, prompt in enumerate(prompts)]
        path = runs.table(tmp_path / "in.csv", content, ("prompt", "n"))
    else:
        path = talk.lines(tmp_path / "in.jsonl", talk.questions()[:3])
    said = rows_of(call("predict", f"--input={path}"))
    assert [row["prompt"] for row in said] == prompts
    name = "completion" if kind == "csv" else "model_completion"
    if kind == "jsonl":
        own = [row["completion"] for row in talk.questions()[:3]]
        assert [row["completion"] for row in said] == own, "what the rows have is kept"
    assert all(isinstance(row[name], str) for row in said)
    assert all("<|" not in row[name] for row in said), "special tokens are left out"


def test_a_document_asks_nothing(refused, tmp_path):
    (tmp_path / "in.txt").write_text("one\ttab\n\ntwo\nthree\n")
    message = refused("predict", f"--input={tmp_path}/in.txt")
    assert "in.txt: nothing to answer" in message


def test_an_answer_that_has_no_free_column_is_refused(refused, tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "model_completion": "c"}]
    path = talk.lines(tmp_path / "in.jsonl", rows)
    assert refused("predict", f"--input={path}") == "The rows have 'model_completion': rename that."


def test_flags_say_how_answers_are_drawn(call, tmp_path):
    path = talk.lines(tmp_path / "in.jsonl", [{"prompt": f"Say {i}"} for i in range(4)])

    def said(*words: str) -> list[str]:
        given = ("--max_new_tokens=5", *words)
        return [row["completion"] for row in rows_of(call("predict", f"--input={path}", *given))]

    likeliest = said()
    assert max(map(len, likeliest)) <= 5
    hot = said("--temperature=5")
    assert hot != likeliest
    assert said("--temperature=5", "--seed=1") not in (hot, likeliest)
    assert said("--temperature=5", "--top_k=1") == likeliest


@pytest.mark.parametrize("flag", ["--top_p=0.5", "--top_k=4", "--seed=3"])
def test_pitfall_25_flags_of_drawing_are_refused_where_nothing_is_drawn(refused, finished, flag):
    asked = f"--input={finished.keys['data.train']}"
    for words in ((asked, flag), (asked, flag, "--temperature=0")):
        said = refused("predict", *words)
        assert said.startswith(f"{flag.partition('=')[0]}: tokens are drawn above temperature 0")


@pytest.mark.parametrize(
    "flag", ["--temperature=-1", "--top_p=0", "--top_k=1.5", "--max_new_tokens=0", "--seed=x"]
)
def test_flags_have_the_ranges_of_their_keys(refused, finished, flag):
    assert refused("predict", f"--input={finished.keys['data.train']}", flag).startswith(
        f"{flag}: "
    )


def test_a_row_without_a_word_gets_null_and_moves_no_other(call, tmp_path):
    whole = talk.questions()[:3]
    path = talk.lines(tmp_path / "whole.jsonl", whole)
    answers = rows_of(call("predict", f"--input={path}"))
    expected = [row["model_completion"] for row in answers]
    holed = [{"prompt": " ", "id": 7}, whole[0], {"prompt": None}, whole[1], {"prompt": ""}]
    holed += [{"prompt": "", "completion": "an answer alone"}, whole[2]]
    said = rows_of(call("predict", f"--input={talk.lines(tmp_path / 'holed.jsonl', holed)}"))
    assert said[0] == {"prompt": " ", "id": 7, "model_completion": None}
    assert [row["model_completion"] for row in said if row["prompt"]] == [None, *expected]
    assert [said[i]["model_completion"] for i in (2, 4, 5)] == [None] * 3


def test_a_chat_that_asks_nothing_gets_null(call, tmp_path, capsys):
    user, assistant = ({"role": role, "content": "Hi"} for role in ("user", "assistant"))
    empty = [None, [], [assistant], [{"role": "user", "content": " "}], [user | {"content": None}]]
    rows = [{"messages": turns} for turns in (*empty, [user])]
    path = talk.lines(tmp_path / "in.jsonl", rows)
    words = [f"--input={path}", "--max_new_tokens=5"]
    said = rows_of(call("predict", *words))
    assert [row["messages"] for row in said] == [row["messages"] for row in rows]
    assert [row["completion"] for row in said[:-1]] == [None] * 5
    assert isinstance(said[-1]["completion"], str)


def test_rows_without_a_place_for_a_prompt_are_refused(refused, tmp_path):
    document = tmp_path / "in.md"
    document.write_text("# Once upon a time")
    for path in (
        talk.lines(tmp_path / "in.jsonl", [{"text": "Once upon a time"}]),
        document,
    ):
        message = refused("predict", f"--input={path}")
        assert f"{path}: nothing to answer in its columns ('text'). Rows to answer have" in message


def test_a_prompt_beyond_the_models_positions_is_refused(refused, tmp_path):
    limit = talk.SIZES["max_position_embeddings"]
    path = talk.lines(tmp_path / "long.jsonl", [{"prompt": "Mix"}, {"prompt": "x" * limit}])
    message = refused("predict", f"--input={path}")
    assert f"{path} line 2: the prompt has {limit} tokens, the model {limit} positions" in message


# export


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "out"
    runs.VERBS["export"].main([f"--workdir={finished.workdir}", f"--output={folder}"])
    return folder


def test_pitfall_19_an_export_has_our_logits_vocabulary_and_tied_head(exported, finished):
    with safe_open(exported / "model.safetensors", "numpy") as file:
        names = set(file.keys())
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.vocab_size == talk.VOCABULARY > len(byte_tokenizer())
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    ids = np.array([byte_tokenizer()("jaxft compares these logits.")["input_ids"]], np.int32)
    with torch.no_grad():
        theirs = model.eval()(input_ids=torch.tensor(ids)).logits.numpy()
    with open_trained(Workdir(str(finished.workdir)), "best", lambda text: None) as trained:
        places = np.arange(ids.shape[1], dtype=np.int32)[None]
        tokens = Tokens(ids, np.ones_like(ids), places, np.zeros_like(ids))
        params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), trained.params)
        merged: Any = trained.experiment.drawn.merge(params)
        ours = jax.jit(lambda tokens: trained.experiment.task.logits(merged, tokens))(tokens)
    assert np.abs(ours - theirs).max() <= SAME_LOGITS * np.abs(theirs).max()


def test_pitfall_8_an_export_is_served_with_the_template_and_the_stop_it_was_trained_with(exported):
    tokenizer = load_tokenizer(exported)
    trained_with = byte_tokenizer()
    assert tokenizer.chat_template == trained_with.chat_template
    assert tokenizer.get_vocab() == trained_with.get_vocab()
    ids = {"eos_token_id": [1, 3], "pad_token_id": 0}
    assert tokenizer.convert_ids_to_tokens([1, 3, 0]) == ["<|endoftext|>", "<|im_end|>", "<|pad|>"]
    assert json.loads((exported / "generation_config.json").read_text()) == ids
    config = json.loads((exported / "config.json").read_text())
    assert {name: config[name] for name in ids} == ids
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exported).eval()
    for chat in talk.chats():
        asked, answer = chat["messages"][:1], chat["messages"][1]["content"]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        given = torch.tensor([tokenizer(prompt)["input_ids"]])
        said = model.generate(given, max_new_tokens=40, do_sample=False)[0, given.shape[1] :]
        assert tokenizer.decode(said) == answer + "<|im_end|>"


def test_a_tokenizer_without_a_padding_token_changes_nothing(finished, tmp_path):
    """Padding is told by its position; classifying is where transformers needs the id."""
    model = talk.folder(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(model)
    assert load_tokenizer(model).pad_token is None
    raw = talk.by_heart(model, talk.lines(tmp_path / "rows.jsonl", talk.chats()))
    train.main(talk.words(raw, tmp_path / "run"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["validation"] == finished.result["validation"]
    out = tmp_path / "out"
    runs.VERBS["export"].main([f"--workdir={tmp_path / 'run'}", f"--output={out}"])
    assert load_tokenizer(out).pad_token is None
    config = json.loads((out / "config.json").read_text())
    assert config["eos_token_id"] == [1, 3]
    assert "pad_token_id" not in config


# what is said before a run


def test_a_text_of_ones_own_is_validated_on_its_end_and_said_to_be(tmp_path, capsys):
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{i} is {i % 7} more than {i - i % 7}.\n" for i in range(300)))
    given = [
        "--config=configs/clm.py",
        f"--config.data.train={path}",
        f"--config.data.cache_dir={tmp_path / 'tokens'}",
        "--config.data.max_length=64",
    ]
    with pytest.raises(UserError, match="zzz"):
        train.main([*given, "--config.checkpoint.metric_for_best_model=zzz"])
    said = capsys.readouterr().err
    own = Path("configs/data/open_meadow/validation.txt").resolve()
    assert f"A flag gives data.train, which leaves out the recipe's data.validation={own};" in said
    line = re.search(r"split given: the end, from line (\d+) on, is cut from", said)[1]
    assert 265 < int(line) < 280, "a tenth of the text"

    flagged = flags.train_flags(given, tasks.options)
    config = configs.load(flagged.config, flagged.arg, flagged.overrides, tasks.options)
    experiment, splits, _ = assemble(config, lambda text: None)
    run = Run(experiment, splits, Workdir("never written"), lambda text: None)
    run.inspect()
    said = capsys.readouterr().err
    assert f"train: {path}\n" in said
    assert f"validation: cut from {path}\n" in said
    rows = len(splits["train"])
    assert len(splits["train"].rows.dataset) == 1 < rows == run.plan.items_per_epoch
    assert f"{rows} train rows are few" in said
    assert "is larger than the" not in said
    (of_validation,) = run.inspection["overlap"]
    assert of_validation["exact"] == 0


# classify with a decoder


def test_a_gpt2_classifies(tmp_path, capsys):
    """Its tokenizer pads with the token that it puts after each text."""
    folder = talk.folder(tmp_path, "gpt2")
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 1)]
    )
    tokenizer.save_pretrained(folder)
    words = [(label, label) for label in ("bad", "good", "good one", "bad one")]
    content = [(f"{text} {i % 5}", label.split()[0]) for i, (text, label) in enumerate(words * 10)]
    path = runs.table(tmp_path / "rows.csv", content)
    keys = {
        "model.pretrained": folder,
        "data.train": path,
        "data.validation": path,
        "data.test": "none",
        "data.cache_dir": tmp_path / "tokens",
        "optim.learning_rate": 3e-3,
        "train.max_steps": 30,
        "train.eval_steps": 30,
        "model.dropout": 0,
        "model.attention_dropout": 0,
    }
    result = runs.run(tmp_path / "run", keys)
    assert result["validation"]["accuracy"] == 1.0
    said = {}
    for verb, flag in {"evaluate": "", "predict": f"--input={path}"}.items():
        capsys.readouterr()
        runs.VERBS[verb].main([f"--workdir={tmp_path / 'run'}", *filter(None, [flag])])
        said[verb] = rows_of(capsys.readouterr().out)
    assert said["evaluate"][0]["accuracy"] == 1.0
    assert [row["prediction"] for row in said["predict"]] == [label for _, label in content]
    words = [f"--workdir={tmp_path / 'run'}", f"--input={path}", "--top_k=3"]
    message = runs.refused(capsys, "predict", words)
    assert message == (
        "--top_k: the run's task is classify, which writes no answers; leave this away."
    )

    out = tmp_path / "out"
    runs.VERBS["export"].main([f"--workdir={tmp_path / 'run'}", f"--output={out}"])
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    tokenizer = load_tokenizer(out)
    texts = [text for text, _ in content[:8]]
    with torch.no_grad():  # transformers finds the last token by the config's pad_token_id
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    scores = torch.softmax(logits, -1).numpy()
    ours = [[row["scores"][name] for name in ("bad", "good")] for row in said["predict"][:8]]
    np.testing.assert_allclose(scores, ours, atol=SAME_LOGITS)
