"""Small tokenizers of the three kinds that mark blanks differently."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def merges(*words: str) -> list[tuple[str, str]]:
    """Those that make each word one token, letter by letter."""
    return list(dict.fromkeys((word[:i], word[i]) for word in words for i in range(1, len(word))))


def wrap(tokenizer: Tokenizer, special: Sequence[str], **options: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens=list(special),
        clean_up_tokenization_spaces=False,
        **options,
    )


def byte_level(
    *special: str,
    words: Sequence[str] = (),
    add_bos: bool = False,
    trim_offsets: bool = False,
    use_regex: bool = True,
    **options: Any,
) -> PreTrainedTokenizerFast:
    """As GPT-2's: a token a byte, and the words, in which Ġ is a space and Ċ a newline."""
    options = {"eos_token": "<eos>"} | options
    pairs = merges(*words)
    vocab = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet())])
    vocab |= dict.fromkeys(a + b for a, b in pairs)
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    if trim_offsets:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if add_bos:
        tokenizer.add_special_tokens([options["bos_token"]])
        bos = options["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return wrap(tokenizer, special, **options)


def metaspace(*words: str, scheme: str | None = "first") -> PreTrainedTokenizerFast:
    """As Llama 2's: ▁ for a blank, one before the text, a token a byte for what is unknown, BOS."""
    special = ["<unk>", "<s>", "</s>"]
    pairs = merges(*words)
    letters = sorted({letter for word in words for letter in word} | {"▁"})
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256)), *letters, *(a + b for a, b in pairs)]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if scheme is None:  # as older files of Llama 2's have it
        marks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(marks)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return wrap(tokenizer, (), unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def word_piece(*words: str) -> PreTrainedTokenizerFast:
    """As BERT's: lower case, blanks lost, [CLS] and [SEP] around a text; its EOS is [SEP]."""
    special = ["[UNK]", "[CLS]", "[SEP]"]
    vocab = {token: i for i, token in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return wrap(tokenizer, (), unk_token="[UNK]", cls_token="[CLS]", eos_token="[SEP]")
