"""What becomes of a `config.json` field that is not understood, not harmless or not of its type."""

import pytest

from jaxft.errors import UserError
from jaxft.models import Blueprint

CONFIG = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"is_decoder": True}, ["is_decoder = True (understood is False)"]),
        ({"rope_theta": 1e4, "sliding": 7}, ["rope_theta = 10000.0", "sliding = 7"]),
        (
            {"position_embedding_type": "relative_key"},
            ["position_embedding_type = 'relative_key' (understood is 'absolute')"],
        ),
        ({"pruned_heads": {"0": [1]}}, ["pruned_heads = {'0': [1]}"]),
        ({"hidden_size": "32"}, ["hidden_size = '32': must be a whole number"]),
        ({"layer_norm_eps": None}, ["layer_norm_eps = None: must be a number"]),
        ({"hidden_dropout_prob": True}, ["hidden_dropout_prob = True: must be a number"]),
        ({"classifier_dropout": "no"}, ["classifier_dropout = 'no': must be a number or null"]),
        ({"num_attention_heads": 5}, ["hidden size 32 does not split into 5 heads"]),
        ({"hidden_act": "gelu_fast"}, ["'gelu_fast' is not one of gelu, gelu_new"]),
        ({"model_type": "albert"}, ["'albert' is not supported", "bert, distilbert, gpt2"]),
    ],
    ids=str,
)
def test_field_is_refused_by_name_and_value(fields, said):
    with pytest.raises(UserError) as error:
        Blueprint.draw(CONFIG | fields)
    for words in said:
        assert words in str(error.value)


def test_sinusoidal_positions_of_distilbert_are_refused():
    """Drawn from scratch, the table would be another one."""
    with pytest.raises(UserError, match="sinusoidal_pos_embds = True"):
        Blueprint.draw({"model_type": "distilbert", "sinusoidal_pos_embds": True})


def test_a_whole_number_does_where_a_number_is_asked():
    assert Blueprint.draw(CONFIG | {"hidden_dropout_prob": 0}).dims.hidden_dropout_prob == 0


def test_an_unknown_output_is_refused():
    with pytest.raises(UserError, match="bert has no output 'tokens'"):
        Blueprint.draw(CONFIG, output="tokens")
