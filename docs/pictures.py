"""Make the README's picture: `python docs/pictures.py [DATA]` does on MNIST what its first lines do on digits, and writes docs/samples.png.

One encoder, one decoder: what differs between the last three rows is the density of the codes alone. Takes some minutes on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import expost
from expost import data, heads, nets
from expost.diagnose import diagnose
from expost.report import save_panels
from expost.seeds import some

HERE = Path(__file__).resolve().parent
LATENT, EPOCHS = 16, 20


def main(source: str) -> None:
    images = data.load(source)
    torch.manual_seed(0)
    encoder = expost.Conditional(nets.mlp_encoder(images.shape, 2 * LATENT), heads.Diagonal(), condition_dims=3)
    decoder = expost.Conditional(nets.mlp_decoder(LATENT, images.shape, images.shape[0]), heads.Gaussian(0.03), event_dims=3)
    vae = expost.Autoencoder(encoder, decoder, prior=expost.StandardNormal(LATENT))
    expost.fit(vae, expost.ELBO(), images.train.x, training=expost.Training(epochs=EPOCHS))
    codes = vae.latents(images.train.x, at="mean")
    mixtures = {f"mixture of {k}": vae.with_prior(expost.GMM(LATENT, components=k).fit(codes)) for k in (10, 100)}

    shown = some(images.test.x, 16, "pictures", 0)
    rows = {"test images": shown, "reconstructions": vae.reconstruct(shown).cpu()}
    for name, model in {"N(0, I)": vae, **mixtures}.items():
        found = diagnose(model, images.train.x, images.test.x, at="sample" if model is vae else "mean")
        print(f"{name}: {found.results()['c2st']}; {[finding.name for finding in found.findings]}", flush=True)
        rows[f"samples, {name}"] = model.generate(16, seed=0).cpu()
    save_panels(HERE / "samples.png", rows)
    print("wrote docs/samples.png")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mnist")
