"""Models that other libraries have wrapped, split, quantised or compiled: they run on a copy and stay as they are."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ess_widgets import capture
from ess_widgets.capture import CaptureError
from tests.unit.models import Fused, InPlace, TinyLM, tokens
from tests.unit.test_capture_untouched import unchanged

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))


def llama(**kwargs: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=61, num_key_value_heads=2, pad_token_id=0, **sizes, **kwargs)
    return LlamaForCausalLM(config).eval()


def good(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with unchanged(model):
        cap = capture(model, *args, **kwargs)
    assert max(layer.residual.max() for layer in cap.values()) < 1e-6
    return cap


# accelerate


def places(model: nn.Module) -> list[Any]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    forwards = [module.__dict__.get("forward") for module in model.modules()]
    return [[(name, t.device.type, t.is_meta or t.data_ptr()) for name, t in tensors], forwards]


def on_cpu_and_disk(model: nn.Module, folder: str) -> None:
    from accelerate import dispatch_model

    parts = dict.fromkeys(["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"], "cpu")
    where = {**parts, "model.layers.0": "cpu", "model.layers.1": "disk"}
    dispatch_model(model, where, main_device="cpu", offload_dir=folder, force_hooks=True)


def whole_on_cpu(model: nn.Module, folder: str) -> None:
    from accelerate import dispatch_model

    dispatch_model(model, {"": "cpu"}, force_hooks=True)


def offloaded(model: nn.Module, folder: str) -> None:
    from accelerate import cpu_offload

    cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)


def offloaded_to_disk(model: nn.Module, folder: str) -> None:
    from accelerate import disk_offload

    disk_offload(model, folder, execution_device=torch.device("cpu"))


def offloaded_with_a_hook(model: nn.Module, folder: str) -> None:
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(model, execution_device=torch.device("cpu"))


def aligned(model: Any, folder: str) -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for layer in model.model.layers:
        add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu", io_same_device=True))


@pytest.mark.parametrize(
    "split", [on_cpu_and_disk, whole_on_cpu, offloaded, offloaded_to_disk, offloaded_with_a_hook, aligned],
    ids=lambda split: split.__name__,
)  # fmt: skip
def test_split_by_accelerate(split: Callable[[nn.Module, str], None]) -> None:
    model = llama()
    with torch.no_grad():
        expected = model(tokens()).logits
    with tempfile.TemporaryDirectory() as folder:
        split(model, folder)
        before = places(model)
        for _ in range(2):
            cap = capture(model, tokens())
            assert places(model) == before
        assert list(cap) == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
        assert max(layer.residual.max() for layer in cap.values()) < 1e-6
        torch.testing.assert_close(cap.output.logits, expected)
        with torch.no_grad():
            torch.testing.assert_close(model(tokens()).logits, expected)


# Adapters


class LoRA(nn.Module):
    """Beside a frozen linear map, as peft does it, with adapters by name."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        self.lora_dropout = nn.ModuleDict({"default": nn.Dropout(0.5)})
        self.scaling = {"default": 2.0}
        self.active = ["default"]

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        for name in self.active:
            down = self.lora_A[name](self.lora_dropout[name](x))
            y = y + self.scaling[name] * self.lora_B[name](down)
        return y


def test_adapters_written_by_hand() -> None:
    model = TinyLM(InPlace(), InPlace()).train()
    plain = capture(model, tokens())
    for block in model.blocks:
        block.attn.qkv = LoRA(block.attn.qkv)
    cap = good(model, tokens())
    assert list(cap) == ["blocks.0.attn", "blocks.1.attn"]
    assert not torch.allclose(cap[0].operator.matrix(), plain[0].operator.matrix())
    with torch.no_grad():
        torch.testing.assert_close(cap.output, model.eval()(tokens()))


ADAPTERS = ["LoRA", "DoRA", "IA3", "LoKr", "prompt"]


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_adapters_of_peft(kind: str) -> None:
    import peft

    configs = {
        "LoRA": lambda: peft.LoraConfig(
            r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, init_lora_weights=False
        ),
        "DoRA": lambda: peft.LoraConfig(
            r=2, target_modules=["q_proj"], use_dora=True, init_lora_weights=False
        ),
        "IA3": lambda: peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        "LoKr": lambda: peft.LoKrConfig(r=2, target_modules=["q_proj"]),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    }
    model = peft.get_peft_model(llama(), configs[kind]()).train()
    cap = good(model, tokens())
    assert [name.rpartition("model.layers.")[2] for name in cap] == ["0.self_attn", "1.self_attn"]
    assert cap[0].outputs.shape[2] == 12 + 3 * (kind == "prompt")
    with torch.no_grad():
        torch.testing.assert_close(cap.output.logits, model.eval()(tokens()).logits)


# Quantised


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_layers(dtype: torch.dtype) -> None:
    from torch.ao.quantization import quantize_dynamic

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.attn = nn.LSTM(16, 16, batch_first=True), InPlace()

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(self.lstm(x)[0])

    model = quantize_dynamic(nn.Sequential(Recurrent(), InPlace()).eval(), {nn.Linear, nn.LSTM}, dtype=dtype)
    with torch.no_grad():
        expected = model(X)
    cap = capture(model, X)
    names = [layer.name for layer in cap.values() if layer.family == "softmax attention"]
    assert names == ["0.attn", "1"]
    assert max(cap[name].residual.max() for name in names) < 1e-6
    with torch.no_grad():
        assert torch.equal(cap.output, expected) and torch.equal(model(X), expected)


# Parallel, scripted, traced


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_distributed_data_parallel(one_process: None) -> None:
    model = nn.parallel.DistributedDataParallel(TinyLM())
    assert list(good(model, tokens())) == ["blocks.0.attn", "blocks.1.attn"]


def test_torchscript_inside() -> None:
    model = nn.Sequential(torch.jit.trace(nn.Linear(16, 16), X), Fused())
    cap = capture(model, X)
    assert list(cap) == ["1"] and cap[0].residual.max() < 1e-6


class Traced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.linear(x), x, x, is_causal=True)


@pytest.mark.parametrize("trace", [torch.fx.symbolic_trace, lambda m: torch.export.export(m, (X,)).module()])
def test_traced_to_a_graph(trace: Any) -> None:
    assert len(good(trace(Traced()), X)) == 1


def test_gradient_checkpointing_of_transformers() -> None:
    model: Any = llama().train()
    model.gradient_checkpointing_enable()
    assert len(good(model, tokens())) == 2


def test_lazy_and_meta_models_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"'0\.weight' has no shape yet: call the lazy model once"):
        capture(nn.Sequential(nn.LazyLinear(16), Fused()), X)
    with pytest.raises(CaptureError, match="on the meta device and has no values"):
        capture(Fused().to("meta"), X.to("meta"))


# Numbers of another kind


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)]
)  # fmt: skip
def test_float_types_in_training_mode(dtype: torch.dtype, limit: float) -> None:
    model = TinyLM().to(dtype).train()
    with unchanged(model):
        cap = capture(model, tokens())
    for layer in cap.values():
        assert layer.outputs.dtype is dtype and layer.residual.max() < limit
        assert layer.operator.matrix().dtype is (torch.float64 if dtype is torch.float64 else torch.float32)


def test_tensors_of_inference_mode() -> None:
    with torch.inference_mode():
        model, x = nn.Sequential(InPlace(), Fused()), torch.randn(2, 6, 16)
    cap = capture(model, x)
    assert max(layer.residual.max() for layer in cap.values()) < 1e-6
    assert not cap[0].outputs.is_inference()


def test_sparse_buffers() -> None:
    class Sparse(Fused):
        def __init__(self) -> None:
            super().__init__()
            self.mix: Tensor
            self.register_buffer("mix", torch.eye(6).to_sparse())
            self.register_buffer("rows", torch.eye(6).to_sparse_csr())

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.stack([torch.sparse.mm(self.mix, row) for row in x]))

    good(Sparse(), X)
