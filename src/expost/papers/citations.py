"""BibTeX of what recipes, densities and metrics rest on beside the papers in folders here; ``expost cite`` prints what a run used."""

from __future__ import annotations

__all__ = ["CITATIONS"]

CITATIONS: dict[str, str] = {
    "chadebec2022": """@inproceedings{chadebec2022,
  title = {Pythae: Unifying Generative Autoencoders in {Python} - A Benchmarking Use Case},
  author = {Chadebec, Cl{\\'e}ment and Vincent, Louis J. and Allassonni{\\`e}re, St{\\'e}phanie},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2022}
}""",
    "rombach2022": """@inproceedings{rombach2022,
  title = {High-Resolution Image Synthesis with Latent Diffusion Models},
  author = {Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick and Ommer, Bj{\\"o}rn},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2022}
}""",
    "lucas2019": """@inproceedings{lucas2019,
  title = {Don't Blame the {ELBO}! A Linear {VAE} Perspective on Posterior Collapse},
  author = {Lucas, James and Tucker, George and Grosse, Roger and Norouzi, Mohammad},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2019}
}""",
    "lopezpaz2017": """@inproceedings{lopezpaz2017,
  title = {Revisiting Classifier Two-Sample Tests},
  author = {Lopez-Paz, David and Oquab, Maxime},
  booktitle = {International Conference on Learning Representations},
  year = {2017}
}""",
    "kingma2014": """@inproceedings{kingma2014,
  title = {Auto-Encoding Variational {Bayes}},
  author = {Kingma, Diederik P. and Welling, Max},
  booktitle = {International Conference on Learning Representations},
  year = {2014}
}""",
    "higgins2017": """@inproceedings{higgins2017,
  title = {beta-{VAE}: Learning Basic Visual Concepts with a Constrained Variational Framework},
  author = {Higgins, Irina and Matthey, Loic and Pal, Arka and Burgess, Christopher and Glorot, Xavier and Botvinick, Matthew and
            Mohamed, Shakir and Lerchner, Alexander},
  booktitle = {International Conference on Learning Representations},
  year = {2017}
}""",
    "burda2016": """@inproceedings{burda2016,
  title = {Importance Weighted Autoencoders},
  author = {Burda, Yuri and Grosse, Roger and Salakhutdinov, Ruslan},
  booktitle = {International Conference on Learning Representations},
  year = {2016}
}""",
    "tolstikhin2018": """@inproceedings{tolstikhin2018,
  title = {Wasserstein Auto-Encoders},
  author = {Tolstikhin, Ilya and Bousquet, Olivier and Gelly, Sylvain and Sch{\\"o}lkopf, Bernhard},
  booktitle = {International Conference on Learning Representations},
  year = {2018}
}""",
    "tomczak2018": """@inproceedings{tomczak2018,
  title = {{VAE} with a {VampPrior}},
  author = {Tomczak, Jakub M. and Welling, Max},
  booktitle = {International Conference on Artificial Intelligence and Statistics},
  year = {2018}
}""",
    "heusel2017": """@inproceedings{heusel2017,
  title = {{GANs} Trained by a Two Time-Scale Update Rule Converge to a Local {Nash} Equilibrium},
  author = {Heusel, Martin and Ramsauer, Hubert and Unterthiner, Thomas and Nessler, Bernhard and Hochreiter, Sepp},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2017}
}""",
    "durkan2019": """@inproceedings{durkan2019,
  title = {Neural Spline Flows},
  author = {Durkan, Conor and Bekasov, Artur and Murray, Iain and Papamakarios, George},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2019}
}""",
    "pedregosa2011": """@article{pedregosa2011,
  title = {Scikit-learn: Machine Learning in {Python}},
  author = {Pedregosa, F. and others},
  journal = {Journal of Machine Learning Research},
  volume = {12},
  pages = {2825--2830},
  year = {2011}
}""",
}
