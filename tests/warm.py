"""Preloaded by the fork server of test_resume: after one step everything that a training imports lazily is there."""

from __future__ import annotations

import dataclasses

import torch

import expost
import runs
from toys import model, vectors

torch.set_num_threads(1)
expost.fit(model(), expost.ELBO(), vectors(), training=dataclasses.replace(runs.ENDLESS, steps=1), device="cpu")
