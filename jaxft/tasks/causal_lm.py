"""Causal language modelling: supervised fine-tuning on answers, continued pretraining on texts.

B rows, M examples a row, L tokens, N examples of a split. Source: the loss is transformers'
`ForCausalLMLoss`; what is trained follows TRL's `SFTConfig`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data import answers, chat, documents, examples, supervision
from jaxft.data.batches import Layout
from jaxft.data.features import Rows
from jaxft.data.templates import with_template
from jaxft.errors import UserError
from jaxft.generate import Sampling
from jaxft.nn.losses import token_scores, vocabulary_loss
from jaxft.nn.tokens import Batch, Tokens, own
from jaxft.tasks import Base

OUTPUT = "causal_lm"
PIPELINE = "text-generation"
AUTO_MODEL = "AutoModelForCausalLM"
TEXTS = ("text",)
EXACT_MATCH = "exact_match"
read, cut = examples.read_examples, documents.cut


def reading(data: Any, answers: bool) -> dict[str, Any]:
    """What `read` depends on beside the source."""
    return {"text_column": data.text_column, "answers": answers, **data.text_format}


def objective(data: Any) -> str:
    """What is learnt, as `planning.advice` knows it."""
    return "domain" if data.packing == "rows" else "instruct"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The config keys of `task` beside its name."""

    completion_only_loss: bool = field(
        default=True, metadata={"help": "prompts are read, only completions are learnt"}
    )
    assistant_only_loss: bool = field(
        default=True, metadata={"help": "of a chat only the assistant's turns are learnt"}
    )
    turns: Literal["all", "last"] = field(
        default="all", metadata={"help": "which of the assistant's turns are learnt"}
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "None: the tokenizer's own; or chatml, llama3, plain"}
    )
    cut_answers: bool = field(
        default=False, metadata={"help": "keep rows whose answer data.max_length cuts short"}
    )
    exact_match: Literal["none", "number", "text"] = field(
        default="none",
        metadata={
            "help": "answer validation and test rows, and score the share with the right final "
            "number, as GSM8K has it, or the right text"
        },
    )
    generate_rows: int = field(
        default=64, metadata={"help": "rows that exact_match answers, the first", "must": ">= 1"}
    )
    max_new_tokens: int = field(
        default=256, metadata={"help": "tokens an answer has at most", "must": ">= 1"}
    )
    temperature: float = field(
        default=0.0, metadata={"help": "predict: 0 takes the likeliest token", "must": ">= 0"}
    )
    top_k: int | None = field(
        default=None, metadata={"help": "predict: draw among the k likeliest", "must": ">= 1"}
    )
    top_p: float = field(
        default=1.0,
        metadata={"help": "predict: draw among the likeliest that hold p", "must": "> 0 and <= 1"},
    )

    def clashes(self, data: Any) -> Iterator[tuple[tuple[str, ...], str]]:
        """The keys that nothing would read beside others, and what to change."""
        if self.turns == "last" and not self.assistant_only_loss:
            yield (
                ("task.turns", "task.assistant_only_loss"),
                "task.turns = 'last' chooses among the answers of a chat, of which "
                "task.assistant_only_loss = False learns every word; leave one of them out",
            )
        drawing = {"task.top_k": self.top_k, "task.top_p": self.top_p < 1}
        if self.temperature == 0 and (unread := [name for name, given in drawing.items() if given]):
            yield (
                ("task.temperature", *unread),
                f"{' and '.join(unread)} would say how tokens are drawn, and task.temperature = 0 "
                "takes the likeliest; set it above 0, or leave that out",
            )
        for name, default in ("label_column", "label"), ("text_pair_column", None):
            if (given := getattr(data, name)) != default:
                yield (
                    (f"data.{name}", "task.name"),
                    f"data.{name} = {given!r} is of rows with labels, which causal_lm does not "
                    "read; leave it out",
                )


@dataclass(frozen=True, kw_only=True)
class Task(Base, Options):
    """What is learnt of each example and how answers are written: the options, nothing else."""

    num_labels = 0
    labels = ()
    silence = MappingProxyType({"completion": None})
    """What `predict` says of a row without text."""
    main_metric = "loss"

    @property
    def score_names(self) -> tuple[str, ...]:
        generated = () if self.exact_match == "none" else (EXACT_MATCH,)
        return ("loss", "perplexity", "token_accuracy", *generated)

    @classmethod
    def from_rows(cls, options: Options, rows: Rows, known: Sequence[str]) -> "Task":
        """Nothing is read off the data."""
        return cls(**{name: getattr(options, name) for name in cls.__dataclass_fields__})

    def prepare(self, tokenizer: Any) -> Any:
        """The tokenizer to train with and to export, with the chat template that is asked for."""
        return with_template(tokenizer, self.chat_template) if self.chat_template else tokenizer

    def config(self, tokenizer: Any) -> dict[str, Any]:
        """The fields of `config.json` that record the task: where answers end, so that a server
        does as training taught.
        """
        first, *others = supervision.stop_ids(tokenizer)
        ids = {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": [first, *others] if others else first,
            "pad_token_id": tokenizer.pad_token_id,
        }
        return {name: value for name, value in ids.items() if value is not None}

    def files(self, tokenizer: Any, origin: Mapping[str, Any]) -> dict[str, Any]:
        """JSON files that an export has beside the model's: it writes as the one it began as."""
        known = origin.get("generation_config", {})
        return {"generation_config.json": known | self.config(tokenizer)}

    def describe(self) -> str:
        """What is learnt, in words."""
        answers = "the last answer" if self.turns == "last" else "every answer"
        return (
            f"completions {'alone' if self.completion_only_loss else 'and their prompts'}; of "
            f"chats {answers if self.assistant_only_loss else 'every word'}; of texts all"
        )

    def features(
        self, columns: Mapping[str, Sequence], tokenizer: Any, max_length: int, source: str
    ) -> dict[str, list]:
        """Token ids of each row and which of them are learnt; see `supervision.encode`."""
        rendered = [
            chat.render(
                json.loads(example),
                tokenizer,
                completion_only=self.completion_only_loss,
                assistant_only=self.assistant_only_loss,
                turns=self.turns,
                where=f"{source} line {line}",
            )
            for example, line in zip(columns["example"], columns["line"], strict=True)
        ]
        return supervision.encode(rendered, tokenizer, max_length, cut=self.cut_answers)

    def collate(self, layout: Layout) -> dict[str, np.ndarray]:
        """Of each token the one that follows it, int32 [B, L], and whether that one is learnt,
        float32 [B, L].
        """
        ids_BL = layout.tokens(layout.columns["input_ids"])
        trained_BL = layout.tokens(layout.columns["trained"])
        segments_BL = layout.segments_RL
        inside_BL = segments_BL[:, 1:] == segments_BL[:, :-1]
        learnt_BL = (trained_BL[:, 1:] * inside_BL).astype(np.float32)
        last = ((0, 0), (0, 1))
        return {"next_BL": np.pad(ids_BL[:, 1:], last), "learnt_BL": np.pad(learnt_BL, last)}

    def logits(self, model: Any, tokens: Tokens) -> jax.Array:
        """What transformers' model of this task returns, [B, L, V]."""
        return model.logits(model(tokens))

    def loss(self, model: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Sum of the losses of the tokens that are learnt, and how many they are."""
        hidden_BLD = model(batch.tokens, key=key)
        learnt_BL = batch.targets["learnt_BL"]
        total = vocabulary_loss(
            hidden_BLD, model.vocabulary_DV, batch.targets["next_BL"], learnt_BL
        )
        return total, learnt_BL.sum()

    def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
        """Per example: the sum of its losses, how many tokens are learnt, how many are hit."""
        learnt_BL = batch.targets["learnt_BL"]
        nll_BL, hit_BL = token_scores(
            model(batch.tokens), model.vocabulary_DV, batch.targets["next_BL"], learnt_BL
        )
        examples = batch.weights_BM.shape[1]
        of_BML = own(batch.tokens.segments_BL, examples).astype(jnp.float32)

        def sums(values_BL: jax.Array) -> jax.Array:
            return jnp.einsum("BML,BL->BM", of_BML, values_BL).reshape(-1)

        return {
            "losses_N": sums(nll_BL),
            "tokens_N": sums(learnt_BL),
            "hits_N": sums(hit_BL),
        }

    def scores(self, outputs: Mapping[str, np.ndarray], targets: Any) -> dict[str, float]:
        """Loss per learnt token, its exponential, and the share of tokens that are hit."""
        tokens = outputs["tokens_N"].sum(dtype=np.float64)
        loss = float(outputs["losses_N"].sum(dtype=np.float64) / tokens)
        hits = float(outputs["hits_N"].sum(dtype=np.float64) / tokens)
        return {"loss": loss, "perplexity": float(np.exp(loss)), "token_accuracy": hits}

    def worst(self, outputs: Mapping[str, np.ndarray], targets: Any) -> list[dict[str, Any]]:
        """The examples with the highest loss per token first."""
        loss_N = outputs["losses_N"] / np.maximum(outputs["tokens_N"], 1)
        order = np.argsort(-loss_N, kind="stable")
        return [{"row": int(row), "loss per token": float(loss_N[row])} for row in order]

    def preview(self, features: Any, tokenizer: Any) -> list[Any]:
        """Three examples, coloured by what is learnt."""
        rows = (features[i] for i in range(min(3, len(features))))
        return [supervision.preview(row["input_ids"], row["trained"], tokenizer) for row in rows]

    def respond(self, rows: Rows, tools: Any) -> Iterator[dict[str, Any]]:
        """What `predict` adds to each row: `completion`, up to the token that ends it."""
        asked = [json.loads(example) for example in rows.dataset["example"]]
        prompts = self._prompts(asked, rows, tools)
        sampling = Sampling(
            self.max_new_tokens, self.temperature, self.top_k, self.top_p, tools.seed
        )
        for said in self._answers(prompts, tools, sampling):
            yield {"completion": said}

    def wanted(self, rows: Rows, tools: Any) -> list[tuple[list[int], str]]:
        """Prompts and right answers of the rows that `exact_match` asks, none where it is off.

        Raises: UserError for a row without either.
        """
        if self.exact_match == "none":
            return []
        asked = [json.loads(example) for example in rows.dataset["example"][: self.generate_rows]]
        right = [answers.reference(example) for example in asked]
        for answer, line in zip(right, rows.dataset["line"], strict=False):
            if answer is None or (self.exact_match == "number" and answers.number(answer) is None):
                raise UserError(
                    f"{rows.source} line {line}: task.exact_match={self.exact_match} finds no "
                    f"{'answer' if answer is None else 'number'} in it; leave it at none "
                    "(evaluate: --exact_match=none)."
                )
        bare = [chat.unended(str(answer), tools.tokenizer) for answer in right]
        return list(zip(self._prompts(asked, rows, tools), bare, strict=True))

    def compile(self, wanted: Sequence[tuple[list[int], str]], tools: Any) -> None:
        if wanted:
            stop = supervision.stop_ids(tools.tokenizer)
            prompts = [prompt for prompt, _ in wanted]
            tools.generate.compile(prompts, stop, Sampling(self.max_new_tokens))

    def generated(self, wanted: Sequence[tuple[list[int], str]], tools: Any) -> dict[str, float]:
        """The score of `exact_match`: the share of rows whose likeliest answer is right."""
        if not wanted:
            return {}
        prompts, right = zip(*wanted, strict=True)
        said = self._answers(prompts, tools, Sampling(self.max_new_tokens))
        hits = [answers.same(*pair, self.exact_match) for pair in zip(said, right, strict=True)]
        return {EXACT_MATCH: sum(hits) / len(hits)}

    def _prompts(self, asked: Sequence[dict], rows: Rows, tools: Any) -> list[list[int]]:
        where = [f"{rows.source} line {line}" for line in rows.dataset["line"][: len(asked)]]
        prompts = supervision.prompt_ids(asked, tools.tokenizer, None, where)
        for at, prompt in zip(where, prompts, strict=True):
            if len(prompt) >= tools.positions:
                raise UserError(
                    f"{at}: the prompt has {len(prompt)} tokens, the model {tools.positions} "
                    "positions for prompt and answer."
                )
        return prompts

    def _answers(
        self, prompts: Sequence[Sequence[int]], tools: Any, sampling: Sampling
    ) -> Iterator[str]:
        """Up to the token that ends each, or the model's last position; those of new_tokens too."""
        stop = supervision.stop_ids(tools.tokenizer)
        for prompt, ids in zip(prompts, tools.generate(prompts, stop, sampling), strict=True):
            fits = ids[: tools.positions - len(prompt)]
            yield tools.tokenizer.decode(fits)
