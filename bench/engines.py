"""What a workload can be run with: ours, the engines a user would pick instead, and the limit.

An engine is a function from a workload to a pass over all its rows, which returns the logits of
each batch. Every engine has the same weights, the same token ids, the same threads, and its best
settings, named beside it. One whose package is not installed, or that the processor can only
emulate, raises ImportError.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from baselines import published_early_exit
from torch import Tensor, nn
from workloads import Pass, Workload

from consistentee import ConsistentEEForSequenceClassification
from consistentee.evaluation.evaluate import Batch, full_depth_logits
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.layers import Block, GenericStack
from consistentee_ext.ops import load_ops, onednn_int8
from consistentee_ext.ops.onednn import is_fast
from consistentee_ext.weights import LinearWeights


class FullDepth(nn.Module):
    """The Hugging Face model with its last head alone: what is exported to other engines."""

    def __init__(self, model: ConsistentEEForSequenceClassification) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            batch["token_type_ids"] = token_type_ids
        return full_depth_logits(self.model, batch)


def hugging_face(workload: Workload, attention: str, dtype: torch.dtype = torch.float32) -> Pass:
    model = _copy(workload.model, dtype, attention)
    return lambda: [full_depth_logits(model, batch) for batch in workload.batches]


def compiled(workload: Workload) -> Pass:
    """torch.compile, weights frozen and prepacked, one graph for all shapes."""
    import torch._inductor.config as inductor

    model = _copy(workload.model, torch.float32, "sdpa")
    with inductor.patch(freezing=True):
        run = torch.compile(FullDepth(model), dynamic=True)
        with torch.no_grad():
            run(**workload.batches[0])

    def all_batches() -> list[Tensor]:
        with inductor.patch(freezing=True), torch.no_grad():
            return [run(**batch) for batch in workload.batches]

    return all_batches


def has_vnni() -> bool:
    """Whether integers of 8 bits are added in 32 bits: without, sums of two products saturate."""
    return onednn_int8.activation_levels()[0] == onednn_int8.LEVELS[0]


def onnx_runtime(workload: Workload, int8: bool = False) -> Pass:
    """ONNX Runtime, graph fused by its transformer optimiser; int8: dynamic quantisation, weights
    by channel, of 7 bits where there is no VNNI, which ONNX Runtime leaves to the caller.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    config = workload.model.config.backbone
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        module = FullDepth(_copy(workload.model, torch.float32, "eager")).eval()
        names = list(workload.batches[0])
        torch.onnx.export(
            module,
            tuple(workload.batches[0].values()),
            path,
            input_names=names,
            output_names=["logits"],
            dynamic_axes={name: {0: "rows", 1: "tokens"} for name in names},
            dynamo=False,
        )
        optimized = optimize_model(
            path, "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
        )
        optimized.save_model_to_file(path)
        if int8:
            # The optimiser's fused nodes are of another domain: their types are not inferred.
            unknown = {"DefaultTensorType": onnx.TensorProto.FLOAT}
            quantize_dynamic(
                path, path, per_channel=True, reduce_range=not has_vnni(), extra_options=unknown
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    inputs = _arrays(workload.batches)
    return lambda: [session.run(None, batch)[0] for batch in inputs]


def openvino(workload: Workload, precision: str = "f32", int8: bool = False) -> Pass:
    """OpenVINO, latency hint; int8: weights and activations by NNCF, calibrated on training rows,
    with half the range where there is no VNNI.
    """
    import openvino

    module = FullDepth(_copy(workload.model, torch.float32, "sdpa")).eval()
    model = openvino.convert_model(module, example_input=workload.batches[0])
    inputs = _arrays(workload.batches)
    if int8:
        import nncf

        fix = nncf.OverflowFix.DISABLE if has_vnni() else nncf.OverflowFix.ENABLE
        model = nncf.quantize(
            model,
            nncf.Dataset(_arrays(workload.calibration)),
            model_type=nncf.ModelType.TRANSFORMER,
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
        )
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled_model = openvino.Core().compile_model(model, "CPU", settings)
    return lambda: [compiled_model(batch)[0] for batch in inputs]


def published(workload: Workload) -> Pass:
    """Early exit as published: one row at a time, a look at the policy on the host."""
    model = _copy(workload.model, torch.float32, "sdpa")
    forced = workload.exit_shares is not None
    exits = workload.exit_layers.tolist() if forced else [None] * len(workload.rows)
    rows = list(zip(workload.rows, exits, strict=True))
    return lambda: [published_early_exit(model, row, layer) for row, layer in rows]


def ours(
    workload: Workload, dtype: torch.dtype = torch.float32, weights: str | None = None
) -> Pass:
    encoder = workload.encoder(dtype, weights)
    return lambda: [encoder(**batch).logits for batch in workload.batches]


def ours_one_by_one(workload: Workload) -> Pass:
    encoder, rows = workload.encoder(), workload.rows
    return lambda: [encoder(**row).logits for row in rows]


def ours_full_depth(
    workload: Workload, dtype: torch.dtype = torch.float32, weights: str | None = None
) -> Pass:
    encoder = FastEarlyExitEncoder(workload.model, dtype=dtype, weights=weights, exit_layers=[])
    return lambda: [encoder(**batch).logits for batch in workload.batches]


def truncated(workload: Workload) -> Pass:
    """Ours, the first L / ratio layers alone: the same layers for every row."""
    model = _copy(workload.model, torch.float32, "sdpa")
    if not hasattr(getattr(model.backbone, "encoder", None), "layer"):
        raise AbsentError("layers are cut where BERT has them")
    layers = round(len(model.heads) / workload.layer_ratio)
    model.backbone.encoder.layer = model.backbone.encoder.layer[:layers]
    model.heads = model.heads[:layers]
    model.config.backbone.num_hidden_layers = layers
    encoder = FastEarlyExitEncoder(model, exit_layers=[])
    return lambda: [encoder(**batch).logits for batch in workload.batches]


def gemm_limit(
    workload: Workload, dtype: torch.dtype = torch.float32, weights: str | None = None
) -> Pass:
    """The layers' matrix products alone, our kernels, on the tokens that reach each layer."""
    encoder = workload.encoder(dtype, weights)
    if isinstance(encoder._engine.stack, GenericStack):
        raise AbsentError("the products are not ours")
    steps: list[tuple[Block, int]] = []
    for batch in workload.batches:
        lengths, exit_layers = batch["attention_mask"].sum(dim=1), encoder(**batch).exit_layers
        for number, block in enumerate(encoder._engine.stack.blocks, start=1):
            steps.append((block, int(lengths[exit_layers >= number].sum())))
    steps = [(block, tokens) for block, tokens in steps if tokens]
    # Room behind the tokens, as the encoder's own have it: the number of rows is rounded up alike.
    most = max(tokens for _, tokens in steps) + 32
    widths = {linear.shape[1] for block, _ in steps for linear in block.linears}
    inputs = {width: torch.randn(most, width).to(dtype) for width in widths}
    product = load_ops(encoder.backend).linear
    if weights == "int8":
        inputs = {width: torch.randint(0, 256, x.shape).byte() for width, x in inputs.items()}
        product = partial(int8_product, dtype=dtype)

    def run() -> list[Tensor]:
        for block, tokens in steps:
            for linear in block.linears:
                product(inputs[linear.shape[1]][:tokens], linear)
        return []

    return run


def int8_product(integers: Tensor, linear: LinearWeights, dtype: torch.dtype) -> Tensor:
    """Sums of integers alone: no activation is rounded, no bias added."""
    assert linear.scale is not None
    return onednn_int8.product(integers, linear.levels, linear.weight, linear.scale, dtype)


class AbsentError(ImportError):
    """The processor or the model lacks what the engine is for."""


def in_bf16(engine: Callable[..., Pass], **options: Any) -> Callable[[Workload], Pass]:
    def make(workload: Workload) -> Pass:
        if not is_fast(torch.bfloat16):
            raise AbsentError("this processor only emulates bfloat16 products")
        return engine(workload, **options)

    return make


def in_int8(engine: Callable[..., Pass]) -> Callable[[Workload], Pass]:
    """Weights and activations of the products of 8 bits, the rest in the faster dtype."""

    def make(workload: Workload) -> Pass:
        dtype = torch.bfloat16 if is_fast(torch.bfloat16) else torch.float32
        return engine(workload, dtype=dtype, weights="int8")

    return make


BF16 = torch.bfloat16
OURS, OURS_BF16 = "ours, exits", "ours, exits, bf16"
FULL, FULL_BF16 = "ours, full depth", "ours, full depth, bf16"
LIMIT, LIMIT_BF16 = "GEMM limit", "GEMM limit, bf16"
OURS_INT8, FULL_INT8 = "ours, exits, int8", "ours, full depth, int8"
LIMIT_INT8 = "GEMM limit, int8"

ENGINES: dict[str, Callable[[Workload], Pass]] = {
    "Hugging Face, eager attention": partial(hugging_face, attention="eager"),
    "Hugging Face, sdpa attention": partial(hugging_face, attention="sdpa"),
    "Hugging Face, eager attention, bf16": in_bf16(hugging_face, attention="eager", dtype=BF16),
    "torch.compile, frozen": compiled,
    "ONNX Runtime": onnx_runtime,
    "ONNX Runtime, int8": partial(onnx_runtime, int8=True),
    "OpenVINO": openvino,
    "OpenVINO, bf16": in_bf16(openvino, precision="bf16"),
    "OpenVINO, int8": partial(openvino, int8=True),
    "the published way: batch 1, early exit": published,
    "truncated to L / ratio layers, packed": truncated,
    FULL: ours_full_depth,
    FULL_BF16: in_bf16(ours_full_depth, dtype=BF16),
    "ours, exits, one by one": ours_one_by_one,
    OURS: ours,
    OURS_BF16: in_bf16(ours, dtype=BF16),
    LIMIT: gemm_limit,
    LIMIT_BF16: in_bf16(gemm_limit, dtype=BF16),
    FULL_INT8: in_int8(ours_full_depth),
    OURS_INT8: in_int8(ours),
    LIMIT_INT8: in_int8(gemm_limit),
}


def _copy(
    model: ConsistentEEForSequenceClassification,
    dtype: torch.dtype,
    attention: str,
) -> ConsistentEEForSequenceClassification:
    """The model once more, with a config of its own: it says which attention runs."""
    twin = deepcopy(model)
    twin.set_attn_implementation(attention)
    twin.to(dtype)  # type: ignore[arg-type]  # transformers' stub of a wrapped method
    return twin


def _arrays(batches: list[Batch]) -> list[dict[str, Any]]:
    """The batches as NumPy arrays."""
    return [{name: values.numpy() for name, values in b.items()} for b in batches]
