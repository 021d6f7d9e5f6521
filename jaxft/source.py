"""Where a run's architecture, tokenizer and weights come from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from jaxft import hub, models, pretrained
from jaxft.config import Model
from jaxft.data.templates import TEMPLATES
from jaxft.errors import UserError
from jaxft.stderr import Say
from jaxft.vocabulary import NewRows, add_tokens


@dataclass(frozen=True)
class Source:
    """What a run starts from."""

    config: dict[str, Any]
    tokenizer: Any
    checkpoint: pretrained.Checkpoint | None
    """None: the weights are drawn at random."""
    new_rows: NewRows | None = None
    """Of tokens that the checkpoint does not know."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The label names the config states; none where they are only numbered."""
        names = self.config.get("id2label") or {}
        ordered = tuple(str(names[key]) for key in sorted(names, key=int))
        return () if all(name == f"LABEL_{i}" for i, name in enumerate(ordered)) else ordered

    def with_tokens(self, tokens: Mapping[str, str | None], rows: int, say: Say) -> "Source":
        """With the `tokens` in the tokenizer, and rows for them beside the `rows` there are."""
        if not tokens:
            return self
        new_rows = add_tokens(self.tokenizer, tokens, rows)
        grown = max(rows, *(row + 1 for row in new_rows.sources))
        spare = sum(row < rows for row in new_rows.sources)
        say(
            f"Vocabulary: {len(tokens)} tokens added, {spare} of them in spare rows; the embedding "
            f"had {rows} and has {grown}"
        )
        return replace(self, config={**self.config, "vocab_size": grown}, new_rows=new_rows)


def open_source(model: Model, say: Say) -> Source:
    """Config, tokenizer and weights of `model.pretrained`, or the architecture of `model.config`.

    Raises:
        UserError: something is not there, cannot be read or is not understood.
    """
    if model.pretrained is not None:
        folder, found = hub.locate(model.pretrained)
        say(f"Model: {found}")
        checkpoint = pretrained.Checkpoint(folder)
        config, named = checkpoint.config, model.tokenizer
    else:
        checkpoint, named = None, model.tokenizer
        if isinstance(model.config, str):
            folder, found = hub.locate(model.config, "model.config")
            config = pretrained.Checkpoint(folder).config
            say(f"Model: the architecture of {found}, from scratch")
        else:
            config, folder = dict(model.config or {}), None
            if "model_type" not in config:
                raise UserError("model.config has no model_type, such as 'bert'.")
            say(
                f"Model: a {config['model_type']} from scratch, its weights drawn at random: a "
                "smoke run, to see that everything works. A real one takes "
                "--config.model.pretrained=FOLDER_OR_HUB_ID and, for rows of your own, "
                "--config.data.train=FILE"
            )
    # Before transformers, which looks into config.json for the tokenizer and says less of it.
    models.Blueprint.draw(config)
    if named is not None:
        folder, found = hub.locate(named, "model.tokenizer")
        say(f"Tokenizer: {found}")
    if folder is None:
        say("Tokenizer: bytes (model.tokenizer names another one)")
        tokenizer = byte_tokenizer()
        own = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        return Source({**own, **config}, tokenizer, checkpoint)
    return Source(config, load_tokenizer(folder), checkpoint)


def origin(name: str | None) -> dict[str, Any]:
    """What an export tells of `model.pretrained`: its id on the hub, None for a folder, and its
    generation_config.json.
    """
    if name is None:
        return {}
    checkpoint = pretrained.Checkpoint(hub.locate(name)[0])
    return {
        "base_model": None if FilePath(name).expanduser().is_dir() else name,
        "generation_config": checkpoint.generation_config,
    }


def byte_tokenizer() -> Any:
    """A tokenizer without training: a token per byte, and the tokens of a chat."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token=special[0],
        eos_token=special[1],
        extra_special_tokens={"start": special[2], "end": special[3]},
        chat_template=TEMPLATES["chatml"],
    )


def load_tokenizer(folder: FilePath) -> Any:
    """The fast tokenizer of a folder. Raises UserError when it has none."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except StrictDataclassError as error:
        raise UserError(
            f"{folder}: transformers, which reads config.json to know the tokenizer, refuses it: "
            f"{error}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{folder} has no tokenizer that can be read: {first}") from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        # transformers makes an empty tokenizer of a folder without the files of one.
        raise UserError(
            f"{folder} has no tokenizer: its vocabulary is empty. Is tokenizer.json missing?"
        )
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: no tokenizer.json, and the slow tokenizers are not supported.")
    return tokenizer
