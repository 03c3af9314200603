"""The two-stream pass: against the ordinary pass, the reference generator, and arithmetic by hand;
its gradient against enumeration and against REINFORCE.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from support.decoders import CASES, PatternRule, random_exits, random_rows, tiny_causal_lm
from torch.nn.functional import gelu
from transformers import LlamaConfig

from consistentee.generation.streams import SampledRule, deciding_tokens, two_streams
from consistentee.training.estimators import exact
from consistentee.training.objective import exit_log_distribution
from consistentee_ext.generation.configuration import ConsistentEECausalLMConfig
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.generation.reference import ReferenceDecoder
from consistentee_ext.generation.rules import PolicyRule

PROMPT_LENGTHS = torch.tensor([4, 1, 7])
ROWS = random_rows([12, 5, 16], seed=8)
LENGTHS = torch.tensor([len(row) for row in ROWS])
IDS = torch.tensor([row + [7] * (16 - len(row)) for row in ROWS])


def test_which_tokens_decide():
    """Of three prompt and three answer tokens the first two of the answer."""
    found = deciding_tokens(torch.tensor([3, 1]), torch.tensor([6, 2]), 7)
    assert found.long().tolist() == [[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_where_no_token_leaves_it_is_the_ordinary_pass(case):
    model = tiny_causal_lm(case)
    found = two_streams(model, IDS, PROMPT_LENGTHS, LENGTHS, PolicyRule(1.0))
    decides = deciding_tokens(PROMPT_LENGTHS, LENGTHS, 16)
    assert len(found.states) == 7 + 3 + 8
    assert found.exit_layers.unique().tolist() == [4]
    expected = model.backbone(IDS, output_hidden_states=True)
    torch.testing.assert_close(model.logits(found.states[:, -1]), expected.logits[decides])
    for place, layer in enumerate((1, 2, 3)):
        state = model.readout(layer, expected.hidden_states[layer][decides])
        torch.testing.assert_close(found.states[:, place], state)
        torch.testing.assert_close(found.policy_logits[:, place], model.decide(layer, state))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_each_exits_logits_are_the_reference_generators(case):
    """Of each token those of all its exits, by as many decodings with the same past."""
    model = tiny_causal_lm(case).double()
    exits = random_exits(3, 9)
    found = two_streams(model, IDS, PROMPT_LENGTHS, LENGTHS, PatternRule(exits))
    logits = model.logits(found.states)
    token = 0
    for row, ids in enumerate(ROWS):
        first = int(PROMPT_LENGTHS[row])
        for number in range(1, len(ids) - first):
            assert found.exit_layers[token] == exits[row, number - 1]
            for own in (1, 2, 3, 4):
                pattern = exits[row : row + 1].clone()
                pattern[0, number - 1] = own
                decoder = ReferenceDecoder(model, [ids[:first]], 20)
                for read in ids[first : first + number]:
                    step = decoder.step(
                        torch.tensor([0]), torch.tensor([read]), PatternRule(pattern)
                    )
                assert step.exit_layers.tolist() == [own]
                torch.testing.assert_close(
                    logits[token, own - 1], step.logits[0], atol=1e-10, rtol=1e-10
                )
            token += 1
    assert token == len(logits)


def test_two_tokens_and_two_layers_by_hand():
    """One head of size 2, no rotation to speak of: every number from the weights alone.

    Row: one prompt token a, answer tokens b, c and an unread last one. b leaves behind layer 1; c
    sees b's state from there at layer 2.
    """
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=2,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=1,
        max_position_embeddings=8,
        rope_parameters={"rope_type": "linear", "factor": 1e12, "rope_theta": 1.0},
        rms_norm_eps=0.0,
        tie_word_embeddings=True,
        hidden_act="gelu",
    )
    fields = {"exit_layers": [1], "readout": "trunk", "policy": "linear"}
    model = ConsistentEEForCausalLM(ConsistentEECausalLMConfig(config, **fields)).double()
    embeddings = [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6], [3.0, 4.0]]
    with torch.no_grad():
        model.backbone.model.embed_tokens.weight.copy_(torch.tensor(embeddings))
        for number, layer in enumerate(model.backbone.model.layers):
            # Queries and keys are the normed state, values are twice it, or three times.
            for name, scale in (("q", 1.0), ("k", 1.0), ("v", 2.0 + number), ("o", 1.0)):
                projection = getattr(layer.self_attn, f"{name}_proj")
                projection.weight.copy_(scale * torch.eye(2))
            layer.mlp.gate_proj.weight.copy_(torch.tensor([[1.0, 0.0]]))
            layer.mlp.up_proj.weight.copy_(torch.tensor([[0.0, 1.0]]))
            layer.mlp.down_proj.weight.copy_(torch.tensor([[0.5], [0.25]]))

    def normed(x):
        size = math.sqrt((x[0] ** 2 + x[1] ** 2) / 2)
        return [x[0] / size, x[1] / size]

    def run(state, seen, value):
        """A layer on one token; what it sees, itself included, is in states before the layer."""
        query = normed(state)
        keys = [normed(s) for s in seen]
        weights = [math.exp((query[0] * k[0] + query[1] * k[1]) / math.sqrt(2)) for k in keys]
        mixed = [
            value * sum(w * k[i] for w, k in zip(weights, keys, strict=True)) / sum(weights)
            for i in (0, 1)
        ]
        state = [state[0] + mixed[0], state[1] + mixed[1]]
        inner = normed(state)
        gate = gelu(torch.tensor(inner[0], dtype=torch.float64)).item() * inner[1]
        return [state[0] + 0.5 * gate, state[1] + 0.25 * gate]

    a, b, c = embeddings[0], embeddings[1], embeddings[3]
    a1, b1, c1 = run(a, [a], 2.0), run(b, [a, b], 2.0), run(c, [a, b, c], 2.0)
    a2 = run(a1, [a1], 3.0)
    assert a2 != a1
    b2 = run(b1, [a1, b1], 3.0)  # stream B, though b has left
    c2 = run(c1, [a1, b1, c1], 3.0)
    ids, one, length = torch.tensor([[0, 1, 3, 4]]), torch.tensor([1]), torch.tensor([4])
    found = two_streams(model, ids, one, length, PatternRule(torch.tensor([[1, 2]])))
    expected = torch.tensor([[normed(b1), normed(b2)], [normed(c1), normed(c2)]])
    torch.testing.assert_close(found.states.float(), expected, atol=1e-5, rtol=1e-5)
    assert found.exit_layers.tolist() == [1, 2]


def test_what_a_token_sees_of_one_that_left():
    """A layer's keys and values come from the state where it left: with three layers it shows."""
    model = tiny_causal_lm().double()
    ids, first, length = IDS[:1], PROMPT_LENGTHS[:1], LENGTHS[:1]
    exits = torch.full((1, 8), 4)
    full = two_streams(model, ids, first, length, PatternRule(exits)).states
    exits[0, 2] = 1
    one_left = two_streams(model, ids, first, length, PatternRule(exits)).states
    same = (full - one_left).abs().amax(dim=2) < 1e-12
    # The token itself and those before it are as they were; those behind it differ from the
    # second layer on that they run with it, layer 3: at layer 2 both read the state behind layer 1.
    assert same[:3].all()
    assert same[3:, :2].all()
    assert not same[3:, 2:].any()


def test_gradients_reach_the_trunk_through_both_streams():
    """Against finite differences, in a direction at random for each weight."""
    model = tiny_causal_lm().double()
    rule = PatternRule(random_exits(3, 9))
    weights = torch.randn(18, 4, 32, generator=torch.Generator().manual_seed(1)).double()

    def value():
        found = two_streams(model, IDS, PROMPT_LENGTHS, LENGTHS, rule)
        return (found.states * weights).sum() + found.first_states.square().sum()

    value().backward()
    for name, parameter in model.named_parameters():
        if ".policy." in name or "lm_head" in name:
            continue
        generator = torch.Generator().manual_seed(len(name))
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter.add_(1e-6 * direction)
            above = value()
            parameter.sub_(2e-6 * direction)
            below = value()
            parameter.add_(1e-6 * direction)
        expected = (above - below).item() / 2e-6
        assert (parameter.grad * direction).sum().item() == pytest.approx(expected, rel=1e-3), name


def policy_gradient(model, loss):
    parameters = [p for n, p in model.named_parameters() if ".policy." in n]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def test_the_gradient_is_reinforces_mean_by_enumeration():
    """Two tokens that decide, four exits each: sixteen patterns with their probabilities.

    REINFORCE's gradient is that of ``-log P(e_t) R_t(e_t)``, summed over tokens, whose rewards
    depend on the past through stream B; a token's own term has the past fixed.
    """
    model = tiny_causal_lm().double()
    ids, first, length = IDS[:1, :5], torch.tensor([2]), torch.tensor([5])
    target = torch.tensor([4, 5])

    def outputs(pattern):
        found = two_streams(model, ids, first, length, PatternRule(torch.tensor([pattern])))
        logits = model.logits(found.states)
        right = logits.log_softmax(-1).gather(2, target[:, None, None].expand(-1, 4, 1))
        reward = right.squeeze(-1).detach() - 0.3 * torch.arange(1, 5)
        return exit_log_distribution(found.policy_logits), reward

    reinforce = torch.zeros(())
    ours = torch.zeros(())
    total = 0.0
    for pattern in itertools.product((1, 2, 3, 4), repeat=2):
        log_p, reward = outputs(list(pattern))
        chosen = log_p[torch.arange(2), torch.tensor(pattern) - 1]
        chance = chosen.sum().detach().exp()
        total += chance.item()
        own = reward[torch.arange(2), torch.tensor(pattern) - 1]
        reinforce = reinforce - chance * policy_gradient(model, (chosen * own).sum())
        log_p, reward = outputs(list(pattern))
        ours = ours + chance * policy_gradient(model, exact(log_p, reward).policy_loss.sum())
    assert total == pytest.approx(1.0, abs=1e-12)
    assert reinforce.abs().max() > 1e-3
    torch.testing.assert_close(ours, reinforce, atol=1e-12, rtol=1e-9)


def test_sampled_exits_follow_the_policies():
    """Shares of patterns over many draws, against their probabilities by enumeration."""
    model = tiny_causal_lm()
    draws = 4000
    ids = IDS[:1, :4].expand(draws, -1)
    first, length = torch.full((draws,), 1), torch.full((draws,), 4)
    torch.manual_seed(0)
    with torch.no_grad():
        found = two_streams(model, ids, first, length, SampledRule())
        sampled = found.exit_layers.view(draws, 2)
        for pattern in itertools.product((1, 2, 3, 4), repeat=2):
            fixed = two_streams(
                model, ids[:1], first[:1], length[:1], PatternRule(torch.tensor([pattern]))
            )
            log_p = exit_log_distribution(fixed.policy_logits)
            chance = log_p[torch.arange(2), torch.tensor(pattern) - 1].sum().exp().item()
            share = (sampled == torch.tensor(pattern)).all(dim=1).float().mean().item()
            assert abs(share - chance) < 4.5 * math.sqrt(chance * (1 - chance) / draws) + 1e-6
    assert len(sampled.unique(dim=0)) >= 8
