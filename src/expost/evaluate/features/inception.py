"""Inception of 2015-12-05, the network behind published FIDs, in torch alone.

Heusel et al. 2017 and all who compare with them use the ``pool_3`` layer (2048 numbers) of the Inception-v3 that TensorFlow released on
2015-12-05, which differs from later releases (torchvision's among them) in weights and in four places of the graph; Seitzer's
``pytorch-fid`` documented them, and its converted weights are the ones read here, under their own parameter names:

* average pools inside a block do not count the padding;
* the last block (``Mixed_7c``) has a maximum pool in place of an average pool;
* there are 1008 logits (unused here) and no auxiliary head; every normalisation has ε = 0.001;
* images enter in 0 ... 255, grey ones repeated to three channels, are resized to 299 x 299 *inside* the graph by the bilinear rule of
  TensorFlow 1 (source = target · in / out, no half-pixel centres, no antialiasing), and mapped to (x − 128) / 128.

FIDs of other libraries differ through that resize more than through anything else. Floats in [0, 1] are used as they are, not rounded to
grey levels: to compare with scores of images saved as PNG, round first. Published scores use 10 000 or 50 000 images; n is part of FID.

The weights cannot be shipped here and their one official file is a pickle, which expost never opens. Convert it once (:data:`CONVERT`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expost.evaluate.features.base import Extractor, _moved
from expost.system.hashes import state_hash

__all__ = ["CONVERT", "Inception2015", "InceptionNetwork", "resize_tf1"]

#: Download ``pt_inception-2015-12-05-6726825d.pth`` from github.com/mseitzer/pytorch-fid (release ``fid_weights``), then run this once.
CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; save_file({k: v.contiguous() for k, v in torch.load('
    "'pt_inception-2015-12-05-6726825d.pth', weights_only=True).items()}, 'inception-2015-12-05.safetensors')\""
)


def resize_tf1(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize of TensorFlow 1 (``align_corners=False``, no half-pixel centres): (n, C, h, w) -> (n, C, height, width).

    Target row i reads source position s = i · h / height between rows ⌊s⌋ and min(⌊s⌋ + 1, h − 1); columns alike; in float32.

    >>> resize_tf1(torch.tensor([[[[0.0, 1.0]]]]), 1, 4)
    tensor([[[[0.0000, 0.5000, 1.0000, 1.0000]]]])
    """

    def grid(source: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
        ratio = torch.tensor(source, dtype=torch.float32) / torch.tensor(target, dtype=torch.float32)
        position = torch.arange(target, dtype=torch.float32) * ratio
        low = position.floor().long().clamp(max=source - 1)
        return low.to(x.device), (low + 1).clamp(max=source - 1).to(x.device), (position - low).to(x.device)

    left, right, across = grid(x.shape[3], width)
    above, below, down = grid(x.shape[2], height)
    down = down[:, None]
    top, bottom = x[:, :, above], x[:, :, below]
    top = top[..., left] + (top[..., right] - top[..., left]) * across
    bottom = bottom[..., left] + (bottom[..., right] - bottom[..., left]) * across
    return top + (bottom - top) * down


class _Convolution(nn.Module):
    """Convolution without bias, normalisation, ReLU."""

    def __init__(self, i: int, o: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | tuple[int, int] = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(i, o, kernel, stride, padding, bias=False, dtype=torch.float32)
        self.bn = nn.BatchNorm2d(o, eps=0.001, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


class _BlockA(nn.Module):
    def __init__(self, i: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(i, 64, 1)
        self.branch5x5_1 = _Convolution(i, 48, 1)
        self.branch5x5_2 = _Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Convolution(i, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, padding=1)
        self.branch_pool = _Convolution(i, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average(x))], 1)


class _BlockB(nn.Module):
    def __init__(self, i: int) -> None:
        super().__init__()
        self.branch3x3 = _Convolution(i, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Convolution(i, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class _BlockC(nn.Module):
    def __init__(self, i: int, c: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(i, 192, 1)
        self.branch7x7_1 = _Convolution(i, c, 1)
        self.branch7x7_2 = _Convolution(c, c, (1, 7), padding=(0, 3))
        self.branch7x7_3 = _Convolution(c, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = _Convolution(i, c, 1)
        self.branch7x7dbl_2 = _Convolution(c, c, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = _Convolution(c, c, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = _Convolution(c, c, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = _Convolution(c, 192, (1, 7), padding=(0, 3))
        self.branch_pool = _Convolution(i, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class _BlockD(nn.Module):
    def __init__(self, i: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Convolution(i, 192, 1)
        self.branch3x3_2 = _Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Convolution(i, 192, 1)
        self.branch7x7x3_2 = _Convolution(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Convolution(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)


class _BlockE(nn.Module):
    def __init__(self, i: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = _Convolution(i, 320, 1)
        self.branch3x3_1 = _Convolution(i, 384, 1)
        self.branch3x3_2a = _Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Convolution(i, 448, 1)
        self.branch3x3dbl_2 = _Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Convolution(i, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch3x3_2a(three), self.branch3x3_2b(three), self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *parts, self.branch_pool(self.pool(x))], 1)


class InceptionNetwork(nn.Module):
    """Images (n, 3, 299, 299) in [-1, 1] -> pool_3 (n, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3)
        self.Mixed_5b = _BlockA(192, 32)
        self.Mixed_5c = _BlockA(256, 64)
        self.Mixed_5d = _BlockA(288, 64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b = _BlockC(768, 128)
        self.Mixed_6c = _BlockC(768, 160)
        self.Mixed_6d = _BlockC(768, 160)
        self.Mixed_6e = _BlockC(768, 192)
        self.Mixed_7a = _BlockD(768)
        self.Mixed_7b = _BlockE(1280, _average)
        self.Mixed_7c = _BlockE(2048, _maximum)
        self.fc = nn.Linear(2048, 1008, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))


@dataclass(frozen=True, eq=False)
class Inception2015(Extractor):
    """pool_3 of Inception 2015-12-05, 2048 features: with these, a Fréchet distance is an FID. Made by :meth:`load`.

    Attributes:
        sha256: of the weights file.
        source: where it came from.
    """

    hash: str
    sha256: str
    source: str
    network: InceptionNetwork = field(repr=False)
    name: str = field(default="inception-2015-12-05", init=False)
    dim: int = field(default=2048, init=False)
    shape: None = field(default=None, init=False)

    @classmethod
    def load(cls, weights: str | Path | None = None, *, sha256: str | None = None, revision: str | None = None) -> Inception2015:
        """The extractor with weights from a safetensors file.

        Args:
            weights: a local path, or ``owner/repository/file.safetensors`` on the Hugging Face hub. There is no default: no copy on the hub
                is published by the authors of the weights.
            sha256: what the file must hash to; worth passing for anything downloaded.
            revision: commit of the hub repository.

        Raises:
            ValueError: no or unreadable weights, a pickle, another hash, or tensors that are not this network's.
        """
        if weights is None:
            raise ValueError(
                f"Inception's weights are not part of expost: download them from github.com/mseitzer/pytorch-fid (release fid_weights), "
                f"convert them once with: {CONVERT} - and pass the path of the new file"
            )
        if Path(weights).suffix in {".pth", ".pt", ".pkl", ".pickle", ".bin"}:
            raise ValueError(f"{weights} is a pickle, which expost does not open: convert it once with: {CONVERT}")
        path = Path(weights) if Path(weights).exists() else _from_hub(str(weights), revision)
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 is not None and found != sha256.lower():
            raise ValueError(f"{weights} has SHA-256 {found}, not {sha256.lower()}: it is damaged or another file; download it again")
        network = _filled(_read(path), str(weights))
        return cls(state_hash(network.state_dict(), {"kind": "inception-2015-12-05"}), found, str(weights), network)

    @property
    def label(self) -> str:
        return f"FID[{self.identity}]"

    def to(self, device: torch.device | str) -> Inception2015:
        return _moved(self, device)

    def features(self, x: Tensor) -> Tensor:
        if x.shape[1] not in (1, 3):
            raise ValueError(f"Inception takes grey or RGB images, not {x.shape[1]} channels: drop or merge channels first")
        x = resize_tf1(x.expand(-1, 3, -1, -1) * 255, 299, 299)
        return self.network((x - 128) / 128)

    def __str__(self) -> str:
        return f"{self.identity} (2048 features, {self.source}, sha256 {self.sha256})"


def _from_hub(name: str, revision: str | None) -> Path:
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not (owner and repository and file.endswith(".safetensors")) or Path(name).is_absolute():
        raise ValueError(f"there is no file {name}: pass the path of a safetensors file, or owner/repository/file.safetensors on the hub")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file, revision=revision))
    except Exception as error:
        raise ValueError(
            f"{name} is neither a file here nor could it be fetched from the hub ({type(error).__name__}): pass a path"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if not name.endswith("num_batches_tracked")}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({type(error).__name__}): download or convert it again") from error


def _filled(tensors: dict[str, Tensor], source: str) -> InceptionNetwork:
    """The network with these tensors, names and shapes checked before anything is copied."""
    with torch.device("meta"):
        network = InceptionNetwork()
    wanted = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        first = f"{missing[0]} is missing" if missing else f"{extra[0]} is not known"
        raise ValueError(
            f"{source} is not Inception 2015-12-05 as named by pytorch-fid ({len(missing)} tensors missing, {len(extra)} unknown; {first}): "
            f"convert the original with: {CONVERT}"
        )
    for name, t in wanted.items():
        if tensors[name].shape != t.shape:
            shapes = f"{tuple(tensors[name].shape)}, not {tuple(t.shape)}"
            raise ValueError(f"{source} is another network: {name} has shape {shapes}; convert the original with: {CONVERT}")
    network = network.to_empty(device="cpu")
    network.load_state_dict({name: t.float() for name, t in tensors.items()}, strict=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked is not None
            module.num_batches_tracked.zero_()  # not part of the file, and part of the hash
    return network.eval().requires_grad_(False)
