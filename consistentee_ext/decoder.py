"""FastEarlyExitDecoder: a Hugging Face causal language model, run so that layers saved are time
saved.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig
from typing_extensions import override

from consistentee_ext.backend import DEVICE_BACKENDS, availability, select_backend
from consistentee_ext.checkpoint import load_tokenizer
from consistentee_ext.exits.exits import choose_exit_layers, resolve_thresholds
from consistentee_ext.families.reader import Reader
from consistentee_ext.forks import threads_start, without_threads
from consistentee_ext.generation.checkpoint import load_decoder
from consistentee_ext.generation.drop_in import GenerateDropIn, check_positions
from consistentee_ext.generation.engine import DecoderEngine
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.generation.native_engine import choose_engine
from consistentee_ext.generation.refill import answer_prompts
from consistentee_ext.generation.texts import GeneratedText, encode_rows, texts_in_order
from consistentee_ext.generation.weights import DecoderWeights, find_decoder, read_decoder
from consistentee_ext.placement import choose_dtype, usable_device
from consistentee_ext.progress import progress_bar
from consistentee_ext.source import Source


class FastEarlyExitDecoder(GenerateDropIn):
    """Generates text; a token leaves the layers behind its exit out, and its row goes on.

    Stands in for the Hugging Face model where that generates: call ``generate``, greedy or
    sampling, or hand it to ``pipeline("text-generation")``. What a row gives does not depend on the
    rows beside it. It can be copied, pickled and moved between devices; it cannot be trained, and
    keeps no logits of prompts.

    Args:
        model: a `ConsistentEEForCausalLM`, or a Hugging Face causal language model of a type in
            `consistentee_ext.generation.configuration.BACKBONES`, which has no exits and runs at
            full depth. It is read, never changed.
        dtype: float32, bfloat16 or float16, or its name; default the model's, or float32 for a
            float64 one and on a processor that multiplies the model's slowly. ``"auto"`` is the
            model's on every processor. Decisions are float32, and so are logits behind the LM head.
        device: default the model's.
        backend: ``cpu`` or ``torch``; default the first that can run.
        exit_layers: layers behind which tokens may leave, 1-based; default all that have an exit.
            The last layer is always one.
        threshold: see the property; default the model's.
        tokenizer: for `generate_texts`.

    Raises:
        TypeError, ValueError: the argument named, what was expected, what came.
        RuntimeError: the backend asked for cannot run here.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        backend: str | None = None,
        exit_layers: Sequence[int] | None = None,
        threshold: float | Sequence[float] | Mapping[int, float] | None = None,
        tokenizer: Any = None,
        _consume: bool = False,
    ) -> None:
        decoder = find_decoder(model)
        config: Any = model.config
        weight = next(decoder.parameters())
        where = usable_device(device or weight.device)
        kind = choose_dtype(dtype, weight.dtype, where)
        reader = Reader(decoder.config, kind, where, consume=_consume, few_rows=True)
        with without_threads():
            weights = read_decoder(model, decoder, reader)
        super().__init__(config, _generation_config(model), kind, where)
        available = [*weights.exits, weights.stack.num_layers]
        self.exit_layers = choose_exit_layers(available, exit_layers)
        if threshold is None:
            threshold = getattr(config, "threshold", 1.0)
        self.backend = _select_backend(where, backend)
        self._start_engine(weights, resolve_thresholds(threshold, self.exit_layers[:-1]))
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        backend: str | None = None,
        revision: str = "main",
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        subfolder: str = "",
        **options: Any,
    ) -> FastEarlyExitDecoder:
        """A decoder from a checkpoint folder or hub name: ConsistentEE, or a causal language model.

        Loads safetensors only and runs no remote code.

        Args:
            name_or_path: what looks like a folder and is none is not looked for on the hub.
            dtype: as for the class, or its name; ``"auto"`` is that of the weights, on every
                processor.
            device: as for the class.
            backend: as for the class.
            revision: as the next four, as for transformers' ``from_pretrained``.
            cache_dir: for downloads.
            local_files_only: download nothing.
            token: of the hub.
            subfolder: of the checkpoint.
            options: the others of the class.

        Raises:
            OSError: no such folder, name or file.
            ValueError: weights that are not those of the configuration, or another model type.
        """
        source = Source(
            name_or_path, revision, cache_dir, local_files_only, token, subfolder
        ).checked()
        with without_threads():
            model = load_decoder(source)
        # The model is used nowhere else: each layer is freed once it is read.
        options["_consume"] = True
        decoder = cls(model, dtype=dtype, device=device, backend=backend, **options)
        if decoder.tokenizer is None:
            decoder.tokenizer = load_tokenizer(source)
        return decoder

    @property
    def num_layers(self) -> int:
        """L, the layers of the full model."""
        return self._engine.weights.stack.num_layers

    @property
    def max_positions(self) -> int:
        """The longest row the model takes, prompt and answer, in tokens."""
        return self._limits.max_length

    @property
    def threshold(self) -> float | dict[int, float]:
        """The exit probability above which a token leaves, in (0, 1]: lower is faster, 1 is full
        depth.

        Set a number, a sequence with one for each early exit layer, or a mapping from layer to
        number; it holds from the next call on. Reads as a number where all layers share it.
        """
        values = set(self._engine.thresholds.values())
        if not values:
            return 1.0
        return values.pop() if len(values) == 1 else dict(self._engine.thresholds)

    @threshold.setter
    def threshold(self, value: float | Sequence[float] | Mapping[int, float]) -> None:
        # One assignment: a call under way in another thread keeps the engine it began with.
        thresholds = resolve_thresholds(value, self.exit_layers[:-1])
        self._engine = self._engine.with_thresholds(thresholds)

    def generate_texts(
        self,
        prompts: Sequence[str],
        tokenizer: Any = None,
        max_new_tokens: int = 128,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> list[GeneratedText]:
        """Answer any number of prompts, greedily; a row that has ended makes room for the next.

        Of ``generation_config`` the end tokens count, and nothing else.

        Args:
            prompts: N strings; what the user says, where the tokenizer has a chat template.
            tokenizer: default the decoder's own.
            max_new_tokens: of each answer.
            batch_size: rows that are decoded at a time.
            show_progress_bar: on stderr.

        Raises:
            TypeError, ValueError: the argument named, what was expected, what came.
            RuntimeError: there is no memory for so many rows.
        """
        return list(
            self.iterate_texts(prompts, tokenizer, max_new_tokens, batch_size, show_progress_bar)
        )

    def iterate_texts(
        self,
        prompts: Sequence[str],
        tokenizer: Any = None,
        max_new_tokens: int = 128,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        first_row: int = 0,
    ) -> Generator[GeneratedText]:
        """As `generate_texts`, in the order of the prompts, each as soon as it and those before it
        are there.

        Args:
            prompts: as in `generate_texts`.
            tokenizer: as in `generate_texts`.
            max_new_tokens: as in `generate_texts`.
            batch_size: as in `generate_texts`.
            show_progress_bar: as in `generate_texts`.
            first_row: prompts before it are left out.
        """
        tokenizer = tokenizer or self.tokenizer
        if tokenizer is None:
            raise ValueError("tokenizer: expected one, as the decoder was made without")
        for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            _check_count(name, value)
        rows = encode_rows(prompts, first_row, tokenizer, self._limits.vocab_size)
        check_positions(max(map(len, rows), default=0), max_new_tokens, self.max_positions)
        ends = self.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        found = answer_prompts(self._engine, rows, max_new_tokens, ends, batch_size)
        bar = progress_bar(len(prompts), "generate", "row", show_progress_bar, first_row)
        threads_start()
        return texts_in_order(found, tokenizer, bar)

    @override
    def _engine_parts(self) -> tuple[DecoderWeights, Mapping[int, float]]:
        return self._engine.weights, self._engine.thresholds

    @override
    def _start_engine(self, weights: DecoderWeights, thresholds: Mapping[int, float]) -> None:
        if not availability(self.backend, self.device).usable:
            self.backend = _select_backend(self.device, None)
        self._engine: DecoderEngine = choose_engine(weights, thresholds, self.backend)


def _generation_config(model: Any) -> GenerationConfig:
    if not isinstance(model, ConsistentEEForCausalLM):
        own: GenerationConfig = copy.deepcopy(model.generation_config)
        return own
    names = ("eos_token_id", "pad_token_id", "bos_token_id")
    return GenerationConfig(**{name: getattr(model.config, name) for name in names})


def _select_backend(device: torch.device, requested: str | None) -> str:
    """On a GPU plain PyTorch: no kernels of its own go by slots."""
    backend = select_backend(device, requested)
    if backend not in DEVICE_BACKENDS:
        return backend
    if requested is not None:
        raise RuntimeError(f"backend {requested!r} cannot run a decoder: expected cpu or torch")
    return "torch"


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
