"""Tokens that a recipe adds: their rows in embedding and head, and a run's way with them."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import runs
import talk
from folders import tensors_of

from jaxft import config as configs
from jaxft import pretrained, tasks, train
from jaxft.data.templates import with_template
from jaxft.errors import UserError
from jaxft.experiment import assemble
from jaxft.models import Blueprint, dims_of
from jaxft.nn.weights import Path as WeightPath
from jaxft.sharding import AXES, Places, make_mesh
from jaxft.source import Source, byte_tokenizer, load_tokenizer
from jaxft.vocabulary import NewRows, add_tokens

pytestmark = pytest.mark.usefixtures("hurry")
KNOWN = 260
"""Tokens of the byte tokenizer; the tiny decoders have talk.VOCABULARY = 264 rows."""
MEAN = 1e-6
"""Relative: the mean is taken in float64 and stored in float32; numpy's is float32 throughout."""
TABLES = {
    "llama": {("embeddings", "table"): 0},
    "qwen3": {("embeddings", "table"): 0, ("heads", "causal_lm", "kernel"): 1},
    "gpt2": {("embeddings", "word", "table"): 0},
}
"""Each family's weights over the vocabulary, and which of their axes that is."""
SPLITS = [None, (1, 8, 1, 1), (1, 2, 1, 4), (2, 1, 1, 4)]


def nothing(text: str) -> None:
    pass


def grown(folder: Path, tokens: dict[str, str | None], output: str = "causal_lm") -> tuple:
    """The model of a folder with tokens added, and which tensors serve it."""
    checkpoint = pretrained.Checkpoint(folder)
    source = Source(dict(checkpoint.config), load_tokenizer(folder), checkpoint)
    rows = dims_of(source.config).vocab_size
    source = source.with_tokens(tokens, rows, nothing)
    drawn = Blueprint.draw(source.config, output=output, num_labels=2)
    return drawn, drawn.match(checkpoint, new_rows=source.new_rows), source


def read(drawn: Blueprint, matched: Any, split: tuple | None) -> dict[WeightPath, np.ndarray]:
    mesh = split and make_mesh(dict(zip(AXES, split, strict=True)))
    places = mesh and Places(drawn.weights, mesh).params
    return pretrained.read(matched, drawn.weights, places)


# rows


@pytest.mark.parametrize("block_bytes", [8 * 2**20, 3000])
@pytest.mark.parametrize("family", TABLES)
def test_new_rows_are_means_of_old_ones(family, block_bytes, tmp_path, monkeypatch):
    """Spare rows first; of the rows that had no token none enters the mean."""
    monkeypatch.setattr("jaxft.nn.weights.BLOCK_BYTES", block_bytes)
    monkeypatch.setattr("jaxft.vocabulary._ROWS_AT_ONCE", 100)
    folder = talk.folder(tmp_path, family)
    before = read(*grown(folder, {})[:2], None)
    tokens = {f"<{i}>": None for i in range(8)} | {"<ab>": "aab"}
    drawn, matched, source = grown(folder, tokens)
    assert drawn.dims.vocab_size == KNOWN + 9
    assert [source.tokenizer.convert_tokens_to_ids(t) for t in tokens] == [*range(260, 269)]
    ids = source.tokenizer("aab")["input_ids"]
    for split in SPLITS if block_bytes == 3000 else SPLITS[:1]:
        found = read(drawn, matched, split)
        assert found.keys() == before.keys()
        for path, value in found.items():
            if path not in TABLES[family]:
                np.testing.assert_array_equal(value, before[path], str(path))
                continue
            now, old = (
                np.moveaxis(np.asarray(x), TABLES[family][path], 0) for x in (value, before[path])
            )
            assert len(now) == KNOWN + 9
            np.testing.assert_array_equal(now[:KNOWN], old[:KNOWN])
            mean = np.tile(old[:KNOWN].mean(0), (8, 1))
            np.testing.assert_allclose(now[KNOWN:-1], mean, atol=MEAN * np.abs(old).max())
            np.testing.assert_allclose(
                now[-1], (2 * old[ids[0]] + old[ids[2]]) / 3, atol=MEAN * np.abs(old).max()
            )
    assert len(jax.devices()) == 8


def test_spare_rows_that_are_left_stay_and_nothing_grows(tmp_path):
    folder = talk.folder(tmp_path, "qwen3")
    before = read(*grown(folder, {})[:2], None)
    drawn, matched, _ = grown(folder, {"<a>": None})
    now = read(drawn, matched, None)
    assert drawn.dims.vocab_size == talk.VOCABULARY
    for path, axis in TABLES["qwen3"].items():
        old, new = (np.moveaxis(np.asarray(x), axis, 0) for x in (before[path], now[path]))
        assert not np.array_equal(new[KNOWN], old[KNOWN])
        np.testing.assert_array_equal(np.delete(new, KNOWN, 0), np.delete(old, KNOWN, 0))


def test_a_table_that_does_not_fit_is_refused_all_the_same(tmp_path):
    folder = talk.folder(tmp_path, "qwen3")
    drawn, _, source = grown(folder, {f"<{i}>": None for i in range(9)})
    other = NewRows(stored=263, known=KNOWN, sources=source.new_rows.sources)
    with pytest.raises(UserError) as refused:
        drawn.match(source.checkpoint, new_rows=other)
    for name in ("embed_tokens", "lm_head"):
        assert f"misshaped  {name}.weight is [264, 32], expected [263, 32]" in str(refused.value)


# the tokenizer


def test_added_tokens_are_one_token_each_wherever_they_stand(tmp_path):
    tokenizer = byte_tokenizer()
    new = add_tokens(tokenizer, {"<Think>": None, "</Think>": "ab"}, 300)
    a, b = byte_tokenizer()("ab")["input_ids"]
    assert new == NewRows(300, KNOWN, {260: (), 261: (a, b)})
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, load_tokenizer(tmp_path)):
        assert one("a<Think>b</Think>")["input_ids"] == [a, 260, b, 261]
        assert one.decode([a, 260, b], skip_special_tokens=True) == "ab"


def test_a_normalizer_does_not_change_them(tiny_tokenizer):
    lower = copy.deepcopy(tiny_tokenizer)
    add_tokens(lower, {"<Think>": None}, 64)
    assert lower("A <Think>")["input_ids"][-2] == len(tiny_tokenizer)


REFUSED = {
    "empty": ({"": None}, "a token is empty"),
    "there already": ({"<a>": None, "<|im_end|>": None}, "has '<|im_end|>' already, as token 3"),
    "an ordinary token": ({"a": None}, "has 'a' already"),
    "no tokens": ({"<a>": ""}, "'<a>' is to begin as the mean of '', which gives no tokens"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_added_is_refused(what):
    tokens, message = REFUSED[what]
    with pytest.raises(UserError, match=r"^model\.new_tokens: ") as refused:
        add_tokens(byte_tokenizer(), tokens, 300)
    assert message in str(refused.value)


def test_a_templates_tokens_can_be_added():
    tokenizer = byte_tokenizer()
    needed = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    with pytest.raises(UserError, match=r"does not have; model\.new_tokens adds them"):
        with_template(tokenizer, "llama3")
    add_tokens(tokenizer, dict.fromkeys(needed), 300)
    said = with_template(tokenizer, "llama3").apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False
    )
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    assert {260, 261, 262} == {i for i in ids if i >= KNOWN}


# runs


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A run of an untied decoder with more tokens than spare rows; not to be written into."""
    root = tmp_path_factory.mktemp("grown")
    rows = [
        {"prompt": row["prompt"], "completion": f"<think>{row['completion']}</think>"}
        for row in talk.questions()
    ]
    data = talk.lines(root / "rows.jsonl", rows)
    more = {f"<extra {i}>": None for i in range(4)}
    raw = talk.recipe(talk.folder(root, "qwen3"), data)
    raw["model"]["new_tokens"] = {"<think>": None, "</think>": "so"} | more
    raw["train"] |= {"max_steps": 12, "eval_steps": 6}
    raw["checkpoint"] = {"keep_last": 2}
    train.main(talk.words(raw, root / "run"))
    return root, raw


def test_the_runs_verbs_know_the_tokens(run, capsys, tmp_path):
    root, raw = run
    result = json.loads((root / "run" / "result.json").read_text())
    said = {}
    for verb, flag in {"evaluate": "", "predict": f"--input={root}/rows.jsonl"}.items():
        capsys.readouterr()
        runs.VERBS[verb].main([f"--workdir={root}/run", *filter(None, [flag])])
        said[verb] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said["evaluate"][0]["loss"] == pytest.approx(result["validation"]["loss"], rel=1e-6)
    asked = [row["prompt"] for row in talk.questions()]
    assert [row["prompt"] for row in said["predict"]] == asked
    assert all("<think>" not in row["model_completion"] for row in said["predict"])

    out = tmp_path / "out"
    runs.VERBS["export"].main([f"--workdir={root}/run", f"--output={out}"])
    assert "weights read back equal" in capsys.readouterr().err
    assert json.loads((out / "config.json").read_text())["vocab_size"] == KNOWN + 6
    shapes = {name: x.shape for name, x in tensors_of(out).items()}
    assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"] == (KNOWN + 6, 32)
    tokenizer = load_tokenizer(out)
    assert tokenizer.convert_tokens_to_ids([*raw["model"]["new_tokens"]]) == [*range(260, 266)]
    card = (out / "README.md").read_text()
    assert "| `<think>` | the mean of the rows of all tokens before |" in card
    assert "| `</think>` | the mean of those of `so` |" in card


def test_transformers_has_our_logits_of_the_grown_model(run, capsys, tmp_path):
    pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    capsys.readouterr()
    runs.VERBS["export"].main([f"--workdir={run[0]}/run", f"--output={tmp_path}/out"])
    assert "transformers' logits equal to" in capsys.readouterr().err
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert model.lm_head.weight.shape == (KNOWN + 6, 32)


def test_the_run_is_resumed_with_its_tokens(run, tmp_path):
    root, raw = run
    workdir = tmp_path / "run"
    shutil.copytree(root / "run", workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    (workdir / "result.json").unlink()
    train.main(talk.words(raw, workdir))
    assert runs.same(runs.arrays(workdir, 12), runs.arrays(root / "run", 12))


def test_an_encoder_classifies_with_added_tokens(tiny_bert_folder, tmp_path, capsys):
    labels = ("bad", "good")
    rows = [(f"{text} <{label}>", label) for text, label in runs.rows(24, 1, labels)]
    path = runs.table(tmp_path / "rows.csv", rows)
    tokens = {f"<{label}>": label for label in labels} | {f"<{i}>": None for i in range(40)}
    keys = {
        "model.pretrained": tiny_bert_folder,
        "model.new_tokens": tokens,
        "data.train": path,
        "data.validation": path,
        "data.test": "none",
        "data.cache_dir": tmp_path / "tokens",
        "train.max_steps": 4,
        "train.eval_steps": 4,
    }
    runs.run(tmp_path / "run", keys)
    capsys.readouterr()
    runs.VERBS["export"].main([f"--workdir={tmp_path}/run", f"--output={tmp_path}/out"])
    assert "read back equal" in capsys.readouterr().err
    tokenizer = load_tokenizer(tmp_path / "out")
    words = len(load_tokenizer(tiny_bert_folder))
    assert tokenizer("a <good>")["input_ids"][-2] == words + 1
    table = tensors_of(tmp_path / "out")["bert.embeddings.word_embeddings.weight"]
    assert (
        len(table)
        == words + 42
        > 64
        == len(tensors_of(tiny_bert_folder)["embeddings.word_embeddings.weight"])
    )


# a tokenizer that is larger than the embedding


@pytest.fixture
def larger(tmp_path) -> Path:
    """A folder whose tokenizer has three tokens that its embedding has no rows for."""
    folder = talk.folder(tmp_path, "llama")
    tokenizer = byte_tokenizer()
    add_tokens(tokenizer, {f"<{i}>": None for i in range(7)}, 300)
    tokenizer.save_pretrained(folder)
    return folder


def test_tokens_without_rows_are_refused_until_they_are_named(larger, capsys, tmp_path):
    data = talk.lines(tmp_path / "rows.jsonl", talk.questions())
    raw = talk.recipe(larger, data)
    message = runs.refused(capsys, "train", talk.words(raw, tmp_path / "run"))
    assert "has 267 tokens, the embedding only 264 rows: there is none for '<4>', '<5>'" in message
    assert "model.new_tokens" in message
    assert not (tmp_path / "run").exists()

    raw["model"]["new_tokens"] = {f"<{i}>": None for i in (4, 5, 6)}
    begun, matched = talk.begin(copy.deepcopy(raw))
    assert begun.experiment.drawn.dims.vocab_size == 267
    assert matched.new_rows == NewRows(264, 264, {264: (), 265: (), 266: ()})
    raw["model"]["new_tokens"]["<4>"] = "ab<5>"
    message = runs.refused(capsys, "train", talk.words(raw, tmp_path / "run"))
    assert "'<4>' is to begin as the mean of 'ab<5>', which gives no tokens with rows" in message
    raw["model"]["new_tokens"] = {"<4>": None}
    assert "there is none for '<5>', '<6>'" in runs.refused(
        capsys, "train", talk.words(raw, tmp_path / "run")
    )


def test_a_vocabulary_that_tensor_cannot_split_is_said_with_what_mends_it(tmp_path):
    data = talk.lines(tmp_path / "rows.jsonl", talk.questions())
    raw = talk.recipe(talk.folder(tmp_path, "qwen3"), data)
    raw["mesh"] = {"tensor": 2}

    def said(tokens: int) -> list[str]:
        lines: list[str] = []
        raw["model"]["new_tokens"] = {f"<{i}>": None for i in range(tokens)}
        assemble(configs.from_dict(copy.deepcopy(raw), tasks.options), lines.append)
        return [line for line in lines if "mesh.tensor" in line]

    assert said(0) == []
    (line,) = said(7)
    assert "mesh.tensor=2 does not divide the vocabulary of 267" in line
    assert "1 more in model.new_tokens" in line
    assert "would make it 268" in line
    assert said(8) == []


# from scratch


def test_from_scratch_all_rows_are_drawn(capsys, tmp_path):
    data = talk.lines(tmp_path / "rows.jsonl", talk.questions())
    raw = talk.recipe(tmp_path, data)
    sizes = {name: x for name, x in talk.MODELS["llama"].items() if name != "vocab_size"}
    raw["model"] |= {"pretrained": None, "config": sizes, "new_tokens": {"<a>": None}}
    begun, matched = talk.begin(copy.deepcopy(raw))
    assert matched is None
    assert begun.experiment.drawn.dims.vocab_size == KNOWN + 1
    raw["model"]["new_tokens"] = {"<a>": "ab"}
    message = runs.refused(capsys, "train", talk.words(raw, tmp_path / "run"))
    assert "model.new_tokens" in message
    assert "give None instead of the texts" in message
