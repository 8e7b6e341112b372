"""The default features: the penultimate layer of a small classifier, trained once per data set by expost itself.

Inception's weights know photographs of 1000 classes; for digits and other small images the field trains a classifier on the data and uses
one of its last layers (Heusel et al.'s advice for MNIST; Bińkowski et al. 2018, "Demystifying MMD GANs", sec. 5, a LeNet). That makes a
different score for every network, so this one is fixed:

* a recipe that is a function of the image shape and the number of images (:meth:`Recipe.of`), trained for a fixed number of image passes
  (under a minute on one core for MNIST, seconds for small data) and kept in the cache folder under the hash of data and recipe;
* trained on the CPU by one thread with keyed seeds, whatever the caller's thread count, default dtype or device: on one machine the
  weights, and therefore the hash, are the same bit for bit. Another processor or torch version rounds differently and gets *another*
  hash: exchange the file, not the recipe, when scores are to be compared between machines;
* features divided by their root mean square norm on the training images, so that E|f|² = 1 there and a Fréchet distance of 1 is as far as
  all of the data from nothing;
* the test accuracy is stored with the weights and printed with the extractor: features of a classifier that does not classify say little.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from expost.evaluate.features import Extractor, RandomNetwork, _moved, extract, images, rms_norm
from expost.evaluate.networks import SmallConvNet
from expost.files import cache_folder, cached, load_tensors, save_tensors
from expost.hashes import content_hash, file_name, state_hash
from expost.seeds import generator, permutation, seeded

__all__ = ["Recipe", "TrainedClassifier", "classifier_extractor", "default_extractor"]

Shape = tuple[int, int, int]
#: Part of the cache key: raise it whenever a change of code changes the weights.
VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """How the classifier is trained: AdamW under one learning-rate cycle (Smith and Topin 2019), cross-entropy, shifted copies.

    Args:
        epochs: passes over the training images.
        width: channels of the first layers of the network.
        dim: features.
        batch: images per step.
        rate: highest learning rate.
        decay: decoupled weight decay.
        shift: images are shifted by up to this many pixels each way (zeros come in).
        flip: images are mirrored at random.
        seed: of weights, order and shifts.
    """

    epochs: float
    width: int = 32
    dim: int = 128
    batch: int = 128
    rate: float = 3e-3
    decay: float = 5e-4
    shift: int = 2
    flip: bool = False
    seed: int = 0

    @classmethod
    def of(cls, shape: Shape, n: int) -> Recipe:
        """The default recipe for n training images of ``shape``: at most 30 epochs and 250 000 image passes.

        Colour images, taken for photographs, get 320 000 passes and are mirrored. Test accuracy of seed 0 on two cores: 99.4 % on MNIST,
        77 % on 20 000 JPEG-compressed images of CIFAR-10, 99 % on scikit-learn's digits.
        """
        colour, many = shape[0] == 3, n > 30_000
        return cls(
            epochs=min(30.0, (320_000 if colour else 250_000) / n),
            batch=128 if many else 64,
            rate=5e-3 if many else 3e-3,
            shift=max(1, min(shape[1:]) // 10),
            flip=colour,
        )


@dataclass(frozen=True, eq=False)
class TrainedClassifier(Extractor):
    """Features and class probabilities of a trained :class:`SmallConvNet`; made by :func:`classifier_extractor` or :meth:`load`.

    Attributes:
        accuracy: share of the test images classified rightly.
        tested: their number.
        trained: number of training images.
        classes: number of classes, labelled 0 ... classes - 1.
        scale: root mean square norm of the raw features on training images.
        record: everything else that was stored: recipe, data hash, torch version, seconds.
    """

    name: str
    hash: str
    dim: int
    shape: Shape
    classes: int
    scale: float
    accuracy: float
    tested: int
    trained: int
    network: SmallConvNet = field(repr=False)
    record: dict[str, object] = field(default_factory=dict, repr=False)

    def to(self, device: torch.device | str) -> TrainedClassifier:
        return _moved(self, device)

    def features(self, x: Tensor) -> Tensor:
        return self.network.features(x) / self.scale

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Unnormalised log-probabilities (n, classes) of images (n, C, H, W), uint8 or floats in [0, 1], in one batch."""
        return self.network(images(x, self.shape))

    def probabilities(self, x: Tensor) -> Tensor:
        """p(class | x), (n, classes), rows sum to one."""
        return self.logits(x).softmax(1)

    def __str__(self) -> str:
        return f"{self.identity} ({self.dim} features, test accuracy {100 * self.accuracy:.2f} % of {self.tested} images)"

    def save(self, path: str | Path) -> None:
        """Write weights and record as safetensors."""
        facts = {k: getattr(self, k) for k in ("name", "hash", "shape", "classes", "dim", "scale", "accuracy", "tested", "trained")}
        save_tensors(path, self.network.state_dict(), facts | {"record": self.record})

    @classmethod
    def load(cls, path: str | Path) -> TrainedClassifier:
        """Read what :meth:`save` wrote; ``ValueError`` if the file is damaged or its hash does not fit its weights."""
        tensors, facts = load_tensors(path, "a trained classifier")
        if "accuracy" not in facts:
            raise ValueError(f"{path} is not a trained classifier: pass a file written by TrainedClassifier.save")
        recipe = facts["record"]["recipe"]
        with seeded("load"):
            network = SmallConvNet(tuple(facts["shape"]), facts["classes"], facts["dim"], recipe["width"])
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"the weights in {path} do not fit its network: delete the file and train again") from error
        if _identify(network, facts["scale"]) != facts["hash"]:
            raise ValueError(f"the weights in {path} are not those its hash {facts['hash']} names: delete the file and train again")
        facts["shape"] = tuple(facts["shape"])
        return cls(network=network.eval().requires_grad_(False), **facts)


def classifier_extractor(
    name: str,
    train_x: Tensor,
    train_labels: Tensor,
    test_x: Tensor,
    test_labels: Tensor,
    data_hash: str | None = None,
    *,
    recipe: Recipe | None = None,
    cache: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> TrainedClassifier:
    """The classifier of a data set: from the cache folder, or trained now and kept there.

    Args:
        name: of the data set; the extractor is called ``classifier-<name>``.
        train_x, test_x: images (n, C, H, W), uint8 or floats in [0, 1].
        train_labels, test_labels: integers 0 ... K-1, (n,).
        data_hash: hash of images and labels; computed from them if not given.
        recipe: how to train; :meth:`Recipe.of` by default.
        cache: folder in which ``classifiers/`` is made; the user's cache folder by default.
        progress: called with a sentence now and then (``print`` will do).
    """
    recipe = recipe or Recipe.of(_shape(train_x), len(train_x))
    _check_labels(train_x, train_labels, test_x, test_labels)
    data_hash = data_hash or content_hash(train_x, train_labels, test_x, test_labels)
    key = state_hash({}, {"data": data_hash, "recipe": asdict(recipe), "version": VERSION, "n": [len(train_x), len(test_x)]})
    path = cache_folder("classifiers", root=cache) / file_name(name, key)
    say = progress or (lambda _: None)
    return cached(
        path,
        TrainedClassifier.load,
        lambda: _train(f"classifier-{name}", train_x, train_labels, test_x, test_labels, data_hash, recipe, say),
        lambda file, trained: trained.save(file),
    )


def default_extractor(
    name: str,
    train_x: Tensor,
    train_labels: Tensor | None = None,
    test_x: Tensor | None = None,
    test_labels: Tensor | None = None,
    data_hash: str | None = None,
    *,
    cache: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Extractor:
    """The extractor scores use unless told otherwise: the data set's classifier, or without labels a calibrated random network."""
    if train_labels is None or test_x is None or test_labels is None:
        return RandomNetwork(_shape(train_x)).calibrated(train_x)
    return classifier_extractor(name, train_x, train_labels, test_x, test_labels, data_hash, cache=cache, progress=progress)


# --------------------------------------------------------------------------------------------------------------------------- training


def _train(
    name: str, x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, data_hash: str, recipe: Recipe, progress: Callable[[str], None]
) -> TrainedClassifier:
    shape, classes, began = _shape(x), int(y.max()) + 1, time.monotonic()
    x, y, test_x, test_y = x.cpu(), y.cpu().long(), test_x.cpu(), test_y.cpu().long()
    with _same_bits("classifier", recipe.seed):
        network = SmallConvNet(shape, classes, recipe.dim, recipe.width)
        _fit(network, x, y, recipe, progress)
        network.eval().requires_grad_(False)
        draft = TrainedClassifier(name, "", recipe.dim, shape, classes, 1.0, 0.0, len(test_x), len(x), network)
        scale = rms_norm(extract(draft, x[permutation(len(x), "calibrate")[:10_000]]))
        right = [draft.logits(batch).argmax(1) == labels for batch, labels in zip(test_x.split(250), test_y.split(250), strict=True)]
    accuracy = float(torch.cat(right).double().mean())
    record = {
        "recipe": asdict(recipe),
        "version": VERSION,
        "data": data_hash,
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - began, 1),
    }
    progress(f"{name}: test accuracy {100 * accuracy:.2f} % of {len(test_x)} images after {record['seconds']} s")
    fingerprint = _identify(network, scale)
    return TrainedClassifier(name, fingerprint, recipe.dim, shape, classes, scale, accuracy, len(test_x), len(x), network, record)


def _fit(network: SmallConvNet, x: Tensor, y: Tensor, recipe: Recipe, progress: Callable[[str], None]) -> None:
    """One learning-rate cycle of AdamW; the rate ends at zero, so the running statistics of the normalisation settle."""
    batch = min(recipe.batch, len(x))
    per_epoch = len(x) // batch
    steps = max(1, round(recipe.epochs * per_epoch))
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.decay, foreach=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=steps, pct_start=0.2, cycle_momentum=False)
    draws = generator("classifier-shifts", recipe.seed)
    for step in range(steps):
        epoch, at = divmod(step, per_epoch)
        if at == 0:
            order = permutation(len(x), "classifier-order", recipe.seed, epoch)
        rows = order[at * batch : (at + 1) * batch]
        loss = F.cross_entropy(network(_shifted(images(x[rows]), recipe, draws)), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        cycle.step()
        if at == per_epoch - 1:
            progress(f"training the classifier: epoch {epoch + 1} of {math.ceil(recipe.epochs)}, loss {float(loss.detach()):.3f}")
    if not math.isfinite(float(loss.detach())):
        raise ValueError("the classifier's loss is not finite: pass a recipe with a lower rate")


def _shifted(x: Tensor, recipe: Recipe, draws: torch.Generator) -> Tensor:
    """Every image shifted by its own offset, and mirrored by its own coin."""
    n, _, height, width = x.shape
    windows = F.pad(x, (recipe.shift,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(2 * recipe.shift + 1, (2, n), generator=draws)
    x = windows[torch.arange(n), :, down, right]
    if recipe.flip:
        x = torch.where(torch.rand(n, generator=draws)[:, None, None, None] < 0.5, x.flip(3), x)
    return x


@contextmanager
def _same_bits(*keys: str | int) -> Iterator[None]:
    """Training under fixed conditions (one thread, CPU, keyed seed, gradients on, no autocast); the caller's are restored.

    Sums over a batch are split between threads, so their round-off depends on the thread count; one thread is the count everybody has.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False), torch.device("cpu"), seeded(*keys):
            yield
    finally:
        torch.set_num_threads(threads)


def _identify(network: SmallConvNet, scale: float) -> str:
    return state_hash(network.state_dict(), {"kind": "classifier", "scale": scale})


def _shape(x: Tensor) -> Shape:
    if x.dim() != 4:
        raise ValueError(
            f"images must be of shape (n, C, H, W), not {tuple(x.shape)}: reshape them, or wrap your own features with Wrapped"
        )
    return (x.shape[1], x.shape[2], x.shape[3])


def _check_labels(train_x: Tensor, train_labels: Tensor, test_x: Tensor, test_labels: Tensor) -> None:
    for x, labels, split in ((train_x, train_labels, "training"), (test_x, test_labels, "test")):
        if labels.shape != (len(x),) or labels.is_floating_point():
            raise ValueError(f"{split} labels must be {len(x)} integers, one per image, not {labels.dtype} of shape {tuple(labels.shape)}")
        if len(x) < 2:
            raise ValueError(f"{len(x)} {split} images are too few for a classifier: use RandomNetwork or Pixels")
    classes = int(train_labels.max()) + 1
    if int(min(train_labels.min(), test_labels.min())) < 0 or int(test_labels.max()) >= classes or classes < 2:
        raise ValueError(
            f"labels must count from 0, at least two classes, all of them in the training part (found {classes}): relabel them"
        )
