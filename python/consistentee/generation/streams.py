"""Every exit of every answer token, given sampled exits of the tokens before it, in one pass.

Two streams run through the layers (arXiv 2312.11882's objective needs both):

- A, the context, is what a token shows to later ones: ``h^A_k,t = h^B_k,t`` until t leaves, and
  from then on its state where it left. Its keys and values ``K^A, V^A`` are those that decoding
  with these exits would have.
- B, the query, runs all layers. A token's query sees ``K^A, V^A`` of the tokens before it, and its
  own ``K^B, V^B``.

So stream B has, for each token, the state of every exit given the past that was sampled: the
expectation over its own exit is a sum, only the past is a sample. Where no token leaves, it is the
ordinary pass.

Letters: B rows, S tokens of a row, N of them in all that decide, E exits, L layers, H hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.generation.rules import Arrival, ExitRule
from consistentee_ext.generation.trunk import causal_mask


class Streams(NamedTuple):
    """What a pass says of N tokens, row by row.

    Attributes:
        states: ``[N, E + 1, H]``, of each exit and, in the last place, of the last layer: what
            policies and LM head read.
        policy_logits: ``[N, E]``.
        exit_layers: ``[N]`` int64, in 1..L, where each token left in stream A.
        first_states: ``[B, H]``, of the last token of each prompt behind the last layer: what
            predicts the first token of the answer.
    """

    states: Tensor
    policy_logits: Tensor
    exit_layers: Tensor
    first_states: Tensor


class SampledRule:
    """Leave with the policy's probability: a sample of exits, drawn from torch's generator."""

    def __call__(self, arrival: Arrival) -> Tensor:
        """The tokens that leave."""
        return torch.bernoulli(arrival.policy_logits.detach().sigmoid()).bool()

    def reads_logits(self, layer: int) -> bool:
        """No."""
        return False


def deciding_tokens(prompt_lengths: Tensor, lengths: Tensor, width: int) -> Tensor:
    """The tokens that may leave: those of an answer that have one behind them, ``[B, S]`` bool.

    The last token of the prompt predicts the first of the answer and runs at full depth; the last
    token of the answer is not read.

    Args:
        prompt_lengths: ``[B]`` int64.
        lengths: ``[B]`` int64, of prompt and answer.
        width: S.
    """
    places = torch.arange(width, device=lengths.device)
    return (places >= prompt_lengths[:, None]) & (places < lengths[:, None] - 1)


def two_streams(
    model: ConsistentEEForCausalLM,
    input_ids: Tensor,
    prompt_lengths: Tensor,
    lengths: Tensor,
    rule: ExitRule,
) -> Streams:
    """Run both streams.

    Args:
        model: gradients reach all of its weights.
        input_ids: ``[B, S]`` int64, prompt and answer, any ids behind them.
        prompt_lengths: ``[B]`` int64.
        lengths: ``[B]`` int64, of prompt and answer.
        rule: where tokens leave in stream A.
    """
    trunk = model.trunk
    decides = deciding_tokens(prompt_lengths, lengths, input_ids.shape[1])
    rows, places = decides.nonzero(as_tuple=True)
    numbers = places - prompt_lengths[rows] + 1
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    own = torch.eye(input_ids.shape[1], dtype=torch.bool, device=input_ids.device)
    hidden = trunk.embed(input_ids)  # stream B
    context = hidden  # stream A
    angles = trunk.angles(positions, hidden)
    left = torch.zeros_like(decides)
    exit_layers = torch.full_like(rows, trunk.num_layers)
    states, policy_logits = [], []
    for layer in range(1, trunk.num_layers + 1):
        keys, values = trunk.keys_values(layer, hidden, angles)
        mask = causal_mask(positions, positions, trunk.window(layer))
        if left.any():
            of_context = trunk.keys_values(layer, context, angles)
            keys = torch.cat((of_context[0], keys), dim=2)
            values = torch.cat((of_context[1], values), dim=2)
            mask = torch.cat((mask & ~own, own[None]), dim=2)
        previous = hidden
        hidden = trunk.block(layer, hidden, angles, keys, values, mask[:, None])
        context = torch.where(left[..., None], context, hidden)
        if layer not in model.config.exit_layers:
            continue
        here, before = hidden[rows, places], previous[rows, places]
        arrival = Arrival(model, layer, rows, numbers, here, before)
        states.append(arrival.state)
        policy_logits.append(arrival.policy_logits)
        leaves = rule(arrival) & ~left[rows, places]
        exit_layers[leaves] = layer
        # Not in place: autograd keeps the mask of the layers before.
        left = left.index_put((rows[leaves], places[leaves]), left.new_ones(()))
    last = model.readout(trunk.num_layers, hidden[rows, places])
    in_front = torch.arange(len(lengths), device=lengths.device), prompt_lengths - 1
    first_states = model.readout(trunk.num_layers, hidden[in_front])
    return Streams(
        torch.stack([*states, last], dim=1),
        torch.stack(policy_logits, dim=1),
        exit_layers,
        first_states,
    )
