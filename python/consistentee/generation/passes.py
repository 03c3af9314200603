"""What each phase of a decoder's training runs, from tokens to what its loss reads.

Letters: B rows, S tokens of a row, N tokens that decide, E exits, L layers, V vocabulary. Exits are
numbered from 0 to E; the last of these is the last layer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from consistentee.generation.adapters import adapters_of
from consistentee.generation.answers import FULL_DEPTH
from consistentee.generation.streams import SampledRule, deciding_tokens, two_streams
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM

RANDOM_EXITS = 2  # of a step in phase 1: each costs an LM head


class TrainedPart(nn.Module):
    """What a phase may change of a model: its exits and, where it is trained, the trunk.

    Of a trunk with adapters that is these. What stays as it was is in no checkpoint.
    """

    def __init__(self, model: ConsistentEEForCausalLM) -> None:
        super().__init__()
        self._of = (model,)  # in a tuple it is no submodule
        self.exits = model.exits
        if adapters := adapters_of(model.backbone):
            self.backbone = nn.ModuleList(adapters)
        elif model.config.readout == "trunk":
            trunk = [model.backbone.model]
            if not model.config.tie_word_embeddings:  # else it is the trunk's embedding
                trunk.append(model.backbone.lm_head)
            self.backbone = nn.ModuleList(trunk)

    @property
    def model(self) -> ConsistentEEForCausalLM:
        """The whole model."""
        return self._of[0]


class ReadoutPass(TrainedPart):
    """Phase 1: the loss of a few exits that are drawn for the step, at full depth.

    With `divergence` an exit's loss is ``KL(p_L || p_l)``, how far its distribution over tokens is
    from the last layer's; else its cross-entropy of the target token. Where the trunk is trained
    the last layer's cross-entropy is added, of the first answer token too.
    """

    def __init__(self, model: ConsistentEEForCausalLM, divergence: bool) -> None:
        super().__init__(model)
        self.divergence = divergence

    def forward(self, input_ids: Tensor, prompt_lengths: Tensor, lengths: Tensor) -> Tensor:
        """The loss, ``[]``."""
        model = self.model
        found = two_streams(model, input_ids, prompt_lengths, lengths, FULL_DEPTH)
        targets = target_tokens(input_ids, prompt_lengths, lengths)
        last = model.logits(found.states[:, -1]).float()
        number = len(model.config.exit_layers)
        loss = last.new_zeros(())
        drawn = torch.randperm(number)[:RANDOM_EXITS].tolist()
        for exit_number in drawn:
            logits = model.logits(found.states[:, exit_number]).float()
            if self.divergence:
                expected = last.detach().log_softmax(dim=-1)
                log_p = logits.log_softmax(dim=-1)
                part = kl_div(log_p, expected, reduction="batchmean", log_target=True)
            else:
                part = cross_entropy(logits, targets)
            loss = loss + part / len(drawn)
        if model.config.readout == "trunk":
            rows = torch.arange(len(lengths), device=lengths.device)
            first = model.logits(found.first_states).float()
            both = torch.cat((last, first)), torch.cat((targets, input_ids[rows, prompt_lengths]))
            loss = loss + cross_entropy(*both)
        return loss


class PolicyOutput(NamedTuple):
    """What phase 2 learns from.

    Attributes:
        losses: ``[N, E + 1]``, the cross-entropy of each exit, without gradient.
        policy_logits: ``[N, E]``.
        decides: ``[B, S]`` bool, which tokens these are.
    """

    losses: Tensor
    policy_logits: Tensor
    decides: Tensor


class PolicyPass(TrainedPart):
    """Phase 2: every exit's loss, given sampled exits of the tokens before."""

    def forward(self, input_ids: Tensor, prompt_lengths: Tensor, lengths: Tensor) -> PolicyOutput:
        """All that the phase's loss reads."""
        model = self.model
        found = two_streams(model, input_ids, prompt_lengths, lengths, SampledRule())
        targets = target_tokens(input_ids, prompt_lengths, lengths)
        with torch.no_grad():  # one head after the other: [N, E + 1, V] would be too large
            losses = [
                cross_entropy(model.logits(state).float(), targets, reduction="none")
                for state in found.states.unbind(dim=1)
            ]
        decides = deciding_tokens(prompt_lengths, lengths, input_ids.shape[1])
        return PolicyOutput(torch.stack(losses, dim=1), found.policy_logits, decides)


class JointPass(TrainedPart):
    """Phase 3: readouts, and a trunk that is trained, under sampled exits.

    Half of the loss is the cross-entropy of each token at the exit where it left, half that of all
    at one exit drawn for the step, or the last layer: a threshold set later moves exits to layers
    where few tokens left in training.
    """

    def forward(self, input_ids: Tensor, prompt_lengths: Tensor, lengths: Tensor) -> Tensor:
        """The loss, ``[]``."""
        model = self.model
        found = two_streams(model, input_ids, prompt_lengths, lengths, SampledRule())
        targets = target_tokens(input_ids, prompt_lengths, lengths)
        layers = torch.tensor(model.config.exit_layers, device=targets.device)
        left = (layers < found.exit_layers[:, None]).sum(dim=1)  # E at the last layer
        tokens = torch.arange(len(targets), device=targets.device)
        drawn = int(torch.randint(len(layers) + 1, ()))
        own, any_exit = (
            cross_entropy(model.logits(state).float(), targets)
            for state in (found.states[tokens, left], found.states[:, drawn])
        )
        return (own + any_exit) / 2


def target_tokens(input_ids: Tensor, prompt_lengths: Tensor, lengths: Tensor) -> Tensor:
    """What each deciding token should be followed by, ``[N]``."""
    decides = deciding_tokens(prompt_lengths, lengths, input_ids.shape[1])
    return input_ids.roll(-1, dims=1)[decides]
