"""Sources -> examples: which form a source has, and the one message for each mistake."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset

from jaxft.data.examples import read_examples
from jaxft.data.sources import quiet
from jaxft.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data"
HELLO = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]
SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "Hello"}]
CALL = {"name": "add", "arguments": {"a": 1}}


@pytest.fixture
def write(tmp_path):
    def to(name: str, content) -> str:
        path = tmp_path / name
        if isinstance(content, list):
            content = "\n".join(json.dumps(row) for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return to


def examples(path, **options):
    return [json.loads(example) for example in read_examples(path, **options)["example"]]


# --- forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "example", "text"),
    [
        ({"messages": HELLO, "id": 7}, {"messages": HELLO}, "User: hi\n\nAssistant: Hello"),
        ({"conversations": SHARED}, {"messages": HELLO}, "User: hi\n\nAssistant: Hello"),
        ({"conversation": HELLO}, {"messages": HELLO}, "User: hi\n\nAssistant: Hello"),
        (
            {"prompt": "a", "completion": " b", "text": "no"},
            {"prompt": "a", "completion": " b"},
            "a\n\n b",
        ),
        (
            {"instruction": "a", "output": "b"},
            {"instruction": "a", "input": "", "output": "b"},
            "a\n\nb",
        ),
        (
            {"output": "c", "instruction": "a", "input": "b"},
            {"instruction": "a", "input": "b", "output": "c"},
            "a\n\nb\n\nc",
        ),
        (
            {"question": "a", "answer": "b #### 4"},
            {"instruction": "a", "input": "", "output": "b #### 4"},
            "a\n\nb #### 4",
        ),
        (
            {"answer": "c", "question": "a", "context": "b"},
            {"instruction": "a", "input": "b", "output": "c"},
            "a\n\nb\n\nc",
        ),
        (
            {"prompt": HELLO[:1], "completion": HELLO[1:]},
            {"messages": HELLO, "asked": 1},
            "User: hi\n\nAssistant: Hello",
        ),
        ({"text": "a\nb"}, {"text": "a\nb"}, "a\nb"),
        ({"text": None}, {"text": ""}, ""),
    ],
)
def test_the_form_is_recognised_from_the_columns(write, row, example, text):
    found = read_examples(write("a.jsonl", [row, row]))
    assert found.column_names == ["text", "example", "line"]
    assert found["text"][:] == [text] * 2
    assert [json.loads(one) for one in found["example"]] == [example] * 2
    assert found["line"][:] == [1, 2]


def test_every_kind_of_source_gives_the_same_chats(write, tmp_path):
    rows = [{"messages": HELLO}, {"messages": [*HELLO, *HELLO]}]
    lines = "\n".join(json.dumps(row) for row in rows)
    listed = json.dumps(rows, indent=1)
    table = Dataset.from_list(rows)
    table.to_parquet(tmp_path / "a.parquet")
    with quiet():
        table.save_to_disk(tmp_path / "saved")
    frame = pd.DataFrame({"messages": [json.dumps(row["messages"]) for row in rows]})
    paths = [
        write("a.jsonl", lines),
        write("a.json", listed),
        write("a.jsonl.gz", gzip.compress(lines.encode())),
        write("a.json.gz", gzip.compress(listed.encode())),
        write("a.csv", frame.to_csv(index=False)),
        write("a.tsv", frame.to_csv(index=False, sep="\t")),
        str(tmp_path / "a.parquet"),
        str(tmp_path / "saved"),
    ]
    assert [examples(path) for path in paths] == [rows] * len(paths)


@pytest.mark.parametrize("more", [{"system": "Be brief."}, {"history": [["a", "b"]]}])
def test_what_an_instruction_has_no_place_for_is_refused_and_blanks_are_not(write, more):
    row = {"instruction": "a", "input": "", "output": "b"}
    blank = {name: type(cell)() for name, cell in more.items()}
    assert examples(write("a.jsonl", [row | blank])) == [row]
    lost = rf"line 2: {next(iter(more))} would be lost beside 'instruction'"
    with pytest.raises(UserError, match=lost):
        examples(write("b.jsonl", [row, row | more]))


def test_turns_keep_a_weight_of_0_or_1_alone(write):
    rows = [{"conversations": [SHARED[0] | {"weight": None}, SHARED[1] | {"weight": 0}]}]
    [found] = examples(write("a.jsonl", rows))
    assert found["messages"] == [HELLO[0], HELLO[1] | {"weight": 0}]
    rows[0]["conversations"][1]["weight"] = 0.5
    with pytest.raises(UserError, match=r"line 1, turn 2: a weight is 1, or 0 .*: 0.5"):
        examples(write("b.jsonl", rows))


def test_tables_give_a_tool_call_no_arguments_of_other_calls(tmp_path):
    def row(name, arguments):
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        tool = {"type": "function", "function": {"name": name, "parameters": arguments}}
        return {"messages": [HELLO[0], HELLO[1] | {"tool_calls": [call]}], "tools": [tool]}

    rows = [row("add", {"a": 1, "b": [2]}), row("say", {"word": "hi"}), row("stop", {})]
    table = Dataset.from_list(rows)
    table.to_parquet(tmp_path / "a.parquet")
    with quiet():
        table.save_to_disk(tmp_path / "saved")
    for path in tmp_path / "a.parquet", tmp_path / "saved":
        assert examples(str(path)) == rows


def test_sharegpt_roles_tool_calls_and_tools_take_the_form_that_templates_know(write):
    turns = [
        {"from": "system", "value": "Add."},
        {"from": "human", "value": "1?"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "Two."},
    ]
    tools = [{"name": "add", "parameters": {}}]
    path = write("a.jsonl", [{"conversations": turns, "tools": json.dumps(tools)}])
    [found] = examples(path)
    roles = ["system", "user", "assistant", "tool", "assistant"]
    assert [turn["role"] for turn in found["messages"]] == roles
    call = {"type": "function", "function": CALL}
    assert found["messages"][2] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert found["tools"] == [{"type": "function", "function": tools[0]}]
    assert '"add"' in read_examples(path)["text"][0]
    turns[2]["value"] = "add 1 and 1"  # no JSON: stays what it is
    [found] = examples(write("b.jsonl", [{"conversations": turns, "tools": "[]"}]))
    assert found["messages"][2] == {"role": "assistant", "content": "add 1 and 1"}
    assert "tools" not in found


def test_openai_tool_calls_keep_their_id_and_get_arguments_as_an_object(write):
    call = {"id": "x", "type": "function", "function": CALL | {"arguments": '{"a": 1}'}}
    turns = [HELLO[0], {"role": "assistant", "content": None, "tool_calls": [call]}]
    [found] = examples(write("a.jsonl", [{"messages": turns}]))
    expected = {"id": "x", "type": "function", "function": CALL}
    assert found["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [expected]}


def test_parts_of_type_text_are_joined_and_a_system_column_goes_first(write):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [{"role": "user", "content": parts}, HELLO[1]]
    [found] = examples(write("a.jsonl", [{"messages": turns, "system": "Be kind."}]))
    assert [turn["content"] for turn in found["messages"]] == ["Be kind.", "ab", "Hello"]


def test_a_text_file_is_one_document_unless_a_delimiter_makes_it_a_table(write):
    path = write("a.txt", "\ufeffOne.\r\n\r\nTwo\t2.\n")
    assert examples(path) == [{"text": "One.\n\nTwo\t2.\n"}]
    assert examples(write("a.md", "# One")) == [{"text": "# One"}]
    table = write("b.txt", "text\tn\na\t1\nb\t2\n")
    assert examples(table, delimiter="\\t") == [{"text": "a"}, {"text": "b"}]


def test_a_text_column_that_is_named_wins_over_the_other_forms(write):
    path = write("a.jsonl", [{"prompt": "a", "completion": "b", "body": "c"}])
    assert examples(path, text_column="body") == [{"text": "c"}]
    assert examples(path, text_column=1) == [{"text": "b"}]
    bare = write("a.csv", "1,first\n2,second\n")
    assert examples(bare, text_column=1, header=False) == [{"text": "first"}, {"text": "second"}]


def test_lines_number_the_rows_where_several_start_in_one_line(write):
    rows = [{"text": "a"}, {"text": "b"}]
    assert read_examples(write("a.json", json.dumps(rows)))["line"][:] == [1, 2]
    assert read_examples(write("b.json", json.dumps(rows, indent=1)))["line"][:] == [2, 5]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a"},
        {"prompt": "a", "completion": None},
        {"instruction": "a"},
        {"messages": HELLO[:1]},
        {"messages": [*HELLO, HELLO[0]]},
    ],
)
def test_rows_to_answer_need_no_answer(write, row):
    [found] = examples(write("a.jsonl", [row]), answers=False)
    assert not {"completion", "output"} & found.keys()
    if "completion" in row or row.get("messages") == HELLO[:1]:
        with pytest.raises(UserError, match=r"no 'completion'|no turn of the assistant"):
            read_examples(write("a.jsonl", [row]))


# --- mistakes ---------------------------------------------------------------------------------


def turn(role="user", content="hi", **more):
    return {"messages": [*HELLO, {"role": role, "content": content, **more}]}


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text"', {}, r"a.jsonl line 2: broken JSON"),
        ("a.txt", " \n", {}, r"a.txt is empty"),
        ("a.csv", "text\n", {}, r"a.csv: no rows"),
        ("a.doc", "a", {}, r"unknown extension .doc. Known are .* .md; .*data.delimiter"),
        ("a.jsonl.gz", b"no gzip", {}, r"a.jsonl.gz cannot be opened: BadGzipFile"),
        ("a.parquet", b"no parquet", {}, r"a.parquet is not a whole Parquet file"),
        ("a.csv", "a,b\nc,d\n", {}, r"columns \('a', 'b'\) are no form .* messages, conv.*prompt"),
        ("a.csv", "a,b\nc,d\n", {"text_column": "c"}, r"no form .* data.text_column=c"),
        ("a.csv", "a,b\nc,d\n", {"text_column": 2}, r"no form .* data.text_column=2"),
        ("a.csv", "a,b\n", {"header": False}, r"position from 0 to 1, found data.text_column=text"),
        ("a.csv", "text,text\na,b\n", {}, r"2 columns are called 'text'"),
        ("a.jsonl", [{"prompt": "a"}], {}, r"columns \('prompt'\) are no form"),
        ("a.jsonl", [{"prompt": HELLO, "completion": "a"}], {}, r"'completion' is a list of turns"),
        ("a.jsonl", [{"prompt": HELLO, "completion": []}], {}, r"'completion' is a list of turns"),
        ("a.jsonl", [{"text": 3}], {}, r"a.jsonl line 1: 'text' is text, found '3', a int"),
        (
            "a.jsonl",
            [{"prompt": "a", "completion": "b"}, {"prompt": "a"}],
            {},
            r"line 2: no 'completion'. A row has prompt and completion",
        ),
        (
            "a.jsonl",
            [{"instruction": "a", "output": "b"}, {"output": "a"}],
            {},
            r"line 2: no 'instruction'",
        ),
        ("a.jsonl", [{"messages": []}], {}, r"line 1: the conversation is empty"),
        ("a.jsonl", [{"messages": "hi"}], {}, r"line 1: 'messages' is broken JSON"),
        ("a.jsonl", [{"messages": {"a": 1}}], {}, r"line 1: 'messages' is a list of turns, found"),
        ("a.jsonl", [{"messages": ["hi"]}], {}, r"line 1, turn 1: a turn is an object with role"),
        (
            "a.jsonl",
            [{"messages": HELLO}, turn("bot")],
            {},
            r"a.jsonl line 2, turn 3: unknown role 'bot'; roles are system, user, assistant, tool",
        ),
        (
            "a.jsonl",
            [{"conversations": [{"from": "bing", "value": "a"}]}],
            {},
            r"unknown role 'bing'; roles are .* human, gpt, function_call, observation",
        ),
        ("a.jsonl", [turn(content=None)], {}, r"turn 3: the content is a string .* found 'None'"),
        (
            "a.jsonl",
            [turn(content=[{"type": "image"}])],
            {},
            r"content is a string \(or a list of parts of type text\)",
        ),
        ("a.jsonl", [turn(tool_calls=[{"id": 1}])], {}, r"a tool call has a name and arguments"),
        ("a.jsonl", [turn() | {"tools": ["add"]}], {}, r"line 1: 'tools' is a list of objects"),
        ("a.jsonl", [{"messages": HELLO[:1]}], {}, r"line 1: no turn of the assistant"),
        ("a.jsonl", '{"text": "\\ud83d"}', {}, r"half of a surrogate pair"),
    ],
)
def test_a_mistake_is_one_clear_message(write, name, content, options, message):
    with pytest.raises(UserError, match=message):
        read_examples(write(name, content), **options)


def test_a_missing_packed_file_is_no_hub_id(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"chats.jsonl.gz: no such file or folder"):
        read_examples("chats.jsonl.gz")


# --- real files -------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.exists(), reason="the real data of ../shared/data is absent")
@pytest.mark.parametrize(
    ("name", "rows", "form"),
    [
        ("alpaca/alpaca_5000.json", 5000, {"instruction", "input", "output"}),
        ("chats/identity.json", 91, {"instruction", "input", "output"}),
        ("chats/glaive_toolcall_en_demo.json", 300, {"messages", "tools"}),
        ("taskmaster4/tm4_messages_DERIVED.jsonl.gz", 3710, {"messages"}),
        ("tinyshakespeare/input.txt", 1, {"text"}),
    ],
)
def test_real_files_are_read_whole(name, rows, form):
    found = read_examples(str(REAL / name))
    assert len(found) == rows
    assert len(set(found["line"])) == rows
    assert set.union(*(set(json.loads(example)) for example in found["example"])) == form
    assert all(text.strip() for text in found["text"])
