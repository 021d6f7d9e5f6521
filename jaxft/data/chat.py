"""One example -> one text, and which of its characters a model is trained to write.

Chats go through the tokenizer's chat template, or a named one of ours, and are trained on what the
assistant says, from where generation starts to the token that ends the turn: a model that is not
trained on that token never stops. The text is what serving renders, so that nothing is added to it,
not even a BOS token. Everything else is written as it stands and ends with the EOS token.

Tool calls go to a template that has a place for them, and are JSON in the content elsewhere.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxft.data.examples import Example, question
from jaxft.data.templates import TEMPLATES, end_of_turn, ends, mark, with_template
from jaxft.errors import UserError

ALPACA = (
    "Below is an instruction that describes a task{}. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{}\n\n{}### Response:\n"
)
"""Source: Taori et al. 2023, Stanford Alpaca."""

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Rendered:
    """A text, and what of it is trained."""

    text: str
    spans: Spans
    """Start and end of the characters that are trained, in order."""
    special: bool
    """Whether the tokens come before it that the tokenizer puts before a text by itself (BOS)."""
    document: bool = False
    """Whether it may be torn into several rows where it is longer than one."""


def render(
    example: Example,
    tokenizer: Any,
    *,
    template: str | None = None,
    completion_only: bool = True,
    assistant_only: bool = True,
    turns: Literal["all", "last"] = "all",
    where: str,
) -> Rendered:
    """The text to learn from. A blank answer is never trained: all it teaches is to stop.

    `template` names one of TEMPLATES, which goes before the tokenizer's own; `turns` says which
    answers of a chat are trained; `where` (file and line) is for error messages.

    Raises:
        UserError: a tokenizer without EOS or template; a chat that the template refuses, leaves
        parts of out, or does not end.
    """
    eos = _eos(tokenizer)
    if "text" in example:
        text = _unended(example["text"], eos) + eos
        return replace(_plain(text, ((0, len(text)),), tokenizer), document=True)
    if chat := _chat(example, template or tokenizer.chat_template):
        first = chat.get("asked", 0) if completion_only else 0
        return _conversation(chat, tokenizer, template, assistant_only, turns, first, where)
    asked, said = _parts(example)
    answer = _unended(said or "", eos)
    text = asked + answer + eos
    start = len(asked) if completion_only else 0
    return _plain(text, ((start, len(text)),) if answer.strip() else (), tokenizer)


def prompt(
    example: Example, tokenizer: Any, *, template: str | None = None, where: str
) -> Rendered:
    """The text up to where an answer starts; a chat that ends with an answer is asked again for it.

    Raises: UserError as `render`, and where there is nothing to answer.
    """
    _eos(tokenizer)
    if chat := _chat(example, template or tokenizer.chat_template):
        asked = question(chat)
        if any(turn["content"].strip() for turn in asked["messages"]):
            said = _Chat(tokenizer, asked, template, where)
            return Rendered(said.whole(ask=True), (), special=False)
    elif "text" not in example and (prompted := _parts(example)[0]).strip():
        return _plain(prompted, (), tokenizer)
    raise UserError(f"{where}: generation without a prompt: there is nothing to answer.")


def _eos(tokenizer: Any) -> str:
    eos = tokenizer.special_tokens_map.get("eos_token")
    if not eos:
        raise UserError(
            "The model's tokenizer has no EOS token, so that an answer has no end to be learned. "
            "Set eos_token in the tokenizer_config.json of model.pretrained, e.g. to '</s>'."
        )
    return eos


def _unended(text: str, eos: str) -> str:
    """Without the EOS token that many data sets write behind their texts themselves."""
    bare = text.rstrip()
    return bare.removesuffix(eos) if eos and bare.endswith(eos) else text


def unended(answer: str, tokenizer: Any) -> str:
    """Without the ends of an answer that the data write themselves."""
    if not answer.rstrip().endswith(ends(tokenizer)):
        return answer
    return _unended(_unended(answer, _eos(tokenizer)), end_of_turn(tokenizer) or "")


def _plain(text: str, spans: Spans, tokenizer: Any) -> Rendered:
    bos = tokenizer.special_tokens_map.get("bos_token")
    return Rendered(text, spans, special=not (bos and text.startswith(bos)))


def _parts(example: Example) -> tuple[str, str | None]:
    """Prompt and answer."""
    if "prompt" in example:
        return example["prompt"], example.get("completion")
    more = example["input"]
    context = ", paired with an input that provides further context" if more.strip() else ""
    given = f"### Input:\n{more}\n\n" if more.strip() else ""
    return ALPACA.format(context, example["instruction"], given), example.get("output")


def _chat(example: Example, template: Any) -> Example | None:
    """The example as a chat: messages, and where there is a template an instruction too."""
    if "instruction" not in example or not template:
        return example if "messages" in example else None
    asked = "\n\n".join(part for part in (example["instruction"], example["input"]) if part.strip())
    answer = [{"role": "assistant", "content": example["output"]}] if "output" in example else []
    return {"messages": [{"role": "user", "content": asked}, *answer]}


def _conversation(
    chat: Example,
    tokenizer: Any,
    template: str | None,
    assistant_only: bool,
    turns: str,
    first: int,
    where: str,
) -> Rendered:
    """`first`: the turn from which on a chat is learnt."""
    said = _Chat(tokenizer, chat, template, where)
    text = said.whole()
    answers = [
        i
        for i, turn in enumerate(said.messages)
        if i >= first
        and turn["role"] == "assistant"
        and turn.get("weight") != 0
        and (turn["content"].strip() or turn.get("tool_calls"))
    ]
    if not answers:
        return Rendered(text, (), special=False)
    spans = [said.span(i, text) for i in (answers if turns == "all" else answers[-1:])]
    if not text[: spans[-1][1]].endswith(ends(tokenizer)):
        raise UserError(
            f"{where}: the chat template writes no token after an answer, so that the model would "
            "never learn to stop. Give the tokenizer a template that does, or name one in "
            f"task.chat_template ({', '.join(TEMPLATES)})."
        )
    if not assistant_only:
        return Rendered(text, ((spans[0][0] if first else 0, len(text)),), special=False)
    return Rendered(text, tuple(spans), special=False)


class _Chat:
    """A conversation and the template it is rendered with."""

    def __init__(self, tokenizer: Any, chat: Example, template: str | None, where: str) -> None:
        self.tokenizer = with_template(tokenizer, template)
        self.where = where
        self.tools = chat.get("tools") or None
        self.source = self.tokenizer.get_chat_template(tools=self.tools)
        written = "tool_calls" in self.source
        said = [turn if written else _flat(turn) for turn in chat["messages"]]
        self.messages = [self._open(turn) if turn["role"] == "assistant" else turn for turn in said]

    def _open(self, turn: dict) -> dict:
        """An answer whose end is the template's alone."""
        return {**turn, "content": unended(turn["content"], self.tokenizer)}

    def apply(self, messages: Sequence[dict], ask: bool = False, tools: bool = True) -> str:
        """The messages as text; `ask`: up to where an answer starts.

        Raises: UserError with the template's own words.
        """
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                tools=self.tools if tools else None,
                chat_template=self.source,
                add_generation_prompt=ask,
                tokenize=False,
            )
        except Exception as error:  # a template is a program: it can raise anything
            raise UserError(
                f"{self.where}: the chat template refuses this conversation: {error}"
            ) from error

    def attempt(self, messages: Sequence[dict], ask: bool = False) -> str | None:
        """As `apply`, or None where the template refuses, as it may for a part of a chat."""
        try:
            return self.apply(messages, ask)
        except UserError:
            return None

    def marked(self, turns: Sequence[int]) -> list[dict]:
        """The messages with marks as contents of some."""
        every = enumerate(self.messages)
        return [{**turn, "content": mark(i)} if i in turns else turn for i, turn in every]

    def whole(self, ask: bool = False) -> str:
        """As `apply` to all messages.

        Raises: UserError where the template leaves out a turn, a tool call or the tools.
        """
        text = self.apply(self.messages, ask)
        said = [i for i, turn in enumerate(self.messages) if turn["content"].strip()]
        marked = self.attempt(self.marked(said))
        for i, turn in enumerate(self.messages):
            there = mark(i) in marked if marked else turn["content"].strip() in text
            calls = [call["function"]["name"] for call in turn.get("tool_calls", ())]
            if (i in said and not there) or not all(name in text for name in calls):
                raise UserError(
                    f"{self.where}: the template drops a turn: number {i + 1}, of the role "
                    f"{turn['role']!r}, is not in the text that it makes. Take the turn out, or "
                    f"name another template in task.chat_template ({', '.join(TEMPLATES)})."
                )
        if self.tools and self.apply(self.messages, ask, tools=False) == text:
            raise UserError(
                f"{self.where}: the template drops the tools. Take them out, or name another "
                f"template in task.chat_template ({', '.join(TEMPLATES)})."
            )
        return text

    def span(self, i: int, text: str) -> tuple[int, int]:
        """Where in `text`, which is all of the chat, answer `i` stands, its end token included."""
        asked = self.attempt(self.messages[:i], ask=True) if i else None
        told = text if i + 1 == len(self.messages) else self.attempt(self.messages[: i + 1])
        if asked is not None and told and told.startswith(asked) and text.startswith(told):
            return len(asked), len(asked) + len(told[len(asked) :].rstrip())
        # The template writes a turn in another way when others follow. What changes in the text
        # with the content is the content; what ends the turn is what ends it as the last one.
        head, found, tail = self.apply(self.marked([i])).partition(mark(i))
        alone = self.attempt(self.marked([i])[: i + 1])
        ending = alone.partition(mark(i))[2].rstrip() if alone else ""
        if not found or not text.endswith(tail):
            raise UserError(f"{self.where}: turn {i + 1} cannot be found in the template's text.")
        end = len(text) - len(tail) + (len(ending) if tail.startswith(ending) else 0)
        begins = asked is not None and text.startswith(asked)
        return len(asked or "") if begins else _shared(head, text), end


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    unlike = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(unlike, min(len(one), len(other)))


def _flat(turn: dict) -> dict:
    """A turn with its tool calls as JSON in the content, one a line."""
    turn = dict(turn)
    calls = [call["function"] for call in turn.pop("tool_calls", ())]
    said = [turn["content"], *(json.dumps(call, ensure_ascii=False) for call in calls)]
    return {**turn, "content": "\n".join(part for part in said if part)}
