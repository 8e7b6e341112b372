"""The demonstrations of "A tutorial on VAEs: from Bayes' rule to lossless compression" (Yu 2020), computed.

| name | function | what is shown |
|---|---|---|
| ``rescaling`` | :func:`rescaling` | inputs times c: another model under an MSE loss, the same one under a learned variance |
| ``optimal-variance`` | :func:`optimal_variance` | the best decoder variance is the MSE; what a residual costs in bits per pixel |
| ``linear-flow`` | :func:`linear_flow` | a Sigma-VAE whose noise vanishes is a flow, with the gap at every noise |
| ``noisy-channel`` | :func:`noisy_channel` | the rate is the capacity of a noisy channel, and capacity is a sharp limit |
| ``two-solutions`` | :func:`two_solutions` | z is not a parameter: ignoring it and copying x through it give one -ELBO |
| ``importance-sampling`` | :func:`importance_sampling` | one importance sample against many: 1 bit against 0.1518 |

Each is a function of a seed that returns a :class:`Demonstration`: a claim, whether it holds, a table, curves. Nothing is drawn here;
``expost.report.figures.draw`` does that.

>>> demonstration = DEMONSTRATIONS["importance-sampling"](0)
>>> demonstration.holds, round(demonstration.figures["limit (bits)"], 4)
(True, 0.1518)
"""

from collections.abc import Callable

from expost.papers.yu2020.demonstrations.channel import noisy_channel
from expost.papers.yu2020.demonstrations.flow import linear_flow
from expost.papers.yu2020.demonstrations.importance import importance_sampling
from expost.papers.yu2020.demonstrations.points import two_solutions
from expost.papers.yu2020.demonstrations.variance import optimal_variance, rescaling
from expost.results import Demonstration, Series

__all__ = [
    "DEMONSTRATIONS",
    "Demonstration",
    "Series",
    "importance_sampling",
    "linear_flow",
    "noisy_channel",
    "optimal_variance",
    "rescaling",
    "two_solutions",
]

#: name -> function of a seed
DEMONSTRATIONS: dict[str, Callable[[int], Demonstration]] = {
    "rescaling": rescaling,
    "optimal-variance": optimal_variance,
    "linear-flow": linear_flow,
    "noisy-channel": noisy_channel,
    "two-solutions": two_solutions,
    "importance-sampling": importance_sampling,
}
