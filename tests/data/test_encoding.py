"""Texts and pairs are tokenised and cut as transformers does it, long pairs in linear time."""

import copy
import random
import time
from dataclasses import replace

import pytest
from datasets import Dataset
from tokenizers import processors
from vocabularies import byte_level, metaspace

from jaxft.data import features
from jaxft.data.encoding import encode, with_padding
from jaxft.data.features import Rows
from jaxft.errors import UserError
from jaxft.sections import Data
from jaxft.tasks.classify import Task
from jaxft.vocabulary import add_tokens

WORDS = ["the", "a", "good", "bad", "film", "was", "is", "very", "not", "and", "it", "this"]


def texts(seed: int, count: int = 200, longest: int = 24) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, longest))) for _ in range(count)]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["bert", "bos", "none"])
@pytest.mark.parametrize("count", [1, 2])
def test_rows_are_those_of_transformers(count, kind, side, tiny_tokenizer, monkeypatch):
    made = {"bos": lambda: byte_level(bos_token="<s>", add_bos=True), "none": byte_level}
    tokenizer = made[kind]() if kind in made else tiny_tokenizer
    monkeypatch.setattr(tokenizer, "truncation_side", side)
    if (count, kind) == (2, "bos"):
        pytest.skip("its template is for single texts")
    sides = [texts(seed) for seed in range(count)]
    whole = tokenizer(*sides)["input_ids"]
    for length in (5, 6, 17, 18, 1000):
        ours, theirs = (
            encode(sides, tokenizer, length),
            tokenizer(*sides, truncation=True, max_length=length),
        )
        assert ours.pop("full_length") == list(map(len, whole))
        assert ours == {name: theirs[name] for name in ours}
        assert ("token_type_ids" in ours) == ("token_type_ids" in theirs)


def test_a_long_pair_costs_what_its_texts_cost(tiny_tokenizer):
    """A pair of these took 0.65 GB, and its length was told as four times what it is."""
    began_s = time.process_time()
    row = encode([["good " * 20_000], ["bad " * 20_000]], tiny_tokenizer, 16)
    assert time.process_time() - began_s < 5
    assert (row["full_length"], len(row["input_ids"][0])) == ([40_003], 16)


def test_pitfall_27_other_code_makes_tokens_anew(tiny_tokenizer, tmp_path, monkeypatch):
    rows = Rows("a.csv", Dataset.from_dict({"text": ["good"], "label": ["a"], "line": [2]}), "d")
    task = Task("single_label_classification", ("a", "b"), (1.0, 1.0))
    data = Data(cache_dir=str(tmp_path / "tokens"))
    kept = []
    for makers in (features.MAKERS, features.MAKERS, features.MAKERS[:1]):
        monkeypatch.setattr(features, "MAKERS", makers)
        features._code.cache_clear()
        features.tokenise(rows, task, tiny_tokenizer, data)
        kept.append(sum(path.is_dir() for path in (tmp_path / "tokens").iterdir()))
    features._code.cache_clear()
    assert kept == [1, 1, 2]


@pytest.mark.parametrize(
    "changed",
    [
        {"truncation_side": "left"},
        {"split_special_tokens": True},
        {"model_input_names": ["input_ids", "attention_mask"]},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_pitfall_27_what_a_tokenizer_keeps_beside_its_backend_makes_tokens_anew(
    changed, tiny_tokenizer, tmp_path
):
    text = "good [SEP] " * 30
    rows = Rows("a.csv", Dataset.from_dict({"text": [text], "label": ["a"], "line": [2]}), "d")
    task = Task("single_label_classification", ("a", "b"), (1.0, 1.0))
    data = Data(cache_dir=str(tmp_path / "tokens"), max_length=9)
    other = copy.deepcopy(tiny_tokenizer)
    for name, value in changed.items():
        setattr(other, name, value)
    made = [features.tokenise(rows, task, one, data).features[:] for one in (tiny_tokenizer, other)]
    assert made[0] != made[1]
    fresh = replace(data, cache_dir=str(tmp_path / "fresh"))
    assert features.tokenise(rows, task, other, fresh).features[:] == made[1]


def test_pitfall_27_another_release_of_the_library_makes_tokens_anew(monkeypatch):
    before = features._code()
    monkeypatch.setattr(features, "version", lambda name: "0")
    features._code.cache_clear()
    assert features._code() != before
    features._code.cache_clear()


def ending(single: str):
    """A Llama's tokenizer with another template."""
    tokenizer = metaspace("good")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def test_what_ends_a_text_is_no_padding():
    """transformers pools the last token that is none."""
    assert with_padding(ending("<s> $A")).pad_token == "</s>"
    other = with_padding(ending("<s> $A </s>"))
    assert other.pad_token == "<unk>"
    ids = other(["good", "good good good"], padding=True)["input_ids"]
    assert [token for token in ids[0] if token != other.pad_token_id][-1] == ids[1][-1] == 2
    known = ending("<s> $A </s>")
    known.pad_token = "<s>"
    assert with_padding(known).pad_token == "<s>"
    poor = byte_level()
    end = ("<eos>", poor.eos_token_id)
    poor.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[end]
    )
    with pytest.raises(UserError, match=r"pads with '<eos>', which it puts after each text too"):
        with_padding(poor)


def test_without_a_padding_and_an_eos_token_one_is_asked_for():
    """transformers pads no batch without."""
    bare = byte_level(eos_token=None)
    with pytest.raises(UserError, match=r"no token to pad with.*new_tokens=\{'<pad>': None\}"):
        with_padding(bare)
    add_tokens(bare, {"<pad>": None}, len(bare))
    assert with_padding(bare).pad_token == "<pad>"
    lengths = {len(ids) for ids in bare(["a", "longer"], padding=True)["input_ids"]}
    assert lengths == {6}


def test_a_length_without_room_for_text_is_refused(tiny_tokenizer):
    with pytest.raises(UserError, match=r"max_length=4 leaves no room .* 3 tokens are special"):
        encode([["good"], ["bad"]], tiny_tokenizer, 4)
