"""Peers inside of a LightningModule: Lightning's Trainer keeps the loop, the devices, the checkpoints and the logs.

pip install lightning
python examples/lightning_module.py --epochs 5 --out runs/lightning
"""

import argparse
from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metamixer import DML, Batch, Cohort, MetaMixer, total, train_step
from metamixer.data import ImageSet, load, normalise
from metamixer.models import resnet8, wrn_16_1


class Peers(L.LightningModule):
    """Networks of the same classes that teach each other; batches are (images, labels)."""

    def __init__(self, networks: Sequence[nn.Module], lr: float = 3e-3) -> None:
        super().__init__()
        self.lr = lr
        self.cohort = Cohort(networks)
        # Mild, as short trainings need; the loss is a module too, because some methods have weights of their own.
        self.mixer, self.loss = MetaMixer(local_probability=0.3, global_probability=0.3, until=0.5), DML()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Draw a plan, run the peers, and compare them."""
        progress = self.global_step / self.trainer.estimated_stepping_batches  # mixing stops half-way
        terms = train_step(self.cohort, self.mixer, self.loss, Batch(*batch), progress=progress).terms
        each = {f"train/{name}/{peer}": value for name, term in terms.items() for peer, value in enumerate(term)}
        self.log_dict(each)
        return total(terms)

    def _look(self, split: str, images: Tensor, labels: Tensor) -> None:
        logits = self.cohort(images).logits  # no plan: nothing is mixed; Lightning has called eval() and no_grad()
        right = (logits.argmax(-1) == labels).float().mean(-1)  # (P,)
        ensemble = (logits.softmax(-1).mean(0).argmax(-1) == labels).float().mean()
        metrics = {f"{split}/{peer}": value for peer, value in enumerate(right)}
        metrics |= {f"{split}/ensemble": ensemble, f"{split}/peers": right.mean()}
        # Averaged over batches by their sizes, and over processes.
        self.log_dict(metrics, batch_size=len(labels), sync_dist=True, prog_bar=True)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Accuracies on the validation split, which chooses the checkpoint."""
        self._look("val", *batch)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Accuracies on the test split, which chooses nothing."""
        self._look("test", *batch)

    def configure_optimizers(self) -> dict:
        """One optimizer for all peers (gradients do not cross) and for the weights of the loss, if it has any."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(words: Sequence[str] | None = None) -> tuple[float, float]:
    """Accuracy of the peers on the test images before and after training."""
    parser = argparse.ArgumentParser(description="train two peers with Lightning")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--limit", type=int, default=None, help="training images of each class")
    parser.add_argument("--size", type=int, default=None, help="side in pixels; left out: as the images are")
    parser.add_argument("--out", default=None, help="a folder for the best epoch and the log; left out: none is kept")
    chosen = parser.parse_args(words)
    L.seed_everything(0, verbose=False)
    data = load("fashion-mini", train_limit=chosen.limit, image_size=chosen.size)

    def batches(images: ImageSet, training: bool = False) -> DataLoader:
        pixels = normalise(images.fetch(torch.arange(len(images))), data.mean, data.std)
        return DataLoader(TensorDataset(pixels, images.labels), 64, shuffle=training, drop_last=training)

    module = Peers([network(num_classes=len(data.classes), in_channels=1) for network in (resnet8, wrn_16_1)])
    keep = [ModelCheckpoint(chosen.out, monitor="val/peers", mode="max")] if chosen.out else []
    trainer = L.Trainer(
        max_epochs=chosen.epochs,
        callbacks=keep,
        enable_checkpointing=bool(keep),
        logger=CSVLogger(chosen.out) if chosen.out else False,
        log_every_n_steps=10,
    )
    test = batches(data.test)
    before = trainer.test(module, test, verbose=False)[0]["test/peers"]
    trainer.fit(module, batches(data.train, training=True), batches(data.val))
    best = {"ckpt_path": "best"} if keep else {}
    after = trainer.test(module, test, **best)[0]["test/peers"]
    print(f"test accuracy of the peers: {before:.1%} before, {after:.1%} after")
    return before, after  # module.cohort.peers[0] is an ordinary network


if __name__ == "__main__":
    main()
