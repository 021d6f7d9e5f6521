"""Decoder checkpoints as the hub has them (config.json, tensors), and tiny configs of every field.

`AutoConfig` writes defaults into the nested dicts it is given: give it what `tiny_config` and
`hub_config` return, which are copies.
"""

from copy import deepcopy
from math import prod
from typing import Any

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

SILU = {"hidden_act": "silu", "initializer_range": 0.02, "use_cache": True}

LLAMA = SILU | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_attention_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
LLAMA_3 = LLAMA | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "transformers_version": "4.40.0.dev0",
    "vocab_size": 128256,
}
LLAMA_3_ROPE = {
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
MISTRAL = SILU | {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
QWEN = SILU | {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
}
QWEN2 = QWEN | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
}
QWEN3 = QWEN | {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "eos_token_id": 151645,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "transformers_version": "4.51.0",
    "vocab_size": 151936,
}
HUB_CONFIGS: dict[str, Config] = {
    "gpt2": {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    },
    # No rope_theta: it became a field later.
    "meta-llama/Llama-2-7b-hf": LLAMA
    | {
        "_name_or_path": "meta-llama/Llama-2-7b-hf",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0.dev0",
        "vocab_size": 32000,
    },
    "meta-llama/Meta-Llama-3-8B": LLAMA_3,
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA_3
    | {
        "eos_token_id": [128001, 128008, 128009],
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "rope_scaling": LLAMA_3_ROPE | {"factor": 8.0},
        "transformers_version": "4.42.3",
    },
    "meta-llama/Llama-3.2-1B": LLAMA_3
    | {
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_hidden_layers": 16,
        "rope_scaling": LLAMA_3_ROPE | {"factor": 32.0},
        "tie_word_embeddings": True,
        "transformers_version": "4.45.0.dev0",
    },
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": LLAMA
    | {
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 22,
        "num_key_value_heads": 4,
        "rope_theta": 10000.0,
        "transformers_version": "4.35.0",
        "vocab_size": 32000,
    },
    "HuggingFaceTB/SmolLM2-135M": LLAMA
    | {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rope_interleaved": False,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "transformers_version": "4.40.1",
        "vocab_size": 49152,
    },
    "mistralai/Mistral-7B-v0.1": MISTRAL
    | {
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "transformers_version": "4.34.0.dev0",
        "vocab_size": 32000,
    },
    "mistralai/Mistral-7B-Instruct-v0.3": MISTRAL
    | {
        "attention_dropout": 0.0,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "transformers_version": "4.42.0.dev0",
        "vocab_size": 32768,
    },
    "Qwen/Qwen2-0.5B": QWEN2
    | {
        "eos_token_id": 151643,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 131072,
        "max_window_layers": 24,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "transformers_version": "4.40.1",
        "vocab_size": 151936,
    },
    "Qwen/Qwen2.5-0.5B": QWEN2
    | {
        "eos_token_id": 151643,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "transformers_version": "4.40.1",
        "use_mrope": False,
        "vocab_size": 151936,
    },
    "Qwen/Qwen2.5-7B-Instruct": QWEN2
    | {
        "eos_token_id": 151645,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "transformers_version": "4.43.1",
        "vocab_size": 152064,
    },
    "Qwen/Qwen3-0.6B": QWEN3
    | {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_window_layers": 28,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-8B": QWEN3
    | {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "max_window_layers": 36,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "tie_word_embeddings": False,
    },
}
# Elements of all tensors, as the hub's page counts them.
ELEMENTS = {
    "gpt2": 137_022_720,
    "meta-llama/Llama-2-7b-hf": 6_738_417_664,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "Qwen/Qwen2-0.5B": 494_032_768,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 751_632_384,
    "Qwen/Qwen3-8B": 8_190_735_360,
}
WITH_INV_FREQ = {"meta-llama/Llama-2-7b-hf"}
TIED_WITH_HEAD = {"Qwen/Qwen3-0.6B"}
"""Its config ties the head to the word table, but its file has both (the same values twice)."""


def hub_config(name: str) -> Config:
    """A copy of the checkpoint's config.json."""
    return deepcopy(HUB_CONFIGS[name])


def tensor_names(name: str) -> set[str]:
    """The names in the checkpoint's safetensors files."""
    return set(tensor_shapes(name))


def tensor_shapes(name: str) -> Shapes:
    """The checkpoint's tensors, with the hub's names and prefix."""
    config = HUB_CONFIGS[name]
    if config["model_type"] == "gpt2":
        return gpt2_shapes(config, masks=True)
    body = llama_like_shapes(config, inv_freq=name in WITH_INV_FREQ)
    shapes = {f"model.{key}": shape for key, shape in body.items()}
    if not config["tie_word_embeddings"] or name in TIED_WITH_HEAD:
        shapes["lm_head.weight"] = (config["vocab_size"], config["hidden_size"])
    return shapes


def llama_like_shapes(config: Config, *, inv_freq: bool = False) -> Shapes:
    """The body of Llama, Mistral, Qwen2 or Qwen3, without a prefix."""
    family, width, mlp = config["model_type"], config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or width // heads
    sizes = {"q_proj": heads * head, "k_proj": kv_heads * head, "v_proj": kv_heads * head}
    attention_bias = family in ("llama", "qwen3") and config.get("attention_bias", False)
    mlp_bias = family == "llama" and config.get("mlp_bias", False)
    shapes: Shapes = {"embed_tokens.weight": (config["vocab_size"], width), "norm.weight": (width,)}
    for i in range(config["num_hidden_layers"]):
        layer = f"layers.{i}"
        for part, size in sizes.items():
            shapes |= dense(f"{layer}.self_attn.{part}", width, size)
            if attention_bias or family == "qwen2":
                shapes[f"{layer}.self_attn.{part}.bias"] = (size,)
        shapes |= dense(f"{layer}.self_attn.o_proj", heads * head, width, attention_bias)
        if family == "qwen3":
            shapes |= {f"{layer}.self_attn.{part}_norm.weight": (head,) for part in "qk"}
        if inv_freq:
            shapes[f"{layer}.self_attn.rotary_emb.inv_freq"] = (head // 2,)
        for part in ("gate_proj", "up_proj"):
            shapes |= dense(f"{layer}.mlp.{part}", width, mlp, mlp_bias)
        shapes |= dense(f"{layer}.mlp.down_proj", mlp, width, mlp_bias)
        for part in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{part}.weight"] = (width,)
    return shapes


def dense(name: str, d_in: int, d_out: int, bias: bool = False) -> Shapes:
    return {f"{name}.weight": (d_out, d_in)} | ({f"{name}.bias": (d_out,)} if bias else {})


def gpt2_shapes(config: Config, *, masks: bool = False) -> Shapes:
    """The body of GPT-2, without a prefix; its kernels are [in, out]."""
    width, positions = config["n_embd"], config["n_positions"]
    mlp = config.get("n_inner") or 4 * width
    kernels = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, mlp),
        "mlp.c_proj": (mlp, width),
    }
    shapes: Shapes = {"wte.weight": (config["vocab_size"], width), "wpe.weight": (positions, width)}
    norms = ["ln_f"]
    for i in range(config["n_layer"]):
        for part, shape in kernels.items():
            shapes |= {f"h.{i}.{part}.weight": shape, f"h.{i}.{part}.bias": shape[1:]}
        norms += [f"h.{i}.ln_1", f"h.{i}.ln_2"]
        if masks:
            shapes[f"h.{i}.attn.bias"] = (1, 1, positions, positions)
    return shapes | {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}


def count(shapes: Shapes) -> int:
    """Elements of all tensors."""
    return sum(map(prod, shapes.values()))


# pad_token_id: transformers' classifiers take no batch without one.
LLAMA_LIKE_BASE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    "initializer_range": 0.5,
    "attention_dropout": 0.2,
    "pad_token_id": 0,
}
TINY_BASES: dict[str, Config] = {
    "llama": LLAMA_LIKE_BASE,
    "mistral": LLAMA_LIKE_BASE,
    "qwen2": LLAMA_LIKE_BASE,
    # The default of head_dim is 128, whatever hidden_size is.
    "qwen3": LLAMA_LIKE_BASE | {"head_dim": 8},
    "gpt2": {
        "vocab_size": 99,
        "n_positions": 64,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "layer_norm_epsilon": 1e-3,
        "initializer_range": 0.5,
        "resid_pdrop": 0.2,
        "embd_pdrop": 0.3,
        "attn_pdrop": 0.4,
        "pad_token_id": 0,
    },
}
# theta 100, so that with heads of 8 the planes lie below, on and above YaRN's and Llama 3's ramps.
THETA = 100.0
YARN = {"factor": 2.0, "original_max_position_embeddings": 32}
LLAMA3 = YARN | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: dict[str, tuple[str, Config]] = {
    "default": ("default", {}),
    "linear": ("linear", {"factor": 2.5}),
    # Up to max_position_embeddings the same as the default.
    "dynamic": ("dynamic", {"factor": 3.0}),
    "yarn": ("yarn", YARN),
    "yarn_attention_factor": ("yarn", YARN | {"attention_factor": 0.7}),
    "yarn_betas": ("yarn", YARN | {"beta_fast": 1.0, "beta_slow": 0.25}),
    "yarn_beta_fast": ("yarn", YARN | {"beta_fast": 1.2}),
    "yarn_beta_slow": ("yarn", YARN | {"beta_slow": 0.5}),
    "yarn_untruncated": ("yarn", YARN | {"truncate": False}),
    "yarn_mscale": ("yarn", YARN | {"mscale": 0.7, "mscale_all_dim": 1.2}),
    # One of the two alone is ignored.
    "yarn_mscale_alone": ("yarn", YARN | {"mscale": 0.7}),
    "yarn_all": (
        "yarn",
        YARN | {"attention_factor": 1.3, "beta_fast": 2, "beta_slow": 0.5, "truncate": False},
    ),
    # Null is the ratio of the lengths, 64 / 16; a missing factor is an error.
    "yarn_ratio": ("yarn", {"factor": None, "original_max_position_embeddings": 16}),
    # max_position_embeddings stands in for the original length.
    "yarn_no_original": ("yarn", {"factor": 3.0}),
    "llama3": ("llama3", LLAMA3),
}


def spellings(name: str) -> dict[str, Config]:
    """A rope as versions 4.31 to 4.42, 4.43 to 4.57 and 5 of transformers write it."""
    kind, options = ROPES[name]
    return {
        f"{name}/type": {"rope_theta": THETA, "rope_scaling": {"type": kind, **options}},
        f"{name}/rope_type": {"rope_theta": THETA, "rope_scaling": {"rope_type": kind, **options}},
        f"{name}/parameters": {
            "rope_parameters": {"rope_theta": THETA, "rope_type": kind, **options}
        },
    }


LINEAR = {"rope_type": "linear", "factor": 2.5}
TINY: dict[str, dict[str, Config]] = {
    "llama": {
        "plain": {},
        "tied": {"tie_word_embeddings": True},
        "untied": {"tie_word_embeddings": False},
        "attention_bias": {"attention_bias": True},
        "mlp_bias": {"mlp_bias": True},
        "head_dim": {"head_dim": 16},
        "head_dim_null": {"head_dim": None},
        "hidden_act": {"hidden_act": "gelu_pytorch_tanh"},
        "kv_heads_null": {"num_key_value_heads": None},
        "one_kv_head": {"num_key_value_heads": 1},
        "as_many_kv_heads": {"num_key_value_heads": 4},
        # transformers 5 reads it nowhere.
        "pretraining_tp": {"pretraining_tp": 2},
        "rope_theta": {"rope_theta": THETA},
        "rope_theta_int": {"rope_theta": 100},
        "rope_scaling_null": {"rope_theta": THETA, "rope_scaling": None},
        **{label: case for name in ROPES for label, case in spellings(name).items()},
        # Beyond max_position_embeddings the angles follow the longest text of the batch.
        **{
            label.replace("dynamic", "dynamic_grown"): case | {"max_position_embeddings": 8}
            for label, case in spellings("dynamic").items()
        },
        "rope_type_beats_type": {
            "rope_theta": THETA,
            "rope_scaling": LINEAR | {"type": "default"},
        },
        "inner_theta_beats_outer": {
            "rope_theta": 1000.0,
            "rope_scaling": LINEAR | {"rope_theta": THETA},
        },
        # The old field replaces the new one; nothing of it is merged, its theta neither.
        "rope_scaling_beats_parameters": {
            "rope_scaling": LINEAR,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": THETA},
        },
        "parameters_without_theta": {"rope_theta": THETA, "rope_parameters": LINEAR},
        "every_field": {
            "attention_bias": True,
            "head_dim": 16,
            "hidden_act": "gelu",
            "mlp_bias": True,
            "rope_parameters": {"rope_theta": THETA, "rope_type": "llama3", **LLAMA3},
            "tie_word_embeddings": True,
        },
    },
    "mistral": {
        "plain": {},
        "tied": {"tie_word_embeddings": True},
        "head_dim": {"head_dim": 16},
        "hidden_act": {"hidden_act": "gelu_pytorch_tanh"},
        # All layers; a token sees itself and the 7 before it.
        "window": {"sliding_window": 8},
        "window_of_one": {"sliding_window": 1},
        "no_window": {"sliding_window": None},
        **spellings("linear"),
        "every_field": {
            "head_dim": 16,
            "hidden_act": "gelu",
            "rope_parameters": {"rope_theta": THETA, "rope_type": "yarn", **YARN},
            "sliding_window": 8,
            "tie_word_embeddings": True,
        },
    },
    "qwen2": {
        "plain": {},
        "tied": {"tie_word_embeddings": True},
        "hidden_act": {"hidden_act": "gelu_pytorch_tanh"},
        # No field of the class, but obeyed.
        "head_dim": {"head_dim": 16},
        "kv_heads_null": {"num_key_value_heads": None},
        # The first max_window_layers see everything.
        "window": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "window_everywhere": {
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 0,
        },
        "window_nowhere": {"use_sliding_window": True, "sliding_window": 8},
        "window_unused": {"sliding_window": 8, "max_window_layers": 0},
        "window_null": {
            "use_sliding_window": True,
            "sliding_window": None,
            "max_window_layers": 0,
        },
        # As version 5 writes a config without windows.
        "full_layers": {
            "sliding_window": None,
            "layer_types": ["full_attention", "full_attention"],
        },
        # layer_types wins over max_window_layers.
        "layer_types": {
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        **spellings("yarn"),
        "every_field": {
            "hidden_act": "gelu",
            "layer_types": ["sliding_attention", "full_attention"],
            "max_window_layers": 1,
            "rope_parameters": {"rope_theta": THETA, "rope_type": "yarn", **YARN},
            "sliding_window": 8,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
        },
    },
    "qwen3": {
        "plain": {},
        "tied": {"tie_word_embeddings": True},
        "hidden_act": {"hidden_act": "gelu_pytorch_tanh"},
        "kv_heads_null": {"num_key_value_heads": None},
        "head_dim": {"head_dim": 16},
        "attention_bias": {"attention_bias": True},
        "window": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "layer_types": {
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        **spellings("yarn"),
        "every_field": {
            "attention_bias": True,
            "head_dim": 16,
            "hidden_act": "gelu",
            "layer_types": ["sliding_attention", "full_attention"],
            "max_window_layers": 1,
            "rope_parameters": {"rope_theta": THETA, "rope_type": "yarn", **YARN},
            "sliding_window": 8,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
        },
    },
    "gpt2": {
        "plain": {},
        "untied": {"tie_word_embeddings": False},
        "tied": {"tie_word_embeddings": True},
        "n_inner": {"n_inner": 48},
        "n_inner_null": {"n_inner": None},
        **{
            f"activation_function/{name}": {"activation_function": name}
            for name in ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh")
        },
        "unscaled": {"scale_attn_weights": False},
        "by_inverse_layer_idx": {"scale_attn_by_inverse_layer_idx": True},
        "unscaled_by_inverse_layer_idx": {
            "scale_attn_weights": False,
            "scale_attn_by_inverse_layer_idx": True,
        },
        # In float32 it changes nothing.
        "reorder_and_upcast_attn": {"reorder_and_upcast_attn": True},
        "summary": {
            "summary_activation": "tanh",
            "summary_first_dropout": 0.3,
            "summary_proj_to_labels": False,
            "summary_type": "mean",
            "summary_use_proj": False,
        },
        "every_field": {
            "activation_function": "relu",
            "n_inner": 48,
            "reorder_and_upcast_attn": True,
            "scale_attn_by_inverse_layer_idx": True,
            "scale_attn_weights": False,
            "tie_word_embeddings": False,
        },
    },
}


def tiny_config(family: str, label: str) -> Config:
    """A whole config.json of `TINY`: base and overrides, a copy."""
    return deepcopy({"model_type": family, **TINY_BASES[family], **TINY[family][label]})
