"""The default features: the penultimate layer of a small classifier, trained once per data set by expost itself.

Inception's weights know photographs of 1000 classes; for digits and other small images the field trains a classifier on the data and uses
one of its last layers (Heusel et al.'s advice for MNIST; Bińkowski et al. 2018, "Demystifying MMD GANs", sec. 5, a LeNet). That makes a
different score for every network, so this one is fixed:

* a recipe that is a function of the image shape and the number of images (:meth:`Recipe.of`), trained until it is good enough
  (:mod:`~expost.evaluate.features.classifier_training`) and kept in the cache folder under the hash of data and recipe; what it costs is said before, and
  an interrupted training goes on when it is needed again;
* trained on the CPU by one thread with keyed seeds, whatever the caller's thread count, default dtype or device: on one machine the
  weights, and therefore the hash, are the same bit for bit. Another processor or torch version rounds differently and gets *another*
  hash: exchange the file, not the recipe, when scores are to be compared between machines;
* features divided by their root mean square norm on the training images, so that E|f|² = 1 there and a Fréchet distance of 1 is as far as
  all of the data from nothing;
* the test accuracy is stored with the weights and printed with the extractor: features of a classifier that does not classify say little.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expost.evaluate.features.base import Extractor, RandomNetwork, _moved, extract, images, rms_norm
from expost.evaluate.features.classifier_training import VERSION, Recipe, Training
from expost.evaluate.features.networks import SmallConvNet
from expost.seeds import permutation, seeded
from expost.system.files import cache_folder, cached, load_tensors, save_tensors
from expost.system.hashes import content_hash, file_name, state_hash
from expost.system.processes import Processes
from expost.system.progress import Bar

__all__ = ["differentiable_logits", "Recipe", "TrainedClassifier", "classifier_extractor", "default_extractor"]

Shape = tuple[int, int, int]


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
        save_tensors(path, self.network.state_dict(), self._facts())

    def _facts(self) -> dict[str, Any]:
        names = ("name", "hash", "shape", "classes", "dim", "scale", "accuracy", "tested", "trained", "record")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def load(cls, path: str | Path) -> TrainedClassifier:
        """Read what :meth:`save` wrote; ``ValueError`` if the file is damaged or its hash does not fit its weights."""
        tensors, facts = load_tensors(path, "a trained classifier")
        if "accuracy" not in facts:
            raise ValueError(f"{path} is not a trained classifier: pass a file written by TrainedClassifier.save")
        return cls._of(tensors, facts, str(path))

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], facts: dict[str, Any], where: str) -> TrainedClassifier:
        network = cls._empty(facts)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"the weights in {where} do not fit its network: delete the file and train again") from error
        if _identify(network, facts["scale"]) != facts["hash"]:
            raise ValueError(f"the weights in {where} are not those its hash {facts['hash']} names: delete the file and train again")
        return cls(network=network.eval().requires_grad_(False), **facts | {"shape": tuple(facts["shape"])})

    @staticmethod
    def _empty(facts: dict[str, Any]) -> SmallConvNet:
        with seeded("load"):
            return SmallConvNet(tuple(facts["shape"]), facts["classes"], facts["dim"], facts["record"]["recipe"]["width"])


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
) -> TrainedClassifier:
    """The classifier of a data set: from the cache folder, or trained now and kept there.

    Args:
        name: of the data set; the extractor is called ``classifier-<name>``.
        train_x, test_x: images (n, C, H, W), uint8 or floats in [0, 1].
        train_labels, test_labels: integers 0 ... K-1, (n,).
        data_hash: hash of images and labels; computed from them if not given.
        recipe: how to train; :meth:`Recipe.of` by default.
        cache: folder in which ``classifiers/`` is made; the user's cache folder by default.

    Of several processes all must call this; the main one trains, and the others get its weights.

    Raises:
        KeyboardInterrupt: after the first SIGINT or SIGTERM, between two steps; the next call goes on from there.
    """
    recipe = recipe or Recipe.of(_shape(train_x), len(train_x))
    _check_labels(train_x, train_labels, test_x, test_labels)
    data_hash = data_hash or content_hash(train_x, train_labels, test_x, test_labels)
    key = state_hash({}, {"data": data_hash, "recipe": asdict(recipe), "version": VERSION, "n": [len(train_x), len(test_x)]})
    path = cache_folder("classifiers", root=cache) / file_name(name, key)
    unfinished = path.with_suffix(".training.safetensors")

    def write(file: Path, trained: TrainedClassifier) -> None:
        trained.save(file)
        unfinished.unlink(missing_ok=True)

    def train(interrupted: Callable[[], bool]) -> TrainedClassifier:
        args = (f"classifier-{name}", train_x, train_labels, test_x, test_labels, data_hash, recipe, (unfinished, key), interrupted)
        return cached(path, TrainedClassifier.load, lambda: _train(*args), write)

    processes = Processes()
    trained = processes.led(train)
    return trained if trained and processes.world == 1 else _sent(processes, trained)


def default_extractor(
    name: str,
    train_x: Tensor,
    train_labels: Tensor | None = None,
    test_x: Tensor | None = None,
    test_labels: Tensor | None = None,
    data_hash: str | None = None,
    *,
    cache: str | Path | None = None,
) -> Extractor:
    """The extractor scores use unless told otherwise: the data set's classifier, or without labels a calibrated random network."""
    if train_labels is None or test_x is None or test_labels is None:
        return RandomNetwork(_shape(train_x)).calibrated(train_x)
    return classifier_extractor(name, train_x, train_labels, test_x, test_labels, data_hash, cache=cache)


# --------------------------------------------------------------------------------------------------------------------------- training


def _train(
    name: str, x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, data_hash: str, recipe: Recipe, unfinished: tuple[Path, str],
    interrupted: Callable[[], bool],
) -> TrainedClassifier:  # fmt: skip
    shape, classes = _shape(x), int(y.max()) + 1
    x, y, test_x, test_y = x.cpu(), y.cpu().long(), test_x.cpu(), test_y.cpu().long()
    with _same_bits("classifier", recipe.seed):
        training = Training(x, y, classes, recipe, name=name, file=unfinished[0], key=unfinished[1])
        network = training.run(interrupted)
        draft = TrainedClassifier(name, "", recipe.dim, shape, classes, 1.0, 0.0, len(test_x), len(x), network)
        scale = rms_norm(extract(draft, x[permutation(len(x), "calibrate")[:10_000]]))
        with Bar(len(test_x), what="testing the classifier", after=1.0) as bar:
            right = [draft.logits(test_x[rows]).argmax(1) == test_y[rows] for rows in bar.over(torch.arange(len(test_x)).split(250), len)]
    record = {
        "recipe": asdict(recipe),
        "version": VERSION,
        "data": data_hash,
        "torch": torch.__version__,
        "seconds": round(training.seconds, 1),
        "passes": training.passes,
        "held out": len(training.held),
    }
    accuracy = float(torch.cat(right).double().mean())
    fingerprint = _identify(network, scale)
    return TrainedClassifier(name, fingerprint, recipe.dim, shape, classes, scale, accuracy, len(test_x), len(x), network, record)


def _sent(processes: Processes, trained: TrainedClassifier | None) -> TrainedClassifier:
    """The main process's classifier, in every process."""
    text = torch.tensor(list(json.dumps(trained._facts()).encode()) if trained else [], dtype=torch.uint8)
    size = int(processes.from_main(torch.tensor(len(text)).to(processes.place)))
    text = processes.from_main((text if trained else torch.empty(size, dtype=torch.uint8)).to(processes.place))
    facts = json.loads(bytes(text.tolist()))
    network = trained.network if trained else TrainedClassifier._empty(facts)
    state = {name: processes.from_main(value.to(processes.place)).cpu() for name, value in network.state_dict().items()}
    return trained or TrainedClassifier._of(state, facts, "what the main process sent")


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


def differentiable_logits(classifier: TrainedClassifier, x: Tensor) -> Tensor:
    """As ``classifier.logits``, but differentiable."""
    logits: Tensor = classifier.network(images(x, classifier.shape))
    return logits
