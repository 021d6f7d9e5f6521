"""What the causal language modelling of `vs_hf_trainer.py` starts from: a Llama of random weights
with Llama 2's tokenizer, and rows of Alpaca as prompts and completions.

Writes `model/`, `train.jsonl` and `validation.jsonl` to a folder, in a process of its own. Beside
the training rows, `packed.json` says which of them share a row, as jaxft packs them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from jaxft.data.chat import render
from jaxft.data.packing import pack_all

SIZES = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 10,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
"""30 M weights, 12 M of them the word vectors."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    for name in ("rows", "held_out", "max_length"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(given.shared / "tokenizers" / "llama2")
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **ids, **SIZES))
    model.save_pretrained(given.output / "model")
    tokenizer.save_pretrained(given.output / "model")

    rows, lengths = [], []
    alpaca = json.loads((given.shared / "alpaca" / "alpaca_5000.json").read_text())
    for place in np.random.default_rng(0).permutation(len(alpaca)):
        example = alpaca[place]
        whole = render(example, tokenizer, where="")
        ((start, _),) = whole.spans or ((0, 0),)
        length = len(tokenizer(whole.text)["input_ids"])
        if start and length <= given.max_length and len(rows) < given.rows + given.held_out:
            rows.append({"prompt": whole.text[:start], "completion": example["output"]})
            lengths.append(length)
    for name, part in ("train", rows[: given.rows]), ("validation", rows[given.rows :]):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (given.output / f"{name}.jsonl").write_text(text)
    packed_RM = pack_all(np.array(lengths[: given.rows]), given.max_length, seed=0)
    members = [[int(i) for i in row if i >= 0] for row in packed_RM]
    (given.output / "packed.json").write_text(json.dumps(members))


if __name__ == "__main__":
    main()
