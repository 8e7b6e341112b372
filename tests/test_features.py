"""Extractors: identity, determinism, batch independence, input checks, caching; the trained classifier; Inception's graph."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from expost.evaluate.controls import ceiling, controls, floor, shuffle_pixels
from expost.evaluate.features import inception as inception_module
from expost.evaluate.features.base import Extractor, Pixels, RandomNetwork, Wrapped, cached_features, extract, images
from expost.evaluate.features.classifier import Recipe, TrainedClassifier, classifier_extractor, default_extractor
from expost.evaluate.features.inception import Inception2015, InceptionNetwork, resize_tf1
from expost.evaluate.features.networks import SmallConvNet
from expost.evaluate.metrics.frechet import frechet_distance
from expost.system.hashes import content_hash

Split = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def digits() -> tuple[Split, Split]:
    """scikit-learn's 8 x 8 digits, 1200 to train and 597 to test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images * 255 / 16).round().to(torch.uint8)[:, None]
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return (x[order[:1200]], y[order[:1200]]), (x[order[1200:]], y[order[1200:]])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def classifier(digits: tuple[Split, Split], cache: Path) -> TrainedClassifier:
    return classifier_extractor("digits", *digits[0], *digits[1], cache=cache)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under the published names."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = InceptionNetwork()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file({k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}, path)
    return path


def every_extractor(classifier: TrainedClassifier) -> list[Extractor]:
    shape = (1, 8, 8)
    pooled = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Flatten())
    return [
        classifier,
        Pixels(shape),
        RandomNetwork(shape, seed=3),
        Wrapped(pooled, name="convolution", dim=216),
        Wrapped(lambda x: x.mean((2, 3)), name="mean", dim=1, version="1"),
    ]


# ------------------------------------------------------------------------------------------------------------------ every extractor


def test_every_extractor_keeps_the_contract(classifier: TrainedClassifier, digits: tuple[Split, Split]) -> None:
    x = digits[1][0][:50]
    for extractor in every_extractor(classifier):
        f = extract(extractor, x)
        assert f.shape == (50, extractor.dim)
        assert f.dtype == torch.float32
        assert not f.requires_grad
        assert len(extractor.hash) == 12
        assert int(extractor.hash, 16) >= 0
        assert extractor.label == f"FD[{extractor.name}@{extractor.hash}]"
        assert extractor.identity in str(extractor)
        assert torch.equal(f, extract(extractor, x)), f"{extractor} is not deterministic"
        assert torch.equal(f, extract(extractor, x.float() / 255)), f"{extractor} tells uint8 from floats"
        for batch in (1, 7):
            torch.testing.assert_close(extract(extractor, x, batch_size=batch), f, rtol=1e-4, atol=1e-5)
        assert extract(extractor, x[:0]).shape == (0, extractor.dim)
        with pytest.raises((AttributeError, TypeError)):
            extractor.name = "other"


def test_equal_images_have_equal_features_wherever_they_stand(classifier: TrainedClassifier, digits: tuple[Split, Split]) -> None:
    """By which sets that share images are recognised: also the last one to three images of a set, which make a small batch."""
    x = digits[0][0][:60]
    for judge in (classifier, RandomNetwork((1, 8, 8), dim=16), Pixels((1, 8, 8))):
        whole, order = extract(judge, x), torch.randperm(60, generator=torch.Generator().manual_seed(0))
        assert torch.equal(extract(judge, x[order]), whole[order])
        for size in (1, 3, 7, 59):
            assert torch.equal(extract(judge, x, batch_size=size), whole), (judge.name, size)
        broken = x.float() / 255
        broken[59, 0, 0, 0] = torch.nan
        with pytest.raises(ValueError, match="59"):
            extract(judge, broken, batch_size=59)


def test_hashes_name_what_determines_the_features(classifier: TrainedClassifier) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    variants = [
        Pixels((1, 8, 8)),
        Pixels((1, 4, 16)),
        RandomNetwork((1, 8, 8)),
        RandomNetwork((1, 8, 8), seed=1),
        RandomNetwork((1, 8, 8), scale=2.0),
        Wrapped(linear, name="a", dim=5),
        Wrapped(linear, name="b", dim=5),
        Wrapped(linear, name="a", dim=5, version="2"),
        Wrapped(other, name="a", dim=5),
        classifier,
    ]
    assert len({e.hash for e in variants}) == len(variants)
    assert RandomNetwork((1, 8, 8)).hash == RandomNetwork((1, 8, 8)).hash
    assert Wrapped(linear, name="a", dim=5).hash == variants[5].hash


def test_a_wrapped_module_is_copied_and_put_in_evaluation_mode() -> None:
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten())
    wrapped = Wrapped(module, name="norm", dim=16)
    x = torch.rand(5, 1, 4, 4)
    before = wrapped(x)
    assert module.training
    with torch.no_grad():
        module[0].weight.fill_(7.0)
    assert torch.equal(wrapped(x), before)
    torch.testing.assert_close(before, x.flatten(1), rtol=1e-4, atol=1e-4)


def test_global_state_is_left_alone(digits: tuple[Split, Split], tmp_path: Path) -> None:
    (x, y), (tx, ty) = digits
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    RandomNetwork((1, 8, 8)).calibrated(x)
    classifier_extractor("tiny", x[:200], y[:200], tx, ty, recipe=Recipe(epochs=1), cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_bad_images_are_refused_in_one_sentence(classifier: TrainedClassifier) -> None:
    good = torch.rand(3, 1, 8, 8)
    for x, sentence in (
        (good * 255, r"lie in \[0, 1\]"),
        (good - 0.5, r"lie in \[0, 1\]"),
        (good[0], r"\(n, C, H, W\)"),
        (torch.rand(3, 1, 28, 28), r"takes images of shape \(1, 8, 8\)"),
        (good.clone().fill_(float("nan")), "NaN"),
    ):
        with pytest.raises(ValueError, match=sentence):
            classifier(x)
    with pytest.raises(TypeError, match="uint8"):
        classifier((good * 255).long())
    with pytest.raises(ValueError, match="version="):
        Wrapped(lambda x: x, name="x", dim=1)
    with pytest.raises(ValueError, match="true number of features"):
        Wrapped(lambda x: x.flatten(1), name="x", dim=5, version="1")(good)
    with pytest.raises(ValueError, match="batch size"):
        extract(classifier, good, batch_size=0)
    assert images(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)).max() == 1


def test_default_dtype_and_autocast_do_not_reach_the_features(classifier: TrainedClassifier, digits: tuple[Split, Split]) -> None:
    x = digits[1][0][:10]
    expected, name = classifier(x), RandomNetwork((1, 8, 8)).hash
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(classifier(x), expected)
        assert RandomNetwork((1, 8, 8)).hash == name
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(classifier(x), expected)


def test_cached_features_are_computed_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def means(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x.mean((2, 3))

    extractor = Wrapped(means, name="mean / of channels", dim=3, version="1")
    x = torch.rand(20, 3, 4, 4)
    first = cached_features(extractor, x, cache=tmp_path)
    assert torch.equal(cached_features(extractor, x, cache=tmp_path), first)
    assert calls == [20]
    cached_features(extractor, x[:10], cache=tmp_path)
    cached_features(Wrapped(means, name="mean / of channels", dim=3, version="2"), x, cache=tmp_path)
    assert calls == [20, 10, 20]
    cached_features(extractor, x, data_hash="abc", cache=tmp_path)
    cached_features(extractor, x[:10], data_hash="abc", cache=tmp_path)  # one hash for a data set, several parts of it
    assert calls == [20, 10, 20, 20, 10]
    files = list((tmp_path / "features").iterdir())
    assert len(files) == 5
    assert all(f.suffix == ".safetensors" and not f.name.startswith(".") for f in files)
    whole = {file: file.read_bytes() for file in files}
    for damage in (lambda b: b[:50], lambda b: b"", lambda b: b[:-8] + bytes(8), lambda b: b[:-1] + bytes([b[-1] ^ 1])):
        for file in files:
            file.write_bytes(damage(whole[file]))
        calls.clear()
        assert torch.equal(cached_features(extractor, x, cache=tmp_path), first)
        assert calls == [20], "what is damaged is made again"


def test_content_hash_sees_values_shapes_and_dtypes_only() -> None:
    x = torch.arange(12, dtype=torch.uint8).reshape(3, 4)
    assert content_hash(x) == content_hash(x.T.contiguous().T)
    assert len({content_hash(t) for t in (x, x.reshape(4, 3), x.T, x.int(), x + 1)} | {content_hash(x, x)}) == 6


# ------------------------------------------------------------------------------------------------------------------ the classifier


def test_the_classifier_classifies(classifier: TrainedClassifier, digits: tuple[Split, Split]) -> None:
    x, y = digits[1]
    assert classifier.accuracy >= 0.97
    assert f"test accuracy {100 * classifier.accuracy:.2f} % of 597 images" in str(classifier)
    p = torch.cat([classifier.probabilities(b) for b in x.split(250)])
    assert p.shape == (597, 10)
    torch.testing.assert_close(p.sum(1), torch.ones(597))
    assert float((p.argmax(1) == y).double().mean()) == classifier.accuracy
    torch.testing.assert_close(classifier.logits(x).softmax(1), p, rtol=1e-4, atol=1e-5)


def test_training_features_have_mean_square_norm_one(classifier: TrainedClassifier, digits: tuple[Split, Split]) -> None:
    x = digits[0][0]
    f = extract(classifier, x)
    assert float(f.square().sum(1).mean()) == pytest.approx(1, rel=1e-4)
    assert float(f.min()) == 0, "the features are behind a ReLU"
    g = extract(RandomNetwork((1, 8, 8)).calibrated(x), x)
    assert float(g.square().sum(1).mean()) == pytest.approx(1, rel=1e-4)


def test_the_classifier_is_trained_once(
    classifier: TrainedClassifier, digits: tuple[Split, Split], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("expost.evaluate.features.classifier._train", fail)
    again = classifier_extractor("digits", *digits[0], *digits[1], cache=cache)
    assert (again.identity, again.accuracy, again.record) == (classifier.identity, classifier.accuracy, classifier.record)
    assert torch.equal(again(digits[1][0][:20]), classifier(digits[1][0][:20]))
    assert isinstance(default_extractor("digits", *digits[0], *digits[1], cache=cache), TrainedClassifier)
    with pytest.raises(AssertionError, match="trained again"):
        classifier_extractor("digits", digits[0][0] // 2, digits[0][1], *digits[1], cache=cache)


def test_weights_are_bitwise_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(0)
    x, y = torch.randint(256, (96, 1, 20, 20), generator=draws).to(torch.uint8), torch.arange(96) % 3
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(threads)
            torch.set_default_dtype(torch.float64 if threads == 2 else torch.float32)
            with torch.no_grad():
                trained = classifier_extractor("t", x, y, x, y, recipe=Recipe(epochs=3, batch=32), cache=tmp_path / str(threads))
            found.append((trained.identity, trained.scale, trained(x).sum().item()))
            assert torch.get_num_threads() == threads, "the caller's threads were not restored"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(before)
    assert found[0][:2] == found[1][:2]
    assert found[0][2] == pytest.approx(found[1][2], rel=1e-5)


def test_a_saved_classifier_that_was_altered_is_refused(classifier: TrainedClassifier, tmp_path: Path) -> None:
    from expost.system.files import load_tensors, save_tensors

    path = tmp_path / "c.safetensors"
    classifier.save(path)
    assert TrainedClassifier.load(path).hash == classifier.hash
    tensors, facts = load_tensors(path, "a classifier")
    tensors["head.bias"] = tensors["head.bias"] + 1e-3
    save_tensors(path, tensors, facts)
    with pytest.raises(ValueError, match="are not those its hash"):
        TrainedClassifier.load(path)
    del tensors["head.bias"]
    save_tensors(path, tensors, facts)
    with pytest.raises(ValueError, match="do not fit"):
        TrainedClassifier.load(path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="a trained classifier"):
        TrainedClassifier.load(path)


def test_bad_labels_are_refused_in_one_sentence(tmp_path: Path) -> None:
    x, y = torch.zeros(10, 1, 8, 8), torch.arange(10) % 2
    for labels, test_labels in ((y[:5], y), (y.float(), y), (y - 1, y), (y, y + 1), (y * 0, y * 0)):
        with pytest.raises(ValueError, match="labels must"):
            classifier_extractor("x", x, labels, x, test_labels, cache=tmp_path)
    with pytest.raises(ValueError, match="Wrapped"):
        classifier_extractor("x", x.flatten(1), y, x.flatten(1), y, cache=tmp_path)
    with pytest.raises(ValueError, match="too small"):
        SmallConvNet((1, 3, 3), 2)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 48)])
def test_the_network_takes_images_of_many_sizes(shape: tuple[int, int, int]) -> None:
    f = RandomNetwork(shape)(torch.rand(2, *shape))
    assert f.shape == (2, 128)
    assert f.max() > 0


def test_without_labels_the_default_is_a_random_network_and_says_so(digits: tuple[Split, Split]) -> None:
    extractor = default_extractor("digits", digits[0][0])
    assert isinstance(extractor, RandomNetwork)
    assert extractor.label.startswith("FD[random-network@")


def corrupted(x: Tensor, kind: str, amount: float) -> Tensor:
    draws = torch.Generator().manual_seed(5)
    if kind == "noise":
        return (x + amount * torch.randn(x.shape, generator=draws)).clamp(0, 1)
    if kind == "blur":
        smooth = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return (1 - amount) * x + amount * smooth
    if kind == "shuffled":  # a share of the images
        return torch.where(torch.arange(len(x))[:, None, None, None] < amount * len(x), shuffle_pixels(x), x)
    height = int(amount * x.shape[2])  # "blackout" of rows
    return torch.cat([torch.zeros_like(x[:, :, :height]), x[:, :, height:]], 2)


@pytest.mark.parametrize("kind", ["noise", "blur", "shuffled", "blackout"])
@pytest.mark.parametrize("which", ["classifier", "random"])
def test_distance_grows_with_damage(kind: str, which: str, classifier: TrainedClassifier, digits: tuple[Split, Split]) -> None:
    (x, _), (tx, _) = digits
    extractor: Extractor = classifier if which == "classifier" else RandomNetwork((1, 8, 8)).calibrated(x)
    real = extract(extractor, x)
    values = [float(frechet_distance(real, extract(extractor, corrupted(tx.float() / 255, kind, a)))) for a in (0, 0.15, 0.4, 1.0)]
    assert values == sorted(values), f"FD does not grow with {kind}: {values}"
    assert values[-1] > 3 * values[0]
    assert values[-1] < 4


# ------------------------------------------------------------------------------------------------------------------ controls


def test_floor_and_ceiling_bracket_and_say_their_n(classifier: TrainedClassifier, digits: tuple[Split, Split]) -> None:
    x = digits[0][0]
    both = controls(classifier, x, n=500)
    assert both.floor.n == both.ceiling.n == (500, 500)
    assert 0 < both.floor.value < 0.2 * both.ceiling.value
    assert float(floor(classifier, x, n=500)) == both.floor.value
    assert float(ceiling(classifier, x, n=500)) == both.ceiling.value
    assert float(floor(classifier, x, n=500, seed=1)) != both.floor.value
    assert "n=500" in str(both)
    assert both.place(both.floor) == 0
    assert both.place(both.ceiling.value) == 1
    large = floor(classifier, x, n=1000)
    assert large.n == (600, 600)
    assert any("n = 600" in note for note in large.notes)
    with pytest.raises(ValueError, match="two parts"):
        floor(classifier, x[:3])


def test_shuffled_pixels_keep_the_colours_of_each_image() -> None:
    x = torch.rand(6, 3, 5, 4)
    shuffled = shuffle_pixels(x, seed=2)
    assert torch.equal(shuffled, shuffle_pixels(x, seed=2))
    assert not torch.equal(shuffled, shuffle_pixels(x, seed=3))
    for before, after in zip(x, shuffled, strict=True):
        colours = sorted(map(tuple, before.flatten(1).T.tolist()))
        assert colours == sorted(map(tuple, after.flatten(1).T.tolist()))
        assert not torch.equal(before, after)
    same = shuffle_pixels(x[:1].expand(2, -1, -1, -1).contiguous())
    assert not torch.equal(same[0], same[1]), "each image has its own permutation"


# ------------------------------------------------------------------------------------------------------------------ Inception


def test_inception_has_the_published_tensors() -> None:
    with torch.device("meta"):
        network = InceptionNetwork()
    # torchvision's inception_v3 has 27 161 264 parameters: less the auxiliary head (3 326 696), with 1008 logits in place of 1000
    assert sum(p.numel() for p in network.parameters()) == 27_161_264 - 3_326_696 + 8 * (2048 + 1)
    names = {k: tuple(v.shape) for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(names) == 94 * 5 + 2
    assert names["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert names["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
    assert names["Mixed_6c.branch7x7dbl_2.conv.weight"] == (160, 160, 7, 1)
    assert names["Mixed_7a.branch7x7x3_2.conv.weight"] == (192, 192, 1, 7)
    assert names["Mixed_7c.branch3x3dbl_3b.bn.running_var"] == (384,)
    assert names["fc.weight"] == (1008, 2048)
    assert all(m.eps == 0.001 for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def test_inception_round_trip(inception_weights: Path) -> None:
    extractor = Inception2015.load(inception_weights)
    assert extractor.label == f"FID[inception-2015-12-05@{extractor.hash}]"
    assert Inception2015.load(inception_weights, sha256=extractor.sha256.upper()).hash == extractor.hash
    assert extractor.sha256 in str(extractor)
    x = torch.randint(256, (2, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    f = extractor(x)
    assert f.shape == (2, 2048)
    assert f.std() > 0
    torch.testing.assert_close(extract(extractor, x, batch_size=1), f, rtol=1e-3, atol=1e-4 * float(f.abs().max()))
    torch.testing.assert_close(extractor(x[:1].expand(-1, 3, -1, -1)), f[:1], rtol=1e-3, atol=1e-4 * float(f.abs().max()))
    with pytest.raises(ValueError, match="grey or RGB"):
        extractor(torch.rand(1, 2, 28, 28))


def test_inception_refuses_what_is_not_it(inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    with pytest.raises(ValueError, match="convert them once"):
        Inception2015.load()
    with pytest.raises(ValueError, match=r"is a pickle.*weights_only=True"):
        Inception2015.load("pt_inception-2015-12-05-6726825d.pth")
    with pytest.raises(ValueError, match="there is no file"):
        Inception2015.load(tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match="not 00"):
        Inception2015.load(inception_weights, sha256="00")
    tensors, path = load_file(inception_weights), tmp_path / "w.safetensors"
    kernel = tensors.pop("Mixed_7c.branch1x1.conv.weight")
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"1 tensors missing, 0 unknown; Mixed_7c.branch1x1.conv.weight is missing"):
        Inception2015.load(path)
    save_file(tensors | {"Mixed_7c.branch1x1.conv.weight": kernel[:, :7].contiguous()}, path)
    with pytest.raises(ValueError, match=r"has shape \(320, 7, 1, 1\), not \(320, 2048, 1, 1\)"):
        Inception2015.load(path)
    path.write_bytes(inception_weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        Inception2015.load(path)

    asked: list[tuple[str, str, str | None]] = []

    def hub(repository: str, file: str, revision: str | None = None) -> str:
        asked.append((repository, file, revision))
        return str(inception_weights)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    assert Inception2015.load("someone/weights/folder/fid.safetensors", revision="abc").dim == 2048
    assert asked == [("someone/weights", "folder/fid.safetensors", "abc")]


def test_conversion_command_makes_a_readable_file(inception_weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(inception_weights), tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    program = inception_module.CONVERT.removeprefix('python -c "').removesuffix('"')
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)
    assert Inception2015.load(tmp_path / "inception-2015-12-05.safetensors").hash == Inception2015.load(inception_weights).hash


def test_resize_is_tensorflow_ones() -> None:
    x = torch.tensor([[[[0.0, 10.0], [20.0, 30.0]]]])
    # scale 2/4: source positions 0, 0.5, 1, 1.5; the last lies beyond the last pixel, which is repeated
    expected = torch.tensor([[0.0, 5, 10, 10], [10, 15, 20, 20], [20, 25, 30, 30], [20, 25, 30, 30]])
    assert torch.equal(resize_tf1(x, 4, 4)[0, 0], expected)
    assert not torch.equal(F.interpolate(x, (4, 4), mode="bilinear")[0, 0], expected), "half-pixel centres are another rule"
    # 5 -> 3: positions 0, 5/3, 10/3
    line = torch.tensor([[[[0.0, 1.0, 4.0, 9.0, 16.0]]]])
    torch.testing.assert_close(resize_tf1(line, 1, 3)[0, 0, 0], torch.tensor([0.0, 1 + 3 * 2 / 3, 9 + 7 / 3]))
    y = torch.rand(2, 3, 299, 299)
    assert torch.equal(resize_tf1(y, 299, 299), y)
    constant = resize_tf1(torch.full((1, 1, 28, 28), 0.3), 299, 299)
    assert torch.equal(constant, torch.full_like(constant, 0.3))


def test_a_module_is_named_by_what_it_computes() -> None:
    """The same weights under another activation, or in a class with another forward, are other features."""
    linear = torch.nn.Linear(4, 3)

    class Doubled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(x.flatten(1))

    made = [
        torch.nn.Sequential(torch.nn.Flatten(), linear, kind)
        for kind in (torch.nn.ReLU(), torch.nn.Tanh(), torch.nn.ELU(0.5), torch.nn.ELU(0.7))
    ]
    hashes = {Wrapped(module, name="w", dim=3).hash for module in [*made, Doubled()]}
    assert len(hashes) == 5
    assert Wrapped(made[0], name="w", dim=3).hash in hashes
