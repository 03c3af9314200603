"""The decoder's checkpoint, its configuration, and its layers one by one."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from support.decoders import CASES, FIELDS, VOCABULARY, tiny_causal_lm, tiny_decoder
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, LlamaConfig

from consistentee_ext.generation.configuration import (
    ConsistentEECausalLMConfig,
    default_exit_layers,
)
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.generation.trunk import Trunk, causal_mask


@pytest.mark.parametrize("case", CASES)
def test_layers_one_by_one_are_the_librarys_pass(case):
    decoder = tiny_decoder(case)
    ids = torch.randint(0, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = decoder(ids, output_hidden_states=True)
        trunk = Trunk(decoder)
        positions = torch.arange(11)[None]
        hidden = trunk.embed(ids)
        angles = trunk.angles(positions, hidden)
        for layer in range(1, trunk.num_layers + 1):
            torch.testing.assert_close(hidden, expected.hidden_states[layer - 1])
            keys, values = trunk.keys_values(layer, hidden, angles)
            mask = causal_mask(positions, positions, trunk.window(layer))[:, None]
            hidden = trunk.block(layer, hidden, angles, keys, values, mask)
        torch.testing.assert_close(trunk.logits(trunk.last_norm(hidden)), expected.logits)


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_comes_back_and_holds_no_pickle(case, tmp_path):
    model = tiny_causal_lm(case, threshold=0.25, alpha=0.1)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == (
        "consistentee_causal_lm"
    )
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, ConsistentEECausalLMConfig)
    assert (config.exit_layers, config.threshold, config.alpha) == ([1, 2, 3], 0.25, 0.1)
    assert config.eos_token_ids == (2,)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, ConsistentEEForCausalLM)
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name
    ids = torch.randint(0, VOCABULARY, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)
    # The decoder alone is one rename away.
    weights = load_file(tmp_path / "model.safetensors")
    plain = {n.removeprefix("backbone."): w for n, w in weights.items() if n.startswith("backbone")}
    decoder = tiny_decoder(case, seed=5)
    missing, unknown = decoder.load_state_dict(plain, strict=False)
    assert set(missing) <= {"lm_head.weight"}  # where it is the embedding
    assert unknown == []


def test_a_translator_starts_as_the_plain_lens():
    config = ConsistentEECausalLMConfig(LlamaConfig(**FIELDS), rank=4)
    model = ConsistentEEForCausalLM(config)
    hidden = torch.randn(3, 32)
    for layer in config.exit_layers:
        assert model.exit(layer).translator.down.abs().sum() > 0
        assert torch.equal(model.readout(layer, hidden), model.trunk.last_norm(hidden))


def test_readout_and_policy_by_hand():
    model = tiny_causal_lm("llama")
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    weights = model.state_dict()
    down, up = (weights[f"exits.2.translator.{name}"] for name in ("down", "up"))
    inner = hidden + hidden @ down.T @ up.T
    mean_square = (inner**2).mean(dim=1, keepdim=True)
    eps = model.config.backbone.rms_norm_eps
    state = weights["backbone.model.norm.weight"] * inner / (mean_square + eps).sqrt()
    torch.testing.assert_close(model.readout(2, hidden), state)
    first, last = ([weights[f"exits.2.policy.{n}.{p}"] for p in ("weight", "bias")] for n in (0, 2))
    squeezed = torch.nn.functional.gelu(state @ first[0].T + first[1]) @ last[0].T + last[1]
    torch.testing.assert_close(model.decide(2, state), squeezed[:, 0])
    linear = tiny_causal_lm("llama", policy="linear", readout="trunk")
    assert linear.exit(2).translator is None
    weight, bias = linear.exit(2).policy.weight, linear.exit(2).policy.bias
    torch.testing.assert_close(linear.decide(2, state), (state @ weight.T + bias)[:, 0])
    torch.testing.assert_close(
        linear.readout(2, hidden), linear.readout(linear.config.num_layers, hidden)
    )


def test_the_heads_cost_in_layers():
    """SmolLM2-135M: 28.3 million weights over 3.54 million."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        num_hidden_layers=1,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
    )
    with torch.device("meta"):
        trunk = Trunk(AutoModelForCausalLM.from_config(config))
    assert trunk.head_layers == pytest.approx(8.0, abs=0.01)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (30, [10, 15, 20, 25]),
        (32, [10, 15, 20, 25, 30]),
        (16, [5, 10, 15]),
        (12, [5, 10]),
        (8, [2, 4, 6]),
        (5, [2, 3, 4]),
        (2, [1]),
    ],
)
def test_default_exit_layers(layers, expected):
    assert default_exit_layers(layers) == expected
    fields = FIELDS | {"num_hidden_layers": layers}
    assert ConsistentEECausalLMConfig(LlamaConfig(**fields)).exit_layers == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exit_layers": [0, 2]}, r"exit_layers: expected layers in 1..3, .*, got \[0, 2\]"),
        ({"exit_layers": [4]}, r"exit_layers: expected layers in 1..3, .*, got \[4\]"),
        ({"exit_layers": []}, r"exit_layers: expected layers in 1..3, .*, got \[\]"),
        ({"readout": "lens"}, "readout: expected one of .*, got 'lens'"),
        ({"policy": "deep"}, "policy: expected one of .*, got 'deep'"),
        ({"rank": 0}, "rank: expected at least 1, got 0"),
        ({"threshold": 0.0}, r"threshold: expected a number in \(0, 1\], got 0.0"),
        ({"alpha": -1.0}, "alpha: expected a number of at least 0, got -1.0"),
        ({"backbone": {"hidden_size": 8}}, "backbone: expected a dict with a 'model_type'.*"),
        ({"backbone": BertConfig()}, "backbone: expected a decoder of model_type .*, got 'bert'"),
        (
            {
                "backbone": LlamaConfig(
                    **FIELDS, rope_parameters={"rope_type": "dynamic", "factor": 2.0}
                )
            },
            "backbone: expected rotary positions of .*, got 'dynamic'",
        ),
    ],
)
def test_fields_outside_their_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ConsistentEECausalLMConfig(**{"backbone": LlamaConfig(**FIELDS), **fields})


def test_a_module_that_was_replaced_is_refused():
    """Its weights would be read and its forward left out."""

    class Strange(torch.nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    decoder = tiny_decoder()
    decoder.model.layers[0].self_attn.k_proj = Strange(32, 16)
    with pytest.raises(ValueError, match=r"^model.model.layers.0.self_attn.k_proj: expected"):
        Trunk(decoder)
