"""Data of one's own given to a trainer: loaders, lists and tuples, and what is said about those that do not fit."""

import hashlib

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from metamixer import DML, Batch, Cohort, MetaMixer, NoMix, Optim, Trainer, assess, evaluate
from metamixer.training.trainer import TrainingError
from tests import toys

CLASSES = 3


class Noisy(Dataset):
    """Images whose augmentation draws from PyTorch's generator, as torchvision's transforms do."""

    def __init__(self, count=20, labels=None):
        draw = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 1, 8, 8, generator=draw)
        self.labels = torch.arange(count) % CLASSES if labels is None else labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index] + 0.1 * torch.randn(1, 8, 8), self.labels[index]


def loader(data=None, **options):
    return DataLoader(data or Noisy(), **{"batch_size": 8, "shuffle": True, **options})


def trainer(folder=None, epochs=2, cohort=None, **settings):
    cohort = cohort or toys.cohort()
    mixer, loss = settings.pop("mixer", MetaMixer()), settings.pop("loss", DML())
    optim = Optim(lr=0.05, clip=5.0)
    return Trainer(cohort, mixer, loss, optim=optim, epochs=epochs, accelerator="cpu", folder=folder, **settings)


def weights_of(cohort):
    digest = hashlib.sha256()
    for value in cohort.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("own_generator", [False, True])
def test_a_plain_loader_trains_resumes_and_repeats(tmp_path, workers, own_generator):
    """Order and augmentation depend on the seed and the epoch alone, whatever was drawn before."""

    def data():
        torch.rand(3)
        draw = torch.Generator().manual_seed(torch.randint(99, ()).item()) if own_generator else None
        return loader(num_workers=workers, generator=draw)

    whole, again = trainer(tmp_path / "whole", epochs=3), trainer(tmp_path / "again", epochs=3)
    fitted = whole.fit(data(), loader(shuffle=False))
    assert fitted.step == 9
    assert fitted.val.images == 20
    stop = StopAfter(4)
    halted = trainer(tmp_path / "again", epochs=3, callbacks=[stop])
    stop.trainer = halted
    with pytest.raises(Stopped):
        halted.fit(data(), loader(shuffle=False))
    again.fit(data(), loader(shuffle=False), resume=True)
    assert weights_of(again.cohort) == weights_of(whole.cohort)
    other = trainer(epochs=3, seed=1)
    other.fit(data())
    assert weights_of(other.cohort) != weights_of(whole.cohort)


class Stopped(Exception):
    pass


class StopAfter:
    """Saves in the middle of an epoch, as a signal does, and leaves."""

    def __init__(self, step):
        self.step, self.trainer = step, None

    def on_start(self, start):
        pass

    def on_step(self, record):
        if record.step == self.step:
            self.trainer._keeper.save(self.trainer._run, "LATEST", whole=False)
            raise Stopped

    def on_epoch(self, record):
        pass

    def on_end(self):
        pass


IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % CLASSES
ONE_HOT = torch.eye(CLASSES)[LABELS]
pairs = [(IMAGES[:6], LABELS[:6]), (IMAGES[6:], LABELS[6:])]


@pytest.mark.parametrize(
    "batches",
    [
        pairs,
        [list(pair) for pair in pairs],
        [dict(zip(("pixel_values", "labels"), pair, strict=True)) for pair in pairs],
        [Batch(*pair) for pair in pairs],
        [(images, labels.int()) for images, labels in pairs],
        [(images, torch.eye(CLASSES)[labels]) for images, labels in pairs],
        [(images, torch.eye(CLASSES)[labels].long()) for images, labels in pairs],
        [(images, torch.eye(CLASSES)[labels].double()) for images, labels in pairs],
    ],
    ids=["tuples", "lists", "mappings", "batches", "int32", "soft", "one-hot", "soft float64"],
)
def test_the_same_data_in_many_forms_train_the_same_peers(batches):
    made = []
    for data in (pairs, batches):
        each = trainer()
        fitted = each.fit(data, data)
        made.append((weights_of(each.cohort), fitted.val.peers[0].accuracy))
        assert evaluate(each.cohort, data).peers == evaluate(each.cohort, iter(pairs)).peers
        assert assess(each.cohort, data).peers[0].accuracy == fitted.val.peers[0].accuracy
    assert made[0] == made[1]


def test_an_own_class_of_batches_may_give_tuples():
    class Own:
        def __len__(self):
            return 2

        def epoch(self, epoch, start=0):
            return iter(pairs[start:])

    made = [trainer(), trainer()]
    made[0].fit(Own())
    made[1].fit(pairs)
    assert weights_of(made[0].cohort) == weights_of(made[1].cohort)


class Endless(IterableDataset):
    def __iter__(self):
        return iter([])


BAD = {
    "a dataset": (TensorDataset(IMAGES, LABELS), "a TensorDataset gives single images; accepted: a DataLoader of"),
    "no length": (DataLoader(Endless()), "DataLoader have no length; accepted: a DataLoader of"),
    "a generator": ((pair for pair in pairs), "generator have no length"),
    "nothing": ([], "there is no batch to train on: the list is empty"),
    "three": ([(*pairs[0], LABELS)], "a batch is a tuple of Tensor, Tensor, Tensor; accepted: tensors"),
    "images alone": ([IMAGES], "a batch is a Tensor; accepted"),
    "no tensors": ([(IMAGES, [0, 1])], "a batch is a tuple of Tensor, list; accepted"),
    "fewer labels": ([(IMAGES, LABELS[:3])], "a batch has 12 images and 3 labels; accepted: equal numbers"),
    "an empty batch": ([(IMAGES[:0], LABELS[:0])], "a batch has 0 images and 0 labels"),
    "float labels": ([(IMAGES, LABELS.float())], r"labels are \(12,\) float32; accepted: class indices \(B,\)"),
    "segmentation": ([(IMAGES, torch.zeros(12, 8, 8).long())], r"labels are \(12, 8, 8\) int64; accepted"),
    "a column": ([(IMAGES, LABELS[:, None])], r"labels are \(12, 1\) int64; accepted.*soft labels \(B, 3\)"),
    "multi-hot": ([(IMAGES, torch.ones(12, CLASSES))], "row 0 of the targets sums to 3"),
    "out of range": ([(IMAGES, LABELS + 1)], "there is a label 3; accepted: 0 to 2, for 3 classes"),
    "uint8": ([(IMAGES.to(torch.uint8), LABELS)], r"peer 0 .* images are uint8; accepted: floating point, normalised"),
    "float64": (
        [(IMAGES.double(), LABELS)],
        r"images are float64 and the weights float32.*images.float\(\) or network",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_said_in_a_line_before_a_weight_moves(case):
    data, message = BAD[case]
    made = trainer()
    before = weights_of(made.cohort)
    with pytest.raises(TrainingError, match=message) as error:
        made.fit(data)
    assert "\n" not in str(error.value)
    assert weights_of(made.cohort) == before


def test_networks_in_double_precision():
    peers = [toys.network(seed).double() for seed in range(2)]
    with pytest.raises(TrainingError, match=r"images are float32 and the weights float64; .* images.double\(\) or"):
        trainer(cohort=Cohort(peers, stages=["0", "1"])).fit(pairs)
    made = trainer(cohort=Cohort(peers, stages=["0", "1"]))
    assert made.fit([(images.double(), labels) for images, labels in pairs]).step == 4


def test_one_class():
    peers = [nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 1)) for _ in range(2)]
    with pytest.raises(TrainingError, match=r"the peers have outputs for 1 class; accepted: two"):
        trainer(cohort=Cohort(peers, stages=["0"])).fit([(IMAGES, torch.zeros(12).long())])


def test_a_validation_set_that_can_be_used_once():
    with pytest.raises(TrainingError, match="can be gone through only once; accepted: a DataLoader or a list"):
        trainer().fit(pairs, iter(pairs))


def test_a_loader_that_ends_early():
    class Short(list):
        def __len__(self):
            return 5

    with pytest.raises(TrainingError, match="the Short ended after 2 batches of 5"):
        trainer().fit(Short(pairs))


def pooled_network(seed):
    """Batch norm after pooling: one image gives one value a channel."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (loader(Noisy(17)), {}),  # the last batch has one
        (loader(Noisy(16)), {"micro_batches": 8}),
        ([*pairs, (IMAGES[:1], LABELS[:1])], {}),
        (loader(Noisy(8), batch_size=1), {}),
    ],
    ids=["last batch", "micro-batches", "list", "batch size"],
)
def test_batch_norm_over_one_image_is_refused_before_the_first_step(data, settings):
    cohort = Cohort([pooled_network(0), pooled_network(1)], stages=["1"])
    made = trainer(cohort=cohort, **settings)
    before = weights_of(cohort)
    with pytest.raises(TrainingError, match=r"peer 0 cannot learn from one image: .* or a loader with drop_last=True"):
        made.fit(data)
    assert weights_of(cohort) == before


def test_one_image_is_fine_where_batch_norm_has_positions():
    assert trainer(epochs=1).fit(loader(Noisy(17))).step == 3
    dropping = trainer(epochs=1, cohort=Cohort([pooled_network(0), pooled_network(1)], stages=["1"]))
    assert dropping.fit(loader(Noisy(17), drop_last=True)).step == 2


def test_a_batch_with_fewer_images_than_parts():
    with pytest.raises(TrainingError, match="the smallest batch has 1 images for 2 micro-batches; accepted: larger"):
        trainer(micro_batches=2).fit(loader(Noisy(17)))


class Answers(nn.Module):
    def __init__(self, form, training_only):
        super().__init__()
        self.stage, self.head, self.form, self.only = nn.Conv2d(1, 4, 3), nn.Linear(144, CLASSES), form, training_only

    def forward(self, x):
        logits = self.head(self.stage(x).flatten(1))
        return self.form(logits) if self.training or not self.only else logits


WRONG = {
    "dict": (lambda logits: {"out": logits}, r"returns a dict of \(\d+, 3\) for \d+ images; accepted: logits"),
    "list": (lambda logits: [logits[..., None], logits], r"returns a list of \(\d+, 3, 1\) of \(\d+, 3\)"),
    "tuple": (lambda logits: (logits, logits), "returns a tuple of"),
    "maps": (lambda logits: logits[:, :, None, None].expand(-1, -1, 8, 8), r"returns a Tensor of \(\d+, 3, 8, 8\)"),
}


@pytest.mark.parametrize("training_only", [False, True])
@pytest.mark.parametrize("kind", WRONG)
def test_outputs_that_are_no_logits(kind, training_only):
    form, message = WRONG[kind]
    made = trainer(cohort=Cohort([Answers(form, training_only) for _ in range(2)], stages=["stage"]), mixer=NoMix())
    before = weights_of(made.cohort)
    with pytest.raises(TrainingError, match=message):
        made.fit(pairs)
    assert weights_of(made.cohort) == before


@pytest.mark.parametrize("training_only", [False, True])
def test_outputs_that_hold_logits(training_only):
    forms = [lambda logits: {"logits": logits, "aux": logits}, lambda logits: logits]
    found = []
    for form in forms:
        torch.manual_seed(0)
        made = trainer(cohort=Cohort([Answers(form, training_only) for _ in range(2)], stages=["stage"]))
        made.fit(pairs)
        found.append(weights_of(made.cohort))
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore:.*pretrained:UserWarning")
def test_auxiliary_outputs_of_torchvision():
    """GoogLeNet puts out a named tuple in training: its main logits count, the auxiliary heads do not learn."""
    torch.manual_seed(0)
    peers = [torchvision.models.googlenet(num_classes=CLASSES, aux_logits=True, init_weights=False) for _ in range(2)]
    cohort = Cohort(peers)
    before = {name: value.clone() for name, value in peers[0].named_parameters()}
    images = torch.randn(4, 3, 64, 64)
    trainer(cohort=cohort, epochs=3, mixer=NoMix()).fit([(images, torch.tensor([0, 1, 2, 0]))])
    moved = {name.split(".")[0] for name, value in peers[0].named_parameters() if not torch.equal(value, before[name])}
    assert {"conv1", "fc"} <= moved
    assert not {"aux1", "aux2"} & moved
