"""Peers inside of a Hugging Face Trainer: one module that returns a loss and logits, as its own models do.

    pip install transformers accelerate
    python examples/hf_trainer.py --epochs 5

On several GPUs start it with ``torchrun`` or ``accelerate launch``: started plainly, the Trainer would use
DataParallel, whose copies of a network share the cohort's hooks.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainingArguments, set_seed

from metamixer import DML, Batch, Cohort, MetaMixer, total, train_step
from metamixer.data import ImageSet, load, normalise
from metamixer.models import resnet8, wrn_16_1


class Peers(nn.Module):
    """Networks that teach each other while they train, and are looked at without mixing otherwise."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.cohort = Cohort(networks)
        # Mild, as short trainings need, and off in the second half of them: `PeerTrainer` passes the progress.
        self.mixer, self.loss = MetaMixer(local_probability=0.3, global_probability=0.3, until=0.5), DML()
        self.progress: float | None = None
        self.terms: dict[str, Tensor] = {}

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Images ``(B, C, H, W)`` -> loss, and logits ``(B, P, classes)``: the Trainer joins batches along axis 0."""
        if self.training:
            step = train_step(self.cohort, self.mixer, self.loss, Batch(images, labels), progress=self.progress)
            outputs, self.terms = step.outputs, {name: term.detach() for name, term in step.terms.items()}
            return {"loss": total(step.terms), "logits": outputs.logits.transpose(0, 1)}
        logits = self.cohort(images).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)))
        return {"loss": loss, "logits": logits.transpose(0, 1)}


class PeerTrainer(Trainer):
    """Tells the module how much of training is done, and logs each peer's terms beside the loss."""

    def training_step(self, *args, **settings) -> Tensor:
        """One step."""
        self.model.progress = self.state.global_step / self.state.max_steps
        return super().training_step(*args, **settings)

    def log(self, logs: dict[str, float], *args, **settings) -> None:
        """The terms are those of the last step. A callback would come too late: the loggers are called before it."""
        terms = self.model.terms.items() if "loss" in logs else ()
        each = {f"{name}_{peer}": value for name, term in terms for peer, value in enumerate(term.tolist())}
        super().log({**logs, **each}, *args, **settings)


def accuracies(prediction: EvalPrediction) -> dict[str, float]:
    """Of every peer and of the ensemble."""
    logits = torch.as_tensor(prediction.predictions).float()  # (N, P, classes)
    votes = [*logits.argmax(-1).unbind(1), logits.softmax(-1).mean(1).argmax(-1)]
    labels = torch.as_tensor(prediction.label_ids)
    shares = [float((vote == labels).float().mean()) for vote in votes]
    names = [*(f"accuracy_{peer}" for peer in range(len(shares) - 1)), "accuracy_ensemble"]
    return dict(zip(names, shares, strict=True))


def main(words: Sequence[str] | None = None) -> tuple[float, float]:
    """Accuracy of the ensemble on the test images before and after training."""
    parser = argparse.ArgumentParser(description="train two peers with a Hugging Face Trainer")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--limit", type=int, default=None, help="training images of each class")
    parser.add_argument("--size", type=int, default=None, help="side in pixels; left out: as the images are")
    parser.add_argument("--out", default="runs/hf")
    chosen = parser.parse_args(words)
    set_seed(0)
    data = load("fashion-mini", train_limit=chosen.limit, image_size=chosen.size)

    def rows(images: ImageSet) -> list[dict[str, Tensor]]:
        pixels = normalise(images.fetch(torch.arange(len(images))), data.mean, data.std)
        return [{"images": image, "labels": label} for image, label in zip(pixels, images.labels, strict=True)]

    model = Peers([network(num_classes=len(data.classes), in_channels=1) for network in (resnet8, wrn_16_1)])
    arguments = TrainingArguments(
        chosen.out,
        num_train_epochs=chosen.epochs,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        learning_rate=3e-3,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        logging_strategy="epoch",
        max_grad_norm=0,  # it clips all peers by one norm: one that stumbles would slow the others
        # No dataloader_drop_last: it would leave out test images as well.
    )
    trainer = PeerTrainer(
        model,
        arguments,
        train_dataset=rows(data.train),
        eval_dataset=rows(data.val),  # looked at in every epoch; the test images only before and after
        compute_metrics=accuracies,
    )
    test = rows(data.test)
    before = trainer.predict(test).metrics["test_accuracy_ensemble"]
    trainer.train()
    metrics = trainer.predict(test).metrics
    print({name: round(value, 3) for name, value in metrics.items() if "accuracy" in name})
    print(f"test accuracy of the ensemble: {before:.1%} before, {metrics['test_accuracy_ensemble']:.1%} after")
    return before, metrics["test_accuracy_ensemble"]  # model.cohort.peers[0] is an ordinary network


if __name__ == "__main__":
    main()
