"""Files, folders and hub ids -> examples to learn text from, in one of four forms.

messages and tools: columns ``messages``, ``conversations`` or ``conversation``, turns with role and
    content, or with from and value as ShareGPT has them (and a weight, 0 of answers that are read
    and not learnt, as OpenAI has it); and, if there, ``tools`` and ``system``
prompt and completion: columns of these names
    (strings, or lists of turns)
instruction, input and output: columns of these names, as Alpaca has them; ``input`` may be missing;
    or question, context and answer in their places, as GSM8K has them
text: the text column; or a .txt or .md file, which is one text as a whole

The first form whose columns are there is taken, unless `text_column` is given: that is a choice.
Cells that hold lists may be JSON, since CSV has nothing else.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset

from jaxft.data.columns import dataset, objects, parquet
from jaxft.data.sources import JSON, KNOWN, PARQUET, content, locate, open_saved, separator
from jaxft.data.textfiles import Rows, csv_rows, decode, json_rows
from jaxft.errors import UserError

CHATS = ("messages", "conversations", "conversation")
PARTS = (
    ("prompt", "completion"),
    ("instruction", "input", "output"),
    ("question", "context", "answer"),
)
ALSO_CALLED = dict(zip(PARTS[2], PARTS[1], strict=True))
ANSWERS = ("completion", "output")
DOCUMENTS = (".txt", ".md")
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT = {"human": "user", "gpt": "assistant", "function_call": "assistant"}
SHAREGPT |= {"observation": "tool"}

Example = dict[str, Any]


def read_examples(
    source: str,
    *,
    split: str = "train",
    text_column: str | int = "text",
    encoding: str = "utf-8",
    delimiter: str | None = None,
    quoting: bool = True,
    header: bool = True,
    answers: bool = True,
) -> Dataset:
    """Rows with `text` (all of it, as people read it), `example` (the form as JSON) and `line` (in
    which it starts, or the number of the row where lines do not tell rows apart).

    Without `answers` these are rows to answer: a prompt needs no completion, an instruction no
    output, and a chat no assistant turn; `text` is what is asked, and blank where nothing is.

    Raises:
        UserError: whatever is wrong with the source, its columns, or a row, with its line.
    """
    names, rows = _rows(source, split, text_column, encoding, delimiter, quoting, header)
    if not rows:
        raise UserError(f"{source}: no rows.")
    make = _form(names, text_column, answers, source)
    lines = [line for line, _ in rows]
    if len(set(lines)) < len(lines):
        lines = list(range(1, len(rows) + 1))
    examples = [
        make(row, f"{source} line {line}") for line, (_, row) in zip(lines, rows, strict=True)
    ]
    columns = {
        "text": [readable(example if answers else question(example)) for example in examples],
        "example": [json.dumps(example, ensure_ascii=False, default=str) for example in examples],
    }
    return dataset(columns, lines, source)


def question(example: Example) -> Example:
    """An example without the answer that it ends with."""
    if "messages" not in example:
        return {name: cell for name, cell in example.items() if name not in ANSWERS}
    asked = list(example["messages"])
    while asked and asked[-1]["role"] == "assistant":
        asked.pop()
    return {**example, "messages": asked}


def readable(example: Example) -> str:
    """All of an example as plain text: turns with their roles, other parts one after the other;
    what is blank is left out.
    """
    if "messages" not in example:
        return "\n\n".join(part for part in example.values() if part.strip())
    turns = []
    for message in example["messages"]:
        calls = [json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls", ())]
        words = "\n".join(part for part in (message["content"], *calls) if part)
        if words.strip():
            turns.append(f"{message['role'].capitalize()}: {words}")
    return "\n\n".join(turns)


def _rows(
    source: str,
    split: str,
    text_column: str | int,
    encoding: str,
    delimiter: str | None,
    quoting: bool,
    header: bool,
) -> tuple[list[str], Rows]:
    """Names of columns (of all rows, in the order of their first appearance), and rows as dicts."""
    files, root, split = locate(source, split)
    if files is None or files.isdir(root):
        saved = open_saved(files, root, source, split)
        return saved.column_names, objects(saved.with_format("arrow")[:])
    known = (*KNOWN, ".md") if delimiter is None else None
    data, extension = content(files, root, source, known)
    if extension == PARQUET:
        with parquet(data, source) as file:
            table = file.read()
        return table.column_names, objects(table)
    text = decode(data, encoding, source)
    if extension in JSON:
        rows = json_rows(text, source)
        return list(dict.fromkeys(name for _, row in rows for name in row)), rows
    if delimiter is None and extension in DOCUMENTS:
        name = text_column if isinstance(text_column, str) else "text"
        return [name], [(1, {name: text.replace("\r\n", "\n")})]
    fields = csv_rows(text, separator(delimiter, extension), quoting, source)
    if not header:
        if isinstance(text_column, str):
            raise UserError(
                f"{source}: without a header the text column is a position from 0 to "
                f"{len(fields[0][1]) - 1}, found data.text_column={text_column}."
            )
        names = [str(position) for position in range(len(fields[0][1]))]
    else:
        (_, first), *fields = fields
        names = [cell.strip() for cell in first]
        for name in names:
            if name and names.count(name) > 1:
                raise UserError(f"{source}: {names.count(name)} columns are called {name!r}.")
    return names, [(line, dict(zip(names, cells, strict=True))) for line, cells in fields]


def _form(
    names: Sequence[str], text_column: str | int, answers: bool, source: str
) -> Callable[[dict, str], Example]:
    """What makes an example of a row and its place."""
    chosen = text_column
    if isinstance(text_column, int) and 0 <= text_column < len(names):
        chosen = names[text_column]
    if text_column == "text" or not answers:
        for name in CHATS:
            if name in names:
                return lambda row, where: _chat(row, name, answers, where)
        for parts in PARTS:
            if parts[0] in names and (parts[-1] in names or not answers):
                return lambda row, where: _parts(row, parts, answers, where)
    if not answers:
        raise UserError(
            f"{source}: nothing to answer in its columns ({', '.join(map(repr, names))}). Rows to "
            f"answer have {', '.join(CHATS)}, prompt, question, or instruction and input."
        )
    if chosen in names:
        return lambda row, where: {"text": _string(row, str(chosen), where) or ""}
    raise UserError(
        f"{source}: its columns ({', '.join(map(repr, names))}) are no form that is known. Known "
        f"are {', '.join(CHATS[:-1])} or {CHATS[-1]}; prompt and completion; instruction, input "
        "and output; question and answer; or one column of texts, as "
        f"data.text_column={text_column} names it."
    )


def _string(row: dict, column: str, where: str) -> str | None:
    value = row.get(column)
    if not isinstance(value, str | None):
        raise UserError(
            f"{where}: {column!r} is text, found {str(value)[:40]!r}, a {type(value).__name__}."
        )
    return value


def _parts(row: dict, names: Sequence[str], answers: bool, where: str) -> Example:
    if "prompt" in names and isinstance(row.get("prompt"), list):
        return _asked(row, answers, where)
    found = {name: _string(row, name, where) for name in names}
    for name in (names[0], names[-1]):
        if answers and found[name] is None:
            raise UserError(f"{where}: no {name!r}. A row has {names[0]} and {names[-1]}.")
    if lost := [name for name in ("system", "history") if row.get(name)]:
        raise UserError(
            f"{where}: {' and '.join(lost)} would be lost beside {names[0]!r}. Write such rows "
            "as messages, or take the column out."
        )
    called = {ALSO_CALLED.get(name, name): cell for name, cell in found.items()}
    return {
        name: cell or "" for name, cell in called.items() if cell is not None or name not in ANSWERS
    }


def _asked(row: dict, answers: bool, where: str) -> Example:
    """A chat, and how many of its turns are the prompt, as TRL has them."""
    said = row.get("completion") or []
    if not isinstance(said, list) or (answers and not said):
        raise UserError(
            f"{where}: 'completion' is a list of turns, as 'prompt' is, found {str(said)[:40]!r}."
        )
    chat = _chat({**row, "turns": [*row["prompt"], *said]}, "turns", answers, where)
    return {**chat, "asked": len(chat["messages"]) - len(said)}


def _chat(row: dict, column: str, answers: bool, where: str) -> Example:
    turns = _parsed(row.get(column), column, where)
    if turns is None and not answers:
        turns = []
    if not isinstance(turns, list):
        raise UserError(f"{where}: {column!r} is a list of turns, found {str(turns)[:40]!r}.")
    if not turns and answers:
        raise UserError(f"{where}: the conversation is empty.")
    messages = [_turn(turn, f"{where}, turn {i}", answers) for i, turn in enumerate(turns, 1)]
    system = _string(row, "system", where)
    if system and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    if answers and "assistant" not in [message["role"] for message in messages]:
        raise UserError(f"{where}: no turn of the assistant, so that there is nothing to learn.")
    tools = _parsed(row.get("tools"), "tools", where) or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f"{where}: 'tools' is a list of objects, found {str(tools)[:40]!r}.")
    wrapped = [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
    ]
    return {"messages": messages} | ({"tools": wrapped} if tools else {})


def _parsed(value: Any, column: str, where: str) -> Any:
    """A list, or the one that a string holds as JSON."""
    try:
        return json.loads(value) if isinstance(value, str) and value.strip() else value
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: {column!r} is broken JSON ({error}).") from None


def _turn(turn: Any, where: str, answers: bool) -> dict[str, Any]:
    """A message with role and content (a string), and what else the turn has that is not null."""
    if not isinstance(turn, dict) or not ({"role", "from"} & turn.keys()):
        raise UserError(
            f"{where}: a turn is an object with role and content (or from and value), found "
            f"{str(turn)[:40]!r}."
        )
    shared = "role" not in turn
    said, value = turn["from" if shared else "role"], turn.get("value" if shared else "content")
    role = SHAREGPT.get(str(said), said) if shared else said
    if role not in ROLES:
        also = f" (or, in ShareGPT's form, {', '.join(SHAREGPT)})" if shared else ""
        raise UserError(f"{where}: unknown role {said!r}; roles are {', '.join(ROLES)}{also}.")
    more = {} if shared else {key: cell for key, cell in turn.items() if cell is not None}
    if (weight := turn.get("weight")) is not None:
        if weight not in (0, 1):
            raise UserError(f"{where}: a weight is 1, or 0 of a turn not to learn: {weight!r}.")
        more["weight"] = weight
    if calls := more.pop("tool_calls", None):
        more["tool_calls"] = [_call(call) for call in calls]
        if None in more["tool_calls"]:
            raise UserError(f"{where}: a tool call has a name and arguments, found {calls}.")
    elif said == "function_call" and (call := _call(value)):  # else it stays as it is written
        more["tool_calls"], value = [call], ""
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in value
    ):
        value = "".join(part["text"] for part in value)
    if value is None and ("tool_calls" in more or not answers):
        value = ""
    if not isinstance(value, str):
        raise UserError(
            f"{where}: the content is a string (or a list of parts of type text), found "
            f"{str(value)[:40]!r}."
        )
    return {**more, "role": role, "content": value}


def _call(call: Any) -> dict | None:
    """A tool call, or the JSON of one, with its arguments as an object (templates write them as
    JSON themselves); None where it is none.
    """
    try:
        call = json.loads(call) if isinstance(call, str) else call
        function = call.get("function") or call
        arguments = function["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        more = call if function is not call else {"type": "function"}
        return {**more, "function": {"name": function["name"], "arguments": arguments}}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
