"""The monitor in Lightning's and transformers' own loops."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from training_models import LENGTH, VOCAB, Tiny, probe

from ess_widgets.learn import LightningMonitor, Monitor, TrainerMonitor


class Lit(lightning.LightningModule):  # type: ignore[misc]
    """The tiny model with a loss and an accuracy that is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Tiny()

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.net(ids)
        return out

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        (ids,) = batch
        logits = self(ids)
        self.log("accuracy", (logits.argmax(-1) == ids).float().mean())
        return cross_entropy(logits.mT, ids)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def data() -> DataLoader[Any]:
    ids = torch.randint(VOCAB, (32, LENGTH), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(ids), batch_size=4)


def trainer(directory: Path, steps: int, *callbacks: Any, **options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=directory,
        callbacks=list(callbacks),
        **quiet,
        **options,
    )


def test_lightning(tmp_path: Path) -> None:
    callback = LightningMonitor(probe(), every=2)
    trainer(tmp_path, 5, callback).fit(Lit(), data())
    monitor = callback.monitor
    assert monitor is not None and monitor.steps == 5 and not monitor.failures
    assert [m.step for m in monitor.history.good] == [0, 2, 4]
    assert list(monitor.history.good[0].layers) == ["net.blocks.0", "net.blocks.1"]
    table = monitor.metrics()
    assert table["step"].tolist() == [1, 2, 3, 4, 5]
    assert table[["loss", "accuracy"]].notna().all(axis=None)


def test_lightning_is_left_alone(tmp_path: Path) -> None:
    found = []
    for callbacks in ((), (LightningMonitor(probe(), every=1, model=lambda module: module.net),)):
        torch.manual_seed(5)
        module = Lit()
        trainer(tmp_path, 4, *callbacks, enable_checkpointing=False).fit(module, data())
        found.append((module.state_dict(), torch.get_rng_state()))
    assert torch.equal(found[0][1], found[1][1])
    for name, value in found[0][0].items():
        assert torch.equal(value, found[1][0][name]), name


def test_lightning_gathers_gradients(tmp_path: Path) -> None:
    callback = LightningMonitor(probe(), every=1, metrics=[])
    trainer(tmp_path, 3, callback, accumulate_grad_batches=2).fit(Lit(), data())
    assert callback.monitor is not None
    assert [m.step for m in callback.monitor.history.good] == [0, 1, 2, 3]
    assert list(callback.monitor.metrics()) == ["step", "loss"]


def test_lightning_resumes(tmp_path: Path) -> None:
    first = LightningMonitor(probe(), every=2)
    fitted = trainer(tmp_path, 4, first)
    fitted.fit(Lit(), data())
    checkpoint = tmp_path / "at-4.ckpt"
    fitted.save_checkpoint(checkpoint)
    second = LightningMonitor(probe(), every=2)
    trainer(tmp_path, 6, second).fit(Lit(), data(), ckpt_path=str(checkpoint), weights_only=False)
    assert second.monitor is not None and first.monitor is not None
    assert [m.step for m in second.monitor.history.good] == [0, 2, 4, 6]
    assert list(second.monitor.history.steps) == [1, 2, 3, 4, 5, 6]
    assert list(second.monitor.history.metrics["loss"])[:4] == pytest.approx(
        list(first.monitor.history.metrics["loss"]), rel=1e-5
    )


def test_lightning_with_a_monitor_of_ones_own(tmp_path: Path) -> None:
    module = Lit()
    monitor = Monitor(module, probe(), every=2)
    trainer(tmp_path, 4, monitor.lightning(), enable_checkpointing=False).fit(module, data())
    assert [m.step for m in monitor.history.good] == [0, 2, 4]


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=0.1,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model


def fit(model: nn.Module, directory: Path, steps: int, *callbacks: Any, resume: bool = False) -> None:
    from transformers import Trainer, TrainingArguments

    ids = torch.randint(VOCAB, (32, LENGTH), generator=torch.Generator().manual_seed(0))
    arguments = TrainingArguments(
        str(directory),
        max_steps=steps,
        per_device_train_batch_size=4,
        logging_steps=1,
        save_steps=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [{"input_ids": row, "labels": row} for row in ids]
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=list(callbacks))  # type: ignore[arg-type]
    trainer.train(resume_from_checkpoint=resume)


def test_trainer(tmp_path: Path) -> None:
    callback = TrainerMonitor({"input_ids": probe()}, every=2)
    fit(llama(), tmp_path, 5, callback)
    monitor = callback.monitor
    assert monitor is not None and not monitor.failures
    assert [m.step for m in monitor.history.good] == [0, 2, 4]
    assert list(monitor.history.good[0].layers) == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    table = monitor.metrics()
    assert table["step"].tolist() == [1, 2, 3, 4, 5]
    assert table[["loss", "learning_rate", "grad_norm"]].notna().all(axis=None)


def test_trainer_is_left_alone_and_resumes(tmp_path: Path) -> None:
    start = llama().state_dict()
    found = []
    for name, watched in (("plain", False), ("watched", True)):
        model = llama()
        model.load_state_dict(start)
        inputs = {"input_ids": probe()}
        path = tmp_path / "history.jsonl"
        callbacks = [TrainerMonitor(inputs, every=2, path=path)] if watched else []
        fit(model, tmp_path / name, 6, *callbacks)
        found.append(model.state_dict())
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
    # Trained on from the checkpoint at step 4: steps 5 and 6 are superseded.
    callback = TrainerMonitor({"input_ids": probe()}, every=2, path=tmp_path / "history.jsonl")
    fit(llama(), tmp_path / "watched", 8, callback, resume=True)
    assert callback.monitor is not None
    assert list(callback.monitor.history.steps) == list(range(1, 9))
    assert [m.step for m in callback.monitor.history.good] == [0, 2, 4, 6, 8]


def test_trainer_with_a_monitor_of_ones_own(tmp_path: Path) -> None:
    model = llama()
    monitor = Monitor(model, {"input_ids": probe()}, every=2)
    fit(model, tmp_path, 2, monitor.trainer())
    assert [m.step for m in monitor.history.good] == [0, 2]


@pytest.mark.parametrize("callback", [LightningMonitor, TrainerMonitor])
def test_wrong_arguments(callback: Any) -> None:
    monitor = Monitor(Tiny(), probe())
    with pytest.raises(TypeError, match="either probe_inputs or a monitor"):
        callback()
    with pytest.raises(TypeError, match="either probe_inputs or a monitor"):
        callback(probe(), monitor=monitor)
    with pytest.raises(TypeError, match="options already"):
        callback(monitor=monitor, every=3)


@pytest.mark.parametrize(
    ("name", "hidden", "told"),
    [
        (
            "LightningMonitor",
            ["lightning", "lightning.pytorch", "pytorch_lightning"],
            "pip install lightning",
        ),
        ("TrainerMonitor", ["transformers"], "pip install transformers"),
    ],
)
def test_what_is_not_installed_is_named(name: str, hidden: list[str], told: str) -> None:
    code = (
        f"import sys\nfor name in {hidden!r}:\n    sys.modules[name] = None\n"
        "import ess_widgets.learn as learn\nassert learn.Monitor\n"
        f"try:\n    learn.{name}\nexcept ImportError as error:\n    print(error)"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, timeout=120
    )
    assert told in done.stdout


def test_importing_learn_brings_none_of_them() -> None:
    heavy = {
        "lightning",
        "transformers",
        "pandas",
        "scipy",
        "matplotlib",
        "IPython",
        "tensorboard",
        "anywidget",
    }
    code = f"import sys, ess_widgets.learn\nprint(sorted({heavy!r} & set(sys.modules)))"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, timeout=120
    )
    assert done.stdout.strip() == "[]"
