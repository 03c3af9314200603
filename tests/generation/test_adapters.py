"""A trunk trained by LoRA adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.decoder_folder import SETTINGS, save_decoder, tables
from support.decoders import random_rows, tiny_causal_lm
from transformers import AutoModelForCausalLM

from consistentee.generation.adapters import add_adapters
from consistentee.generation.train import train
from consistentee.training.trainer import PhaseTrainer

RANK = 3
LORA = replace(
    SETTINGS, target="gold", tokens=1500, policy_tokens=60, learning_rate=1e-2, lora_rank=RANK
)


@pytest.mark.parametrize("case", ["llama, biases and tied", "qwen3", "gemma 3"])
def test_adapters_say_what_the_decoder_said_and_merge_into_it(case: str) -> None:
    model = tiny_causal_lm(case, readout="trunk")
    ids = torch.tensor(random_rows([7, 7]))
    names, cost = list(model.state_dict()), model.trunk.head_layers
    with torch.no_grad():
        before = model(ids).logits
        adapters = add_adapters(model, RANK)
        assert torch.equal(model(ids).logits, before)
        assert model.trunk.head_layers == cost
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=generator)
        moved = model(ids).logits
        assert not torch.allclose(moved, before, atol=0.1)
        adapters.merge_and_unload()
        assert torch.allclose(model(ids).logits, moved, atol=1e-5)
    assert list(model.state_dict()) == names


def test_a_frozen_trunk_takes_none() -> None:
    with pytest.raises(
        ValueError, match=r"^lora_rank: expected the readout 'trunk' beside it, got"
    ):
        add_adapters(tiny_causal_lm(), RANK)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("decoder") / "decoder")


def test_a_checkpoint_of_adapters_is_a_plain_one(backbone: Path, tmp_path: Path) -> None:
    """Each linear layer moved by a matrix of the adapters' rank, and nothing else of the trunk."""
    log = train(backbone, *tables(), tmp_path / "lora", LORA, readout="trunk")
    losses = log["phases"]["readouts"]["losses"]
    assert losses[-1] < 0.7 * 2 * torch.tensor(20.0).log().item()  # two exits' chance and the last
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "lora")
    decoder = AutoModelForCausalLM.from_pretrained(backbone)
    assert list(model.backbone.state_dict()) == list(decoder.state_dict())
    for name, weight in decoder.state_dict().items():
        change = (model.backbone.state_dict()[name] - weight).double()
        if "proj" not in name:
            assert not change.any(), name
            continue
        singular = torch.linalg.svdvals(change)
        assert singular[RANK - 1] > 1e-3, name
        assert singular[RANK] < 1e-3 * singular[0], name


def test_a_killed_run_goes_on(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consistentee.generation.sampler.CHECKPOINT_TOKENS", 60)
    settings = replace(LORA, tokens=120, joint_tokens=120)

    def run(folder: Path) -> None:
        train(backbone, *tables(), folder, settings, readout="trunk")

    run(tmp_path / "whole")
    for phase, step in (("readouts", 7), ("policies", 2), ("joint", 5)):
        compute_loss = PhaseTrainer.compute_loss

        def dies(self, *args, phase=phase, step=step, compute_loss=compute_loss, **kwargs):
            if self.phase == phase and self.state.global_step == step:
                raise KeyboardInterrupt
            return compute_loss(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PhaseTrainer, "compute_loss", dies)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "killed")
    partial = tmp_path / "killed.partial" / "readouts" / "model.safetensors"
    assert not any("proj.weight" in name for name in load_file(partial))  # adapters and exits alone
    run(tmp_path / "killed")
    weights, expected = (
        load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole")
    )
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
