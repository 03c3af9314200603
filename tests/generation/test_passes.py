"""What phases run, and phase 2's loss, against loops over tokens and the library's own pass."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from support.decoders import PatternRule, random_exits, random_rows, tiny_causal_lm

from consistentee.generation import passes
from consistentee.generation.answers import FULL_DEPTH
from consistentee.generation.data import answered_rows, collate
from consistentee.generation.losses import PolicyObjective
from consistentee.generation.measure import (
    cost_ratio,
    dev_report,
    memorized_layers,
    right_exits,
    teacher_forced,
    with_hardness,
)
from consistentee.generation.passes import (
    JointPass,
    PolicyOutput,
    PolicyPass,
    ReadoutPass,
    TrainedPart,
    target_tokens,
)
from consistentee.generation.streams import two_streams
from consistentee.training.estimators import exact
from consistentee_ext.generation.reference import ReferenceDecoder, generate
from consistentee_ext.generation.rules import PolicyRule

PROMPTS = random_rows([4, 1, 6], seed=3)
ANSWERS = random_rows([5, 3, 7], seed=4)
ROWS = answered_rows("train", PROMPTS, ANSWERS)
BATCH = collate(list(ROWS))


def own_answers(model, new=8):
    """Greedy, so that exits are right at some tokens."""
    answers = generate(model, PROMPTS, new, PolicyRule(1.0)).tokens
    return answers, answered_rows("train", PROMPTS, answers)


def states_by_hand(model, prompt, answer):
    """Of each exit and the last layer, at the deciding tokens: ``[T, E + 1, V]`` logits."""
    with torch.no_grad():
        out = model.backbone(torch.tensor([prompt + answer]), output_hidden_states=True)
        places = slice(len(prompt), len(prompt) + len(answer) - 1)
        early = [
            model.logits(model.readout(layer, out.hidden_states[layer][0, places]))
            for layer in model.config.exit_layers
        ]
        return torch.stack([*early, out.logits[0, places]], dim=1), out.logits[0, len(prompt) - 1]


def test_targets_follow_the_tokens_that_decide():
    expected = [token for answer in ANSWERS for token in answer[1:]]
    assert target_tokens(**BATCH).tolist() == expected


@pytest.mark.parametrize("divergence", [True, False])
@pytest.mark.parametrize("readout", ["translator", "trunk"])
def test_the_loss_of_readouts(monkeypatch, divergence, readout):
    model = tiny_causal_lm(readout=readout)
    monkeypatch.setattr(passes.torch, "randperm", lambda n: torch.tensor([2, 0, 1]))
    found = ReadoutPass(model, divergence)(**BATCH)
    total, last_loss, count = 0.0, 0.0, 0
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        logits, first = states_by_hand(model, prompt, answer)
        p = logits.double().softmax(-1)
        last_loss -= math.log(first.double().softmax(-1)[answer[0]])
        for t, target in enumerate(answer[1:]):
            last_loss -= math.log(p[t, 3, target])
            for exit_number in (2, 0):
                q = p[t, exit_number]
                loss = (p[t, 3] * (p[t, 3] / q).log()).sum() if divergence else -q[target].log()
                total += loss.item() / 2
            count += 1
    expected = total / count
    if readout == "trunk":
        expected += last_loss / (count + 3)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_what_each_phase_may_change():
    """A frozen trunk is in no checkpoint; a tied head is there once, as the embedding."""
    frozen = {name for name, _ in TrainedPart(tiny_causal_lm()).named_parameters()}
    assert all(name.startswith("exits.") for name in frozen)
    for case, head in (("llama", True), ("gemma", False)):
        part = TrainedPart(tiny_causal_lm(case, readout="trunk"))
        names = set(part.state_dict())
        assert ("backbone.1.weight" in names) == head
        assert "backbone.0.embed_tokens.weight" in names
        pointers = [tensor.data_ptr() for tensor in part.state_dict().values()]
        assert len(set(pointers)) == len(pointers)


def test_every_exits_loss_under_sampled_exits(monkeypatch):
    """Against the reference generator with the same past, as in test_streams, for the loss."""
    model = tiny_causal_lm().double()
    exits = random_exits(3, 8)
    monkeypatch.setattr(passes, "SampledRule", lambda: PatternRule(exits))
    found = PolicyPass(model)(**BATCH)
    assert not found.losses.requires_grad
    assert found.policy_logits.requires_grad
    token = 0
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        decoder = ReferenceDecoder(model, [prompt], 20)
        for number in range(1, len(answer)):
            step = decoder.step(
                torch.tensor([0]), torch.tensor([answer[number - 1]]), PatternRule(exits[row:][:1])
            )
            loss = -step.logits[0].log_softmax(-1)[answer[number]].item()
            own = int(step.exit_layers) - 1
            assert found.losses[token, own].item() == pytest.approx(loss, rel=1e-5)
            token += 1
    assert token == len(found.losses)


def test_the_joint_loss(monkeypatch):
    model = tiny_causal_lm()
    exits = random_exits(3, 8)
    monkeypatch.setattr(passes, "SampledRule", lambda: PatternRule(exits))
    losses = PolicyPass(model)(**BATCH).losses
    own = torch.cat([exits[row, : len(answer) - 1] for row, answer in enumerate(ANSWERS)]) - 1
    assert len(own.unique()) == 4
    for drawn in (0, 3):
        monkeypatch.setattr(passes.torch, "randint", lambda n, size, d=drawn: torch.tensor(d))
        expected = (losses[torch.arange(len(own)), own].mean() + losses[:, drawn].mean()) / 2
        assert JointPass(model)(**BATCH).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("policy_loss", ["error", "cross-entropy"])
def test_the_objective_of_policies_by_hand(policy_loss):
    """Two tokens, exits behind layers 2 and 5 of 10."""
    losses = torch.tensor([[0.5, 0.2, 0.1], [3.0, 1.0, 0.3]])
    policy_logits = torch.tensor([[0.4, -0.2], [-1.0, 2.0]])
    decides = torch.tensor([[False, True], [True, False]])
    hardness = torch.tensor([[9, 2], [10, 0]])
    objective = PolicyObjective([2, 5], 10, 0.05, exact, policy_loss, 0.1)
    found = objective(PolicyOutput(losses, policy_logits, decides), {"hardness": hardness})
    expected = 0.0
    for token, memorized in enumerate((2, 10)):
        a, b = (1 / (1 + math.exp(-x)) for x in policy_logits[token].tolist())
        chances = [a, (1 - a) * b, (1 - a) * (1 - b)]
        for chance, loss, layer in zip(chances, losses[token].tolist(), (2, 5, 10), strict=True):
            lost = 1 - math.exp(-loss) if policy_loss == "error" else loss
            reward = -lost - (1 - memorized / 10) * 0.05 * layer
            expected -= chance * reward / 2
            expected += 0.1 * chance * math.log(chance) / 2
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_memorized_layers_of_tokens():
    model = tiny_causal_lm(exit_layers=[1, 3])
    answers, rows = own_answers(model)
    right = right_exits(model, rows)
    token = 0
    expected = []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        logits, _ = states_by_hand(model, prompt, answer)
        for t, target in enumerate(answer[1:]):
            of_exits = (logits[t].argmax(-1) == target).tolist()
            assert right[token].tolist() == of_exits
            layer = 4
            for candidate, is_right in zip((4, 3, 1), reversed(of_exits), strict=True):
                if not is_right:
                    break
                layer = candidate
            expected.append(layer)
            token += 1
    assert memorized_layers(model, right).tolist() == expected
    assert set(expected) == {1, 3, 4}
    table = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]])
    assert memorized_layers(model, table).tolist() == [1, 3, 4, 4, 4, 4]


def test_layers_under_autocast_and_the_head_in_float32():
    """bfloat16 logits would tie."""
    model = tiny_causal_lm("llama, biases and tied", readout="trunk")
    _, rows = own_answers(model)
    batch = collate(list(rows))
    with torch.no_grad():
        exact = two_streams(model, **batch, rule=FULL_DEPTH).states
        with torch.autocast("cpu", torch.bfloat16):
            states = two_streams(model, **batch, rule=FULL_DEPTH).states.float()
        assert not torch.allclose(states, exact, rtol=1e-4, atol=1e-4)
        logits = states @ model.backbone.lm_head.weight.T
    expected = logits.argmax(-1) == target_tokens(**batch)[:, None]
    assert torch.equal(right_exits(model, rows, bf16=True), expected)
    forced = teacher_forced(model, rows, PolicyRule(1.0), bf16=True)
    assert torch.equal(forced.right, expected[:, -1])


def test_hardness_stands_where_tokens_decide(monkeypatch):
    from consistentee.generation import measure

    layers = torch.arange(1, 13)
    monkeypatch.setattr(measure, "memorized_layers", lambda model, right: layers)
    rows = with_hardness(tiny_causal_lm(), ROWS)
    assert rows["hardness"] == [
        [0, 0, 0, 0, 1, 2, 3, 4, 0],
        [0, 5, 6, 0],
        [0, 0, 0, 0, 0, 0, 7, 8, 9, 10, 11, 12, 0],
    ]


def test_answers_read_as_they_stand_are_the_reference_generators():
    """The pass decides on the way; the generator token by token."""
    model = tiny_causal_lm().double()
    rule = PolicyRule(0.6)
    answers, rows = own_answers(model, 12)
    forced = teacher_forced(model, rows, rule)
    right, layers = [], []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        decoder = ReferenceDecoder(model, [prompt], 20)
        for read, expected in itertools.pairwise(answer):
            step = decoder.step(torch.tensor([0]), torch.tensor([read]), rule)
            right.append(bool(step.logits.argmax() == expected))
            layers.append(int(step.exit_layers))
    assert forced.right.tolist() == right
    assert forced.exit_layers.tolist() == layers
    assert len(set(layers)) >= 3
    assert 0.1 < sum(right) / len(right) < 0.9
    assert forced.tokens == [11, 11, 11]


def test_the_report_of_a_phase():
    model = tiny_causal_lm(threshold=0.6)
    _, rows = own_answers(model)
    report = dev_report(model, rows)
    right, forced = right_exits(model, rows), teacher_forced(model, rows, PolicyRule(0.6))
    assert report["exit_layers"] == [1, 2, 3, 4]
    assert report["agreement"] == right.double().mean(0).tolist()
    assert report["mean_exit_layer"] == pytest.approx(forced.exit_layers.double().mean().item())
    assert report["agreement_at_exits"] == pytest.approx(forced.right.double().mean().item())
    head = 61 * 32 / (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32)
    assert cost_ratio(model, 2.5) == pytest.approx((4 + head) / (2.5 + head))
    assert cost_ratio(model, 2.5, 2.0) == pytest.approx((4 + head) / (2.5 + 2 * head))
    assert report["cost_ratio"] == pytest.approx(cost_ratio(model, report["mean_exit_layer"]))


def test_rows_are_read_in_their_order_in_any_number_of_batches(monkeypatch):
    from consistentee.generation import measure

    model = tiny_causal_lm().double()
    _, rows = own_answers(model)
    whole = right_exits(model, rows)
    monkeypatch.setattr(measure, "BATCH_SIZE", 2)
    assert torch.equal(right_exits(model, rows), whole)
