"""What transformers' ``generate`` asks of a decoder.

``generate`` prepares everything (logits processors, stopping criteria, special tokens, lengths) and
ends in ``_sample``, greedy or not. That method is all that is put in its place, so a change of the
library's inner ways has little to break.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMode
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from consistentee_ext.forks import threads_start
from consistentee_ext.generation.engine import DecoderEngine, check_logits
from consistentee_ext.inference_module import InferenceModule
from consistentee_ext.inputs import PackedInputs, pack_inputs
from consistentee_ext.packed import InputLimits


@dataclass
class EarlyExitGenerateOutput(GenerateDecoderOnlyOutput):
    """What ``generate`` returns with ``return_dict_in_generate``; it has no cache.

    Args:
        exit_layers: ``[B, new]`` int64, 1-based, of each new token: the number of layers that ran
            for it. L for the first one, which comes with the prompt, and 0 behind a text's end.
    """

    exit_layers: Tensor | None = None


class GenerateDropIn(GenerationMixin, InferenceModule):
    """A causal language model in transformers' hands; a subclass brings the engine."""

    _supported_generation_modes: ClassVar = [GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE]
    _engine: DecoderEngine
    backend: str

    @property
    def _limits(self) -> InputLimits:
        return self._engine.weights.stack.embedding.limits

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Where pipelines look up, by the name of its class, whether a model generates.
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[cls.__name__] = cls.__name__

    def __init__(
        self,
        config: PreTrainedConfig,
        generation_config: GenerationConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        InferenceModule.__init__(self, config, dtype, device)
        self.generation_config = generation_config

    def can_generate(self) -> bool:
        """Whether it writes texts: yes."""
        return True

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> NoReturn:
        """Raise RuntimeError: a decoder keeps the logits of next tokens alone."""
        raise RuntimeError("forward: call generate; ask the model this one was made of for logits")

    def generate_batch(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise RuntimeError: it needs a model whose tokens all run all layers."""
        raise RuntimeError("generate_batch: call generate_texts, which fills free slots too")

    # transformers calls neither: it reads from the first which arguments `generate` takes.
    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> NoReturn:
        """Raise RuntimeError: see `forward`."""
        self.forward(input_ids, attention_mask)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the engine brings its own

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        attention_mask: Tensor | None = None,
        **others: Any,
    ) -> Any:
        """The tokens of B rows, ``[B, S + new]`` int64, or an `EarlyExitGenerateOutput`; all
        arguments are transformers' own.
        """
        _refuse(generation_config, others)
        engine = self._engine
        prompts = self._pack(input_ids, attention_mask)
        width = input_ids.shape[1]
        new = generation_config.max_length - width
        check_positions(prompts.max_length, new, self._limits.max_length)
        threads_start()
        rows = torch.arange(len(input_ids), device=self.device)
        unfinished = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        # As in the library, rows are padded behind their end where there is an end token; without
        # one they go on while others do.
        pads = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        kept: dict[str, list[Tensor]] = {"scores": [], "logits": []}
        wanted = [n for n in kept if getattr(generation_config, f"output_{n}")]
        cache = engine.allocate(len(input_ids), prompts.max_length + new - 1)
        first = engine.prefill(cache, prompts.ids, prompts.cu_seqlens, prompts.row_ids)
        logits = torch.empty_like(first)
        logits[prompts.row_ids] = first
        exit_layers = rows.new_zeros(len(rows), new)
        exit_layers[:, 0] = engine.weights.stack.num_layers
        while True:
            check_logits(logits)
            scores = logits_processor(input_ids, logits.to(input_ids.device, copy=True))
            if "scores" in wanted:
                kept["scores"].append(scores)
            if "logits" in wanted:
                kept["logits"].append(logits.to(input_ids.device, copy=True))
            tokens = _choose(scores, generation_config.do_sample)
            if pads:
                tokens = torch.where(unfinished, tokens, generation_config._pad_token_tensor)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
            if streamer is not None:
                streamer.put(tokens.cpu())
            told = tuple(kept["scores"]) if "scores" in wanted else None
            unfinished &= ~stopping_criteria(input_ids, told)
            if not unfinished.any():
                break
            going = rows[unfinished.to(self.device)] if pads else rows
            step = engine.step(cache, tokens.to(self.device)[going], going)
            # Rows that have ended keep their logits: draws for the others stay as they are.
            logits[going] = step.logits
            exit_layers[going, input_ids.shape[1] - width] = step.exit_layers
        if streamer is not None:
            streamer.end()
        if not generation_config.return_dict_in_generate:
            return input_ids
        return EarlyExitGenerateOutput(
            sequences=input_ids,  # type: ignore[arg-type]
            exit_layers=exit_layers[:, : input_ids.shape[1] - width].contiguous(),
            **{name: tuple(kept[name]) for name in wanted},  # type: ignore[arg-type]
        )

    def _pack(self, input_ids: Tensor, attention_mask: Tensor | None) -> PackedInputs:
        with torch.inference_mode():
            packed = pack_inputs(
                input_ids, attention_mask, None, self._limits, self.device, self.backend
            ).to(self.device)
        if attention_mask is not None and bool((attention_mask[:, -1] == 0).any()):
            raise ValueError(
                "attention_mask: expected padding on the left, got some on the right; "
                "tokenizer.padding_side = 'left' sets it"
            )
        return packed


def check_positions(longest: int, max_new_tokens: int, limit: int) -> None:
    """Raise ValueError unless prompts of up to `longest` tokens leave room for their answers."""
    if longest + max_new_tokens - 1 > limit:  # the last token of an answer is not read
        raise ValueError(
            f"max_new_tokens: expected at most {limit - longest + 1} behind a prompt of {longest} "
            f"tokens, as the decoder has {limit} positions, got {max_new_tokens}"
        )


def _choose(scores: Tensor, do_sample: bool) -> Tensor:
    """``[B]`` int64 of ``[B, V]``, drawn as the library draws: a seed gives what it gives there."""
    if not do_sample:
        return scores.argmax(dim=-1)
    return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)


_REFUSED = {
    "output_attentions": (False, "as they are not kept"),
    "output_hidden_states": (False, "as tokens leave at different layers"),
    "use_cache": (True, "as the engine has a cache of its own"),
    "cache_implementation": (None, "as the engine has a cache of its own"),
    "guidance_scale": (None, "as it needs a second pass"),
}


def _refuse(generation_config: Any, others: dict[str, Any]) -> None:
    """Raise ValueError for what is not done here: options, and arguments of a model's pass."""
    for name, (expected, reason) in _REFUSED.items():
        got = getattr(generation_config, name, None)
        if got not in (expected, None) and not (name == "guidance_scale" and got == 1):
            raise ValueError(f"{name}: expected {expected}, {reason}, got {got!r}")
    for name, value in others.items():
        if value is not None and name not in ("tokenizer", "use_cache"):
            raise ValueError(f"{name}: expected none, as the engine has no use for it, got one")
