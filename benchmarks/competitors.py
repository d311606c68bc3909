"""Other people's mutual learning, each called as its authors mean it to be called.

Nothing is patched. What a row computes differently, and what it needed to run at all, stands in its note.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

Work = Callable[[], object]
LR, MOMENTUM, DECAY = 0.05, 0.9, 5e-4


@dataclass(frozen=True)
class Task:
    """One epoch of two networks over the same images.

    Args:
        networks: freshly initialised, the same for all.
        loader: normalised float images in memory, shuffled, without augmentation.
        device: where.
    """

    networks: Sequence[nn.Module]
    loader: DataLoader[tuple[Tensor, ...]]
    device: torch.device

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """One for each network, as a user writes them."""
        return [
            torch.optim.SGD(net.parameters(), LR, MOMENTUM, weight_decay=DECAY, nesterov=True) for net in self.networks
        ]


@dataclass(frozen=True)
class Competitor:
    """A way to train the task.

    Args:
        name: of the row.
        package: the module that has to be there; nothing: none.
        install: how to get it.
        prepare: from a task to the work that is timed.
        note: what it computes, and what it needed.
    """

    name: str
    package: str
    install: str
    prepare: Callable[[Task], Work]
    note: str

    @property
    def installed(self) -> bool:
        """Whether the package is there."""
        return not self.package or importlib.util.find_spec(self.package) is not None


def by_hand(task: Task) -> Work:
    """The loop of a tutorial: both logits, the other's detached, one backward and one optimizer for each."""
    optimizers = task.optimizers()

    def work() -> None:
        for network in task.networks:
            network.train()
        for images, labels in task.loader:
            images, labels = images.to(task.device), labels.to(task.device)
            logits = [network(images) for network in task.networks]
            for index, optimizer in enumerate(optimizers):
                loss = mutual(logits[index], logits[1 - index], labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    return work


def mutual(own: Tensor, other: Tensor, labels: Tensor) -> Tensor:
    """``(B, C), (B, C), (B,) -> ()``: cross-entropy and the divergence from the other, which gets no gradient."""
    distill = F.kl_div(own.log_softmax(1), other.detach().softmax(1), reduction="batchmean")
    return F.cross_entropy(own, labels) + distill


def pytorch_dml(task: Task) -> Work:
    """``pydml.DMLTrainer.fit``."""
    pydml = importlib.import_module("pydml")
    trainer = pydml.DMLTrainer(list(task.networks), device=task.device.type, optimizers=task.optimizers())
    return lambda: trainer.fit(task.loader, None, epochs=1, verbose=False)


def kd_lib(task: Task) -> Work:
    """``KD_Lib.KD.DML.train_students``."""
    found = importlib.util.find_spec("KD_Lib")
    folder = next(iter((found and found.submodule_search_locations) or ()), "")
    # The package itself imports torchtext.legacy and transformers.AdamW, which are long gone, for other methods.
    path = Path(folder) / "KD" / "vision" / "DML" / "dml.py"
    spec = importlib.util.spec_from_file_location("kd_lib_dml", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    one = DataLoader(TensorDataset(*(part[:1] for part in _tensors(task))), 1)
    trainer = module.DML(list(task.networks), task.loader, one, task.optimizers(), device=task.device.type)
    return lambda: trainer.train_students(epochs=1, plot_losses=False, save_model=False)


def lightning(task: Task) -> Work:
    """A LightningModule with manual optimisation; everything that can be turned off is."""
    pl: Any = importlib.import_module("lightning")

    class Pair(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.networks = nn.ModuleList(task.networks)

        def configure_optimizers(self) -> Any:
            return task.optimizers()

        def training_step(self, batch: Any, index: int) -> None:
            images, labels = batch
            logits = [network(images) for network in self.networks]
            for own, optimizer in enumerate(self.optimizers()):
                loss = mutual(logits[own], logits[1 - own], labels)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="gpu" if task.device.type == "cuda" else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    pair = Pair()
    return lambda: trainer.fit(pair, task.loader)


def _tensors(task: Task) -> tuple[Tensor, ...]:
    data = task.loader.dataset
    assert isinstance(data, TensorDataset)  # noqa: S101
    return data.tensors


COMPETITORS = (
    Competitor(
        "pytorch-dml", "pydml", "pip install pytorch-dml", pytorch_dml,
        "its own trainer and defaults (T = 3), fp32; no validation; its progress bar is swallowed",
    ),
    Competitor(
        "KD-Lib", "KD_Lib", "pip install --no-deps KD-Lib", kd_lib,
        "its defaults, fp32: mean squared error of logits, not detached; each of two students is run four times a "
        "step, for every term and the count of hits runs it anew. Loaded from its one file, because the package "
        "imports libraries of 2021. Validation on one image, the least it takes",
    ),
    Competitor(
        "Lightning loop", "lightning", "pip install lightning", lightning,
        "a LightningModule with manual optimisation, fp32; no logger, checkpoint or progress bar",
    ),
    Competitor("loop by hand", "", "", by_hand, "fp32, two forward and two backward passes, two optimizers, detached"),
)  # fmt: skip
