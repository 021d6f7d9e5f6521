"""Examples -> texts with spans: what is trained of a chat, whatever its template does."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from vocabularies import byte_level, metaspace

from jaxft.data.chat import ALPACA, prompt, render
from jaxft.data.examples import read_examples
from jaxft.data.templates import TEMPLATES, end_of_turn, with_template
from jaxft.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data"
real = pytest.mark.skipif(not REAL.exists(), reason="the real data of ../shared/data is absent")

CHATML = ("<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def user(content):
    return {"role": "user", "content": content}


def answer(content, **more):
    return {"role": "assistant", "content": content, **more}


TWO = {"messages": [user("hi"), answer("Hello"), user("and?"), answer("Bye.")]}

# Templates as they are found on the hub, in few words.
STRIPS_THINKING = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% else %}<|im_start|>assistant\n{% if loop.last %}{{ m.content }}{% else %}"
    "{{ m.content.split('</think>')[-1] | trim }}{% endif %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPTS_TO_THINK = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
EMPTY_THOUGHT_IN_THE_LAST = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATES = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
NO_END = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
NO_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}{{ m.role + ': ' + m.content + '</s>\n' }}"
    "{% endfor %}"
)
ADDS_A_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' }}"
    "{% if m.role == 'assistant' and '</think>' not in m.content %}<think></think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
ENDS_THE_LAST_OTHERWISE = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' }}"
    "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
    "{{ '</s>' if loop.last and m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALLS = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ m.role + ': ' + m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}"
    "</s>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def templated(template, *special, **options):
    tokenizer = byte_level(*special, **({"bos_token": "<s>", "eos_token": "</s>"} | options))
    tokenizer.chat_template = template
    return tokenizer


def trained(example, tokenizer, **options):
    found = render(example, tokenizer, where="a.jsonl line 3", **options)
    return [found.text[start:stop] for start, stop in found.spans]


# --- chats ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "special", "text", "spans"),
    [
        (
            "chatml",
            CHATML,
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
            "<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\nBye.<|im_end|>\n",
            ["Hello<|im_end|>", "Bye.<|im_end|>"],
        ),
        (
            "llama3",
            LLAMA3,
            "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nand?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nBye.<|eot_id|>",
            ["Hello<|eot_id|>", "Bye.<|eot_id|>"],
        ),
        (
            "plain",
            (),
            "User: hi\n\nAssistant: Hello<eos>\n\nUser: and?\n\nAssistant: Bye.<eos>",
            [" Hello<eos>", " Bye.<eos>"],
        ),
    ],
)
def test_templates_that_can_be_named(name, special, text, spans):
    tokenizer = byte_level(*special)
    found = render(TWO, tokenizer, template=name, where="")
    assert (found.text, found.special) == (text, False)
    assert trained(TWO, tokenizer, template=name) == spans
    assert trained(TWO, tokenizer, template=name, turns="last") == spans[1:]
    assert trained(TWO, tokenizer, template=name, assistant_only=False) == [text]
    changed = with_template(tokenizer, name)
    assert tokenizer.chat_template is None
    assert render(TWO, changed, where="") == found
    assert changed.convert_tokens_to_ids(end_of_turn(changed)) != changed.unk_token_id
    assert spans[0].endswith(end_of_turn(changed))
    asked = prompt({"messages": TWO["messages"][:3]}, changed, where="").text
    assert text.startswith(asked)
    assert text[len(asked) :].rstrip() == spans[1]
    assert prompt(TWO, changed, where="").text == asked
    system = {"messages": [{"role": "system", "content": "Be kind."}, *TWO["messages"]]}
    tools = {"tools": [{"type": "function", "function": {"name": "add"}}]}
    called = answer("", tool_calls=[{"function": {"name": "add", "arguments": {"a": 1}}}])
    replied = [*system["messages"], user("1?"), called, {"role": "tool", "content": "2"}]
    full = render({"messages": replied, **tools}, changed, where="").text
    assert "Be kind." in full
    assert full.count('"add"') == 2
    assert trained({"messages": replied}, changed)[2].strip().startswith('{"name": "add"')


def test_a_named_template_writes_bos_where_the_tokenizer_would():
    tokenizer = byte_level(bos_token="<s>", add_bos=True)
    assert render(TWO, tokenizer, template="plain", where="").text.startswith("<s>User: hi")
    tokenizer = byte_level(bos_token="<s>")
    assert render(TWO, tokenizer, template="plain", where="").text.startswith("User: hi")


def test_a_named_template_goes_before_the_tokenizers_own():
    tokenizer = templated(NO_END)
    assert trained(TWO, tokenizer, template="plain") == [" Hello</s>", " Bye.</s>"]


def test_of_turns_that_are_a_prompt_none_is_learnt():
    tokenizer, two = templated(TEMPLATES["chatml"], *CHATML), {**TWO, "asked": 3}
    assert trained(two, tokenizer) == ["Bye.<|im_end|>"]
    assert trained(two, tokenizer, completion_only=False) == trained(TWO, tokenizer)
    assert trained(two, tokenizer, assistant_only=False) == ["Bye.<|im_end|>\n"]


@pytest.mark.parametrize(
    ("template", "example", "spans"),
    [
        (ALTERNATES, TWO, [" Hello </s>", " Bye. </s>"]),
        (
            STRIPS_THINKING,
            {"messages": [user("a"), answer("x</think>b"), user("c"), answer("y</think>d")]},
            ["b<|im_end|>", "y</think>d<|im_end|>"],
        ),
        (
            PROMPTS_TO_THINK,
            {"messages": [user("a"), answer("x</think>b"), user("c"), answer("d")]},
            ["x</think>b<|im_end|>", "d<|im_end|>"],
        ),
        (
            EMPTY_THOUGHT_IN_THE_LAST,
            TWO,
            ["Hello<|im_end|>", "<think>\n\n</think>\n\nBye.<|im_end|>"],
        ),
        (
            ADDS_A_THOUGHT,
            {"messages": [user("a"), answer("x</think>b"), user("c"), answer("d")]},
            ["x</think>b<|im_end|>", "</think>d<|im_end|>"],
        ),
        (ENDS_THE_LAST_OTHERWISE, TWO, ["<think></think>Hello", "<think></think>Bye.</s>"]),
        (TEMPLATES["chatml"], {"messages": [answer("hi"), user("a"), answer("hi")]}, 2),
        (TEMPLATES["chatml"], {"messages": [user("a"), answer("b"), answer("b")]}, 2),
        (TEMPLATES["chatml"], {"messages": [user("hi"), answer("hi"), user("hi")]}, 1),
        (TEMPLATES["chatml"], {"messages": [user("a"), answer(" \n"), user("a"), answer("b")]}, 1),
    ],
)
def test_spans_are_what_the_assistant_says_however_the_template_writes_it(template, example, spans):
    tokenizer = templated(template, *CHATML)
    found = trained(example, tokenizer)
    if isinstance(spans, int):
        said = [turn["content"] for turn in example["messages"] if turn["role"] == "assistant"]
        spans = [f"{content}<|im_end|>" for content in said if content.strip()]
    assert found == spans


def test_tool_calls_go_to_templates_that_write_them():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    tools = [{"type": "function", "function": {"name": "add"}}]
    example = {"messages": [user("1?"), answer("", tool_calls=[call])], "tools": tools}
    written = '<call>{"name": "add", "arguments": {"a": 1}}</call></s>'
    assert trained(example, templated(CALLS)) == [written]
    instead = CALLS.replace("{{ m.role + ': ' + m.content }}", "{{ m.role + ': ' }}").replace(
        "{% endfor %}</s>", "{% else %}{{ m.content }}{% endfor %}</s>"
    )
    assert trained(example, templated(instead)) == [written]  # as Llama 3.1's: calls or content
    with pytest.raises(UserError, match="line 3: the template drops the tools"):
        trained(example, templated(CALLS.replace("{{ tools | tojson }}", "")))
    other = CALLS.replace("{{ call.function | tojson }}", "")
    with pytest.raises(UserError, match="drops a turn: number 2, of the role 'assistant'"):
        trained({"messages": example["messages"]}, templated(other))


# --- everything else --------------------------------------------------------------------------


def test_prompts_and_texts_end_with_eos_and_documents_may_be_torn():
    tokenizer = byte_level()
    pair = {"prompt": "Q:", "completion": " A"}
    assert trained(pair, tokenizer) == [" A<eos>"]
    assert trained(pair, tokenizer, completion_only=False) == ["Q: A<eos>"]
    assert trained({"text": "abc"}, tokenizer) == ["abc<eos>"]
    assert render({"text": "abc"}, tokenizer, where="").document
    assert not render(pair, tokenizer, where="").document
    assert prompt(pair, tokenizer, where="").text == "Q:"


@pytest.mark.parametrize("written", ["<eos>", "<eos>\n", " <eos>"])
def test_an_eos_that_the_data_have_is_not_doubled(written):
    tokenizer, blank = byte_level(), " " * written.startswith(" ")
    pair = {"prompt": "Q:", "completion": " A" + written}
    assert trained(pair, tokenizer) == [f" A{blank}<eos>"]
    assert trained({"text": f"a<eos>b{written}"}, tokenizer) == [f"a<eos>b{blank}<eos>"]
    instruction = {"instruction": "Do.", "input": "", "output": "Done." + written}
    assert trained(instruction, tokenizer) == [f"Done.{blank}<eos>"]
    assert trained({"prompt": "Q:", "completion": written}, tokenizer) == []


@pytest.mark.parametrize("written", ["</s>", "<|im_end|>", "<|im_end|>\n"])
def test_the_end_of_a_turn_that_the_data_have_is_not_doubled(written):
    chat = {"messages": [user("a" + written), answer("b" + written), user("c"), answer("<tag>")]}
    tokenizer = templated(TEMPLATES["chatml"], *CHATML, "<tag>")
    assert trained(chat, tokenizer) == ["b<|im_end|>", "<tag><|im_end|>"]
    assert f"a{written}<|im_end|>" in render(chat, tokenizer, where="").text


@pytest.mark.parametrize(("turns", "learnt"), [("all", ["A", "D"]), ("last", ["D"])])
def test_an_answer_of_weight_0_is_read_and_not_learnt(turns, learnt):
    told = [answer("A", weight=1), user("?"), answer("B", weight=0), user("?"), answer("D")]
    tokenizer = templated(TEMPLATES["chatml"], *CHATML)
    chat = {"messages": [user("hi"), *told, user("?"), answer("E", weight=0.0)]}
    assert trained(chat, tokenizer, turns=turns) == [f"{said}<|im_end|>" for said in learnt]
    assert all(f"assistant\n{said}" in render(chat, tokenizer, where="").text for said in "ABDE")


@pytest.mark.parametrize("given", ["", " \n", "context"])
def test_an_instruction_has_alpacas_words_only_without_a_template(given):
    example = {"instruction": "Do.", "input": given, "output": "Done."}
    tokenizer = byte_level(*CHATML)
    text = render(example, tokenizer, where="").text
    assert text.startswith("Below is an instruction that describes a task")
    assert ("### Input:\ncontext\n\n" in text) == ("paired with an input" in text)
    assert ("### Input" in text) == bool(given.strip())
    assert trained(example, tokenizer) == ["Done.<eos>"]
    chatml = with_template(tokenizer, "chatml")
    found = render(example, chatml, where="")
    assert found.text.startswith(f"<|im_start|>user\nDo.{chr(10) * 2 * bool(given.strip())}")
    assert ("context" in found.text) == (given == "context")
    assert trained(example, chatml) == ["Done.<|im_end|>"]
    assert ALPACA.split("{}")[0] not in found.text
    asked = {"instruction": "Do.", "input": given}
    assert found.text.startswith(prompt(asked, chatml, where="").text)
    assert text.startswith(prompt(asked, tokenizer, where="").text)


# --- pitfalls ---------------------------------------------------------------------------------


def test_pitfall_3_blank_answers_and_chats_without_one_have_no_spans():
    tokenizer = byte_level(*CHATML)
    assert trained({"prompt": "a", "completion": " \n"}, tokenizer) == []
    assert trained({"instruction": "a", "input": "", "output": ""}, tokenizer) == []
    for turns in ([user("a")], [user("a"), answer("")]):
        assert trained({"messages": turns}, tokenizer, template="chatml") == []


def test_pitfall_5_a_template_that_does_not_end_answers_is_refused():
    with pytest.raises(UserError, match=r"line 3: .* never learn to stop.*task.chat_template"):
        trained(TWO, templated(NO_END))


def test_pitfall_5_without_an_eos_token_nothing_is_trained_or_generated():
    tokenizer = byte_level(eos_token=None)
    for example in ({"text": "a"}, {"prompt": "a", "completion": "b"}, TWO):
        with pytest.raises(
            UserError, match=r"no EOS token.* Set eos_token in the tokenizer_config"
        ):
            render(example, tokenizer, where="")
    with pytest.raises(UserError, match="no EOS token"):
        prompt({"prompt": "a"}, tokenizer, where="")


def test_pitfall_7_bos_is_left_to_the_tokenizer_unless_the_text_has_it():
    tokenizer = metaspace("▁hi")
    assert render({"text": "hi"}, tokenizer, where="").special
    assert not render({"text": "<s>hi"}, tokenizer, where="").special
    assert not render({"prompt": "<s>hi", "completion": "a"}, tokenizer, where="").special
    assert not render(TWO, tokenizer, template="plain", where="").special
    assert not prompt(TWO, tokenizer, template="plain", where="").special


def test_pitfall_8_a_turn_that_the_template_leaves_out_is_refused():
    system = {"role": "system", "content": "hi"}  # stands elsewhere in the text, too
    example = {"messages": [system, *TWO["messages"]]}
    with pytest.raises(
        UserError, match=r"line 3: the template drops a turn: number 1, of the role 'system'"
    ):
        trained(example, templated(NO_SYSTEM))
    with pytest.raises(UserError, match="drops a turn"):
        prompt(example, templated(NO_SYSTEM), where="")


def test_pitfall_8_the_templates_own_words_are_passed_on():
    twice = {"messages": [user("a"), answer("b"), answer("c")]}
    with pytest.raises(
        UserError, match=r"line 3: the chat template refuses .* Roles must alternate user/assistant"
    ):
        trained(twice, templated(ALTERNATES))


# --- mistakes ---------------------------------------------------------------------------------


def test_a_chat_needs_a_template_that_the_tokenizer_can_write():
    tokenizer = byte_level()
    with pytest.raises(
        UserError, match=r"no chat template.*task.chat_template is one of chatml, llama3, plain"
    ):
        trained(TWO, tokenizer)
    with pytest.raises(UserError, match=r"task.chat_template='vicuna': known are chatml, llama3"):
        with_template(tokenizer, "vicuna")
    with pytest.raises(UserError, match=r"'chatml' needs the tokens <\|im_end\|> <\|im_start\|>,"):
        with_template(tokenizer, "chatml")
    own = templated(ALTERNATES)
    assert with_template(own, None) is own


@pytest.mark.parametrize(
    "example",
    [
        {"text": "a"},
        {"prompt": " ", "completion": "a"},
        {"messages": [answer("a")]},
        {"messages": [user(" "), answer("a")]},
        {"instruction": "", "input": " "},
    ],
)
def test_generation_needs_a_prompt(example):
    with pytest.raises(UserError, match="line 3: generation without a prompt"):
        prompt(example, byte_level(*CHATML), template="chatml", where="a.jsonl line 3")


# --- real tokenizers and chats ----------------------------------------------------------------


@real
def test_qwens_own_template_trains_all_answers_and_refuses_tool_turns():
    tokenizer = AutoTokenizer.from_pretrained(REAL / "tokenizers" / "qwen")
    assert end_of_turn(tokenizer) == "<|im_end|>"
    chats = read_examples(str(REAL / "taskmaster4" / "tm4_messages_DERIVED.jsonl.gz"))["example"]
    for chat in map(json.loads, chats[:300]):
        said = [turn["content"] for turn in chat["messages"] if turn["role"] == "assistant"]
        assert trained(chat, tokenizer) == [f"{content}<|im_end|>" for content in said]
    tools = read_examples(str(REAL / "chats" / "glaive_toolcall_en_demo.json"))["example"]
    with pytest.raises(UserError, match="drops a turn: number 5, of the role 'tool'"):
        trained(json.loads(tools[0]), tokenizer)
