"""Recipes: the literature as rows of one table.

| method | encoder head | decoder head | prior while training | objective | density ex post |
|---|---|---|---|---|---|
| VAE | `Diagonal` | `Bernoulli` / `CrossEntropy` / `Gaussian` | `StandardNormal` | `ELBO()` | - |
| beta-VAE | `Diagonal` | any | `StandardNormal` | `ELBO(beta=4)` | - |
| IWAE | `Diagonal` | any | `StandardNormal` | `IWAE(samples=10)` | - |
| Sigma-VAE | `FullCovariance` | `Gaussian("shared")` | `StandardNormal` | `ELBO()` | - |
| VAE, fixed / learned / optimal variance | `Diagonal` | `Gaussian(1.0 / "shared" / "optimal")` | `StandardNormal` | `ELBO()` | - |
| two-stage VAE | `Diagonal` | `Gaussian("shared")` | `StandardNormal` | `ELBO()` | `SecondStage(Autoencoder(...))` |
| CV-VAE | `Constant(0.7)` | `Gaussian(fixed)` | `StandardNormal` | `ELBO(beta)` | Gaussian, `GMM(10)` |
| AE | `Dirac` | `Gaussian(fixed)` | - | `RAE(beta=0)` | Gaussian, `GMM(10)` |
| RAE, RAE-L2, RAE-GP | `Dirac` | `Gaussian(fixed)` | - | `RAE(beta, penalty=...)` | Gaussian, `GMM(10)` |
| RAE-SN | `Dirac` | `Gaussian(fixed)`, spectrally normalised nets | - | `RAE(beta)` | Gaussian, `GMM(10)` |
| WAE-MMD | `Dirac` | `Gaussian(fixed)` | `StandardNormal` | `WAE(weight, kernel)` | `StandardNormal`, `GMM(10)` |
| WAE-GAN / AAE | `Dirac` | `Gaussian(fixed)` | `StandardNormal` | `Adversarial(critic)` | `StandardNormal`, `GMM(10)` |
| omega-VAE | `Diagonal` | `CrossEntropy` | `StandardNormal` | `ELBO() + ClassDistance(30)`, encoder clipped | - |
| VAE of bozkurt2018 | `Diagonal` | `CrossEntropy` | `StandardNormal` | `ELBO()` | optimal decoder, see `diagnose` |
| lossless coder | `Diagonal` | `LogisticMixture` / `Bernoulli` | `StandardNormal` | `ELBO()` / `Binarised(ELBO())` | - |
| two-level lossless coder | `Diagonal` on maps | `LogisticMixture` | `Autoencoder(...)` | `ELBO()` | - |
| VampPrior | `Diagonal` | any | `VampPrior(encoder, 500)` | `ELBO()` | - |
"""

from expost.runs.experiment import BUDGETS, Experiment, Recipe, Task, find, recipes
from expost.runs.run import Run, load_model, load_run, plan, train_run

__all__ = ["BUDGETS", "Experiment", "Recipe", "Run", "Task", "find", "load_model", "load_run", "plan", "recipes", "train_run"]
