"""Texts with spans -> token ids and targets: what is trained says what the span says."""

import json
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from vocabularies import byte_level, metaspace, word_piece

from jaxft.data.chat import Rendered, render
from jaxft.data.examples import read_examples
from jaxft.data.features import Rows, tokenise
from jaxft.data.supervision import encode, preview, prompt_ids, stop_ids
from jaxft.data.templates import with_template
from jaxft.errors import UserError
from jaxft.sections import Data
from jaxft.tasks.causal_lm import Task

REAL = Path(__file__).parents[3] / "shared" / "data"
real = pytest.mark.skipif(not REAL.exists(), reason="the real data of ../shared/data is absent")

TINY = {
    "byte level": lambda: byte_level(words=("ĠYes", "Ġis", "Yes", "ĊĊ")),
    "byte level trimmed": lambda: byte_level(words=("ĠYes", "Ġis", "Yes", "ĊĊ"), trim_offsets=True),
    "bytes in any order": lambda: byte_level(words=("ĉYes", "ĠYes", "Yes"), use_regex=False),
    "metaspace": lambda: metaspace("▁Yes", "▁is", "▁A", "Yes"),
    "metaspace always": lambda: metaspace("▁Yes", "▁is", "▁A", "Yes", scheme="always"),
    "metaspace of old": lambda: metaspace("▁Yes", "▁is", "▁A", "Yes", scheme=None),
    "word piece": lambda: word_piece("yes", "is", "a", "b", ":", "."),
}
LONG = 10_000


def row(example, tokenizer, max_length=LONG, *, cut=False, **options):
    """The only row of one example, and the ids of it that are trained."""
    rendered = example
    if isinstance(example, dict):
        rendered = render(example, tokenizer, where="", **options)
    found = {name: column[0] for name, column in _encoded(rendered, tokenizer, max_length, cut)}
    pairs = zip(found["input_ids"], found["trained"], strict=True)
    return found, [token for token, on in pairs if on]


def _encoded(rendered, tokenizer, max_length, cut):
    found = encode([rendered], tokenizer, max_length, cut=cut)
    assert len(found["row"]) == 1
    return found.items()


def squeezed(text):
    return "".join(text.lower().split())


# --- the boundary -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", TINY.values(), ids=TINY)
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("A is:", " Yes"),
        ("A is: ", "Yes"),
        ("A is:  ", "Yes"),
        ("A is:\t", "Yes"),
        ("A is:\n", "Yes is."),
        ("A", "\nb"),
    ],
)
def test_pitfall_6_the_answer_is_trained_wherever_its_blanks_stand(make, prompt, completion):
    tokenizer = make()
    example = {"prompt": prompt, "completion": completion}
    found, answer = row(example, tokenizer)
    assert squeezed(tokenizer.decode(answer)) == squeezed(completion + tokenizer.eos_token)
    whole = tokenizer(prompt + completion + tokenizer.eos_token, add_special_tokens=False)
    assert found["input_ids"][-len(whole["input_ids"]) :] == whole["input_ids"]
    asked = prompt_ids([example], tokenizer, None, [""])[0]
    assert found["input_ids"] == asked + answer


def test_pitfall_6_a_token_with_a_part_of_the_prompt_is_the_prompts():
    tokenizer = byte_level(words=("Answer", "Ġis"))
    found, answer = row({"prompt": "\nAnsw", "completion": "er is"}, tokenizer)
    assert tokenizer.convert_ids_to_tokens(found["input_ids"]) == ["Ċ", "Answer", "Ġis", "<eos>"]
    assert tokenizer.decode(answer) == " is<eos>"


@pytest.mark.parametrize("make", list(TINY.values())[:-1], ids=list(TINY)[:-1])
def test_blanks_within_an_answer_are_trained(make):
    tokenizer = make()
    _, answer = row({"prompt": "A is:\n\n", "completion": "Yes\n\n\nis  Yes \n"}, tokenizer)
    assert tokenizer.decode(answer) == f"Yes\n\n\nis  Yes \n{tokenizer.eos_token}"
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "Yes\n\nis"}] * 2
    _, answer = row({"messages": turns}, tokenizer, template="plain")
    assert tokenizer.decode(answer) == f" Yes\n\nis{tokenizer.eos_token}" * 2


def test_characters_of_several_tokens_are_trained_whole():
    for make in (TINY["byte level"], TINY["metaspace"]):
        tokenizer = make()
        _, answer = row({"prompt": "é🙂", "completion": "🙂é"}, tokenizer)
        assert tokenizer.decode(answer) == "🙂é" + tokenizer.eos_token


# --- ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", TINY.values(), ids=TINY)
@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_pitfall_5_the_eos_of_an_answer_is_trained(make, pad_is_eos):
    tokenizer = make()
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    for example in (
        {"prompt": "A is:", "completion": " Yes"},
        {"instruction": "A", "input": "", "output": "Yes"},
        {"text": "A is"},
        {"messages": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "Yes"}]},
    ):
        template = "plain" if "messages" in example else None
        found, _ = row(example, tokenizer, template=template)
        assert (found["input_ids"][-1], found["trained"][-1]) == (tokenizer.eos_token_id, 1)
        assert found["dropped"] == ""


def test_pitfall_5_every_answer_of_a_chat_has_its_end():
    tokenizer = byte_level("<|im_start|>", "<|im_end|>")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 3
    found, answers = row({"messages": turns}, tokenizer, template="chatml")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert answers.count(end) == 3
    assert found["input_ids"].count(end) == 6
    assert tokenizer.decode(answers) == "b<|im_end|>" * 3


def test_pitfall_5_an_end_that_the_tokenizer_takes_apart_is_refused():
    tokenizer = byte_level(split_special_tokens=True)
    tokenizer.split_special_tokens = True
    with pytest.raises(UserError, match=r"does not read the token that ends '.*<eos>' as one"):
        row({"prompt": "a", "completion": "b"}, tokenizer)


def test_an_end_that_takes_the_blanks_after_it_is_known():
    from tokenizers import AddedToken

    tokenizer = byte_level(eos_token=AddedToken("<eos>", special=True, rstrip=True, lstrip=True))
    one = Rendered("a b <eos> \nc", ((1, 9),), special=True)
    _, answer = row(one, tokenizer)
    assert answer[-1] == tokenizer.eos_token_id
    assert len(answer) == 3


# --- beginnings -------------------------------------------------------------------------------


def test_pitfall_7_one_bos_however_the_text_comes():
    tokenizer = metaspace("▁A", "▁Yes")
    pair = {"completion": " Yes"}
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "Yes"}]
    for example in ({"prompt": "A", **pair}, {"prompt": "<s>A", **pair}, {"messages": turns}):
        template = "plain" if "messages" in example else None
        found, _ = row(example, tokenizer, template=template)
        ids = found["input_ids"]
        assert (ids[0], ids.count(tokenizer.bos_token_id)) == (tokenizer.bos_token_id, 1)
        assert found["trained"][0] == 0
        asked = prompt_ids([example], tokenizer, template, [""])[0]
        assert ids[: len(asked)] == asked


@pytest.mark.parametrize("template", ["without", "plain"])
def test_pitfall_7_chats_without_the_bos_that_the_tokenizer_puts_are_counted(template, tmp_path):
    tokenizer, said = byte_level(bos_token="<s>", add_bos=True), []
    without = "{% for m in messages %}{{ m.content }}<eos>{% endfor %}"
    tokenizer.chat_template = without
    if template == "plain":
        tokenizer = with_template(tokenizer, "plain")
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "Yes"}]
    examples = [{"messages": turns}, {"text": "long " * 9}, {"prompt": "A", "completion": "B"}]
    dataset = Dataset.from_dict(
        {"example": [json.dumps(one) for one in examples], "line": [1, 2, 3]}
    )
    data = Data(max_length=40, cache_dir=str(tmp_path))
    tokenise(Rows("chats.jsonl", dataset, "digest"), Task(), tokenizer, data, said.append)
    bare = ["chats.jsonl: 1 of 3 rows begin without <s>, which the tokenizer puts before a text"]
    assert [line.partition(" and the chat")[0] for line in said] == (
        bare if template == "without" else []
    )


def test_pitfall_7_two_bos_are_refused():
    tokenizer = metaspace("▁A")
    with pytest.raises(UserError, match=r"Two BOS tokens <s> begin '<s><s>A"):
        row({"prompt": "<s><s>A", "completion": "b"}, tokenizer)
    with pytest.raises(UserError, match="Two BOS tokens"):
        prompt_ids([{"prompt": "<s><s>A"}], tokenizer, None, [""])


def test_pitfall_7_what_the_tokenizer_adds_at_the_end_is_left_out():
    tokenizer = word_piece("a", "b")
    found, _ = row({"prompt": "a", "completion": " b"}, tokenizer)
    assert tokenizer.convert_ids_to_tokens(found["input_ids"]) == ["[CLS]", "a", "b", "[SEP]"]
    assert found["trained"] == [0, 0, 1, 1]
    assert prompt_ids([{"prompt": "a"}], tokenizer, None, [""]) == [[1, 3]]


# --- lengths ----------------------------------------------------------------------------------


def test_pitfall_3_rows_without_a_supervised_token_are_named():
    tokenizer = byte_level()
    rows = [{"prompt": "a", "completion": ""}, {"prompt": "a", "completion": "b"}]
    found = encode([render(one, tokenizer, where="") for one in rows], tokenizer, 9, cut=False)
    assert found["dropped"] == ["no supervised token", ""]
    assert found["trained"][0] == [0, 0]


@pytest.mark.parametrize("cut", [False, True])
def test_pitfall_4_an_answer_that_does_not_fit_is_never_cut_in_silence(cut):
    tokenizer = byte_level()
    example = {"prompt": "abc", "completion": "def"}
    expected = {7: "", 6: "answer cut by data.max_length", 3: "answer cut by data.max_length"}
    if cut:
        expected = {7: "", 6: "", 4: "", 3: "no supervised token"}
    for max_length, reason in expected.items():
        found, answer = row(example, tokenizer, max_length, cut=cut)
        assert (found["dropped"], found["full_length"]) == (reason, 7)
        assert tokenizer.decode(found["input_ids"]) == "abcdef<eos>"[:max_length] or max_length == 7
        assert len(answer) == max_length - 3


def test_what_stands_after_the_last_answer_may_be_cut():
    one = Rendered("ab<eos>cdef", ((1, 7),), special=True)
    found, _ = row(one, byte_level(), 4)
    assert (found["dropped"], found["full_length"], found["trained"]) == ("", 7, [0, 1, 1, 0])


@pytest.mark.parametrize("letters", range(1, 12))
@pytest.mark.parametrize("max_length", [3, 4, 5])
def test_documents_are_torn_and_lose_no_token(letters, max_length):
    tokenizer = byte_level(bos_token="<s>", add_bos=True)
    pair = {"prompt": "a", "completion": "b"}
    texts = [{"text": "abcdefghijklm"[:letters]}, pair]
    rendered = [render(one, tokenizer, where="") for one in texts]
    found = encode(rendered, tokenizer, max_length + 1, cut=False)
    tokens = [row for row, of in zip(found["input_ids"], found["row"], strict=True) if of == 0]
    whole = tokenizer(texts[0]["text"] + "<eos>")["input_ids"]
    assert [token for part in tokens for token in part] == whole
    assert all(1 < len(part) <= max_length + 1 for part in tokens)
    assert all(len(part) >= max_length for part in tokens[:-1])
    assert found["row"] == [0] * len(tokens) + [1]
    assert set(found["dropped"]) == {""}
    for ids, trained, full in zip(
        found["input_ids"][:-1], found["trained"], found["full_length"], strict=False
    ):
        assert trained == [0] + [1] * (len(ids) - 1)
        assert full == len(ids)


def test_nothing_in_gives_nothing_out():
    found = encode([], byte_level(), 9, cut=False)
    assert list(found) == ["input_ids", "trained", "full_length", "lost", "dropped", "row"]
    assert not any(found.values())
    assert prompt_ids([], byte_level(), None, []) == []


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False
        added_tokens_encoder = special_tokens_map = MappingProxyType({})

    with pytest.raises(UserError, match=r"Slow tells no character offsets; save it as tokenizer"):
        encode([Rendered("a</s>", ((0, 5),), True)], Slow(), 9, cut=False)


# --- generation and show ----------------------------------------------------------------------


def test_generation_stops_at_eos_and_at_the_end_of_a_turn():
    tokenizer = byte_level("<|im_start|>", "<|im_end|>")
    assert stop_ids(tokenizer) == (tokenizer.eos_token_id,)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stop_ids(with_template(tokenizer, "chatml")) == (tokenizer.eos_token_id, end)
    assert stop_ids(with_template(tokenizer, "plain")) == (tokenizer.eos_token_id,)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert stop_ids(tokenizer) == (tokenizer.eos_token_id,)


@pytest.mark.parametrize("make", [TINY["byte level"], TINY["metaspace"]])
def test_the_preview_shows_all_tokens_and_which_are_trained(make):
    tokenizer = make()
    found, _ = row({"prompt": "A é\nis:", "completion": " Yes 🙂"}, tokenizer)
    shown = preview(found["input_ids"], found["trained"], tokenizer)
    assert shown.plain.replace("<s>", "").strip() == f"A é⏎\nis: Yes 🙂{tokenizer.eos_token}"
    parts = {span.style: shown.plain[span.start : span.end] for span in shown.spans}
    assert parts["green"] == f" Yes 🙂{tokenizer.eos_token}"
    assert parts["dim"].endswith("is:")


# --- real tokenizers --------------------------------------------------------------------------


def load(name):
    folder = "checkpoints" if name == "stories260K" else "tokenizers"
    return AutoTokenizer.from_pretrained(REAL / folder / name)


@real
@pytest.mark.parametrize("name", ["gpt2", "llama2", "qwen", "stories260K", "roberta-base"])
def test_trained_tokens_of_real_data_say_what_the_spans_say(name):
    bare = load(name)
    tokenizer = bare if bare.chat_template else with_template(bare, "plain")
    read = {
        "alpaca/alpaca_5000.json": 400,
        "taskmaster4/tm4_messages_DERIVED.jsonl.gz": 200,
        "chats/glaive_toolcall_en_demo.json": 0 if bare.chat_template else 100,
    }
    for source, rows in read.items():
        own = bare if "alpaca" in source else tokenizer
        examples = [json.loads(one) for one in read_examples(str(REAL / source))["example"][:rows]]
        rendered = [render(example, own, where="") for example in examples]
        found = encode(rendered, own, LONG, cut=False)
        asked = prompt_ids(examples, own, None, [""] * rows)
        assert set(found["dropped"]) <= {"", "no supervised token"}
        for i, one in enumerate(rendered):
            ids, trained = found["input_ids"][i], found["trained"][i]
            answer = [token for token, on in zip(ids, trained, strict=True) if on]
            spans = "".join(one.text[start:stop] for start, stop in one.spans)
            assert own.decode(answer).strip() == spans.strip()
            last = examples[i].get("messages", [{"role": "assistant"}])[-1]["role"] == "assistant"
            if last and one.spans:
                begins = np.flatnonzero(np.diff(trained) == 1)[-1] + 1
                assert asked[i] == ids[:begins]
                assert ids[np.flatnonzero(trained)[-1]] in stop_ids(own)


@real
def test_t5_has_its_end_and_says_what_it_can():
    tokenizer = load("t5-small")
    for example in (
        {"prompt": "Q: Is it?\tA:\t", "completion": "Yes, it is."},
        {"prompt": "Q: Is it?\nA:\n", "completion": "Yes, it is."},
        {"prompt": "Q: Is it? A: ", "completion": "Yes, it is."},
    ):
        _, answer = row(example, tokenizer)
        assert tokenizer.decode(answer) == "Yes, it is.</s>"
        assert answer[-1] == tokenizer.eos_token_id


@real
@pytest.mark.parametrize("name", ["gpt2", "llama2", "qwen", "stories260K"])
def test_a_long_document_comes_back_whole_from_its_windows(name):
    tokenizer = load(name)
    [text] = read_examples(str(REAL / "tinyshakespeare" / "input.txt"))["text"]
    text = text[:100_000]
    found = encode([render({"text": text}, tokenizer, where="")], tokenizer, 256, cut=False)
    ids = [token for part in found["input_ids"] for token in part]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.strip()
    assert ids[-1] == tokenizer.eos_token_id
    assert set(found["dropped"]) == {""}
    assert {len(part) for part in found["input_ids"][:-1]} <= {255, 256}
