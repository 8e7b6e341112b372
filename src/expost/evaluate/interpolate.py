r"""Paths between codes, and the midpoints whose decoded images ghosh2020 scores.

slerp(t; a, b) = sin((1-t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b, Ω = angle between a and b (Shoemake 1985), on codes as they are: the norm moves from
‖a‖ to ‖b‖ and is constant if these agree. Linear where sin Ω = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expost.seeds import permutation

__all__ = ["lerp", "lerp_to_mean_norm", "pairs", "slerp"]


def lerp(t: Tensor | float, a: Tensor, b: Tensor) -> Tensor:
    """(1 - t) a + t b."""
    return (1 - t) * a + t * b


def lerp_to_mean_norm(t: Tensor | float, a: Tensor, b: Tensor) -> Tensor:
    """(1 - t) a + t b, rescaled to the norm (1 - t) ‖a‖ + t ‖b‖ (ghosh2020's "norm-corrected" line); zero stays zero."""
    straight = lerp(t, a, b)
    norm = lerp(t, a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True))
    return straight * (norm / straight.norm(dim=-1, keepdim=True).clamp_min(1e-30))


def slerp(t: Tensor | float, a: Tensor, b: Tensor) -> Tensor:
    """Spherical interpolation of codes a, b of shape (*batch, d); t is a number or broadcasts against (*batch, 1)."""
    t = torch.as_tensor(t, dtype=a.dtype, device=a.device)
    cosine = (a * b).sum(-1, keepdim=True) / (a.norm(dim=-1, keepdim=True) * b.norm(dim=-1, keepdim=True)).clamp_min(1e-30)
    angle = torch.arccos(cosine.clamp(-1, 1))
    sine = torch.sin(angle)
    flat = sine.abs() < 1e-6
    safe = torch.where(flat, torch.ones_like(sine), sine)
    curved = torch.sin((1 - t) * angle) / safe * a + torch.sin(t * angle) / safe * b
    return torch.where(flat, lerp(t, a, b), curved)


def pairs(n_codes: int, n_pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of random pairs: as in ghosh2020 each code is used at most three times, so up to 1.5 n_codes pairs; no code meets itself.

    Returns two (n_pairs,) index tensors.
    """
    if n_codes < 2:
        raise ValueError("interpolation needs at least two codes")
    most = 3 * n_codes // 2
    if n_pairs > most:
        raise ValueError(f"{n_codes} codes make at most {most} pairs: ask for fewer interpolations")
    pool = torch.arange(n_codes).repeat(3)[permutation(3 * n_codes, "pairs", seed)]
    first, second = pool[:most].clone(), pool[most : 2 * most].clone()
    same = (first == second).nonzero().squeeze(1)
    for i in same.tolist():
        j = (i + 1) % most
        while first[i] == second[j] or first[j] == second[i]:
            j = (j + 1) % most
        second[i], second[j] = second[j].clone(), second[i].clone()
    return first[:n_pairs], second[:n_pairs]
