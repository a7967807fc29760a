"""Mutual information between the forget set's hidden pixels and what the network makes of them: SMILE, in nats.

    I(X; Z) ~ E_P[T(x, z)] - log E_Q[clip(e^T(x, z), e^-tau, e^tau)],    tau = 5 (and 1)

P: pairs of an original's hidden part and the output there; Q: parts of different images; T: a critic, trained to tell
the two apart. 0 = the outputs say nothing of the originals. Direction: lower; what noise of the same size scores is
the mark (`mutual_information_to_noise`), and not 0, since an estimate has a bias of its own.

The output is read with noise of spread READING, 5 % of the pixels' range, added to every pixel: a network without randomness is a
one-to-one map, which keeps all information however faintly, so that the quantity says something only of an observer of
some accuracy (Goldfeld et al., arXiv 1810.05728). Traces well below that, which nobody sees, do not count.

Symbols: x the original's first COMPONENTS principal components, z the read output's components along those and along its own, both
whitened; images must be at least five times as many as components.
T(x, z) = f(x) . g(z) + a(x) + b(z), small networks of the values and their squares, trained with the Jensen-Shannon
bound as in the paper's code. Every pair is judged by a critic that never saw either of its images: five folds, three to
train, one to choose the step, one to estimate. So independent pairs give about 0, where an estimate on the training
pairs gives several nats; a critic of few images understates much information, for base and unlearned network alike.
Seeded; the same arrays give the same figure. Source: Song, Ermon, arXiv 1910.06222; for image-to-image unlearning Li et
al., arXiv 2402.00351.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.metrics import UNMEASURED, Answers, Evidence, ReconstructionAnswers

CLIPS = (1.0, 5.0)
COMPONENTS = 12
READING = 0.1  # spread of the noise with which pixels in [-1, 1] are read
FEWEST = 60  # images: five times COMPONENTS, so that no covariance is a guess
FOLDS = 5
WIDTH = 32
STEPS = 120
LOOK = 4  # steps between two looks at the choosing pairs
RATE = 1e-2
DECAY = 1e-2


class Critic(nn.Module):
    """T(x, z) for all pairs of the rows of x and z: (n, d), (m, e) -> (n, m)."""

    def __init__(self, x_size: int, z_size: int) -> None:
        super().__init__()
        self.into_x, self.of_x = nn.Linear(2 * x_size, WIDTH), nn.Linear(WIDTH, WIDTH + 1)
        self.into_z, self.of_z = nn.Linear(2 * z_size, WIDTH), nn.Linear(WIDTH, WIDTH + 1)
        self.straight_x, self.straight_z = nn.Linear(x_size, WIDTH, bias=False), nn.Linear(z_size, WIDTH, bias=False)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        f = self.of_x(self.into_x(torch.cat([x, x * x - 1], 1)).tanh())
        g = self.of_z(self.into_z(torch.cat([z, z * z - 1], 1)).tanh())
        left, right = f[:, :-1] + self.straight_x(x), g[:, :-1] + self.straight_z(z)
        return left @ right.T / WIDTH**0.5 + f[:, -1:] + g[:, -1]


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, ReconstructionAnswers) or len(answers.outputs["forget"]) < FEWEST:
        return UNMEASURED
    return of_outputs(answers)[CLIPS[-1]], len(answers.outputs["forget"])


def of_outputs(answers: ReconstructionAnswers, noise: bool = False) -> dict[float, float]:
    """By clip, the information between the forget set's originals and its outputs (or noise) where hidden; estimated once."""
    names = {clip: f"mutual_information{'_of_noise' if noise else ''}_clip_{clip:g}" for clip in CLIPS}
    if names[CLIPS[0]] not in answers.measured:
        outputs = answers.noise if noise else answers.outputs["forget"]
        x, z = (hidden_part(images, answers.hidden["forget"]) for images in (answers.originals["forget"], outputs))
        z += READING * torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
        axes = principal_axes(x)
        found = smile(whitened(x, axes), np.hstack([whitened(z, axes), whitened(z, principal_axes(z))]))
        answers.measured.update({names[clip]: value for clip, value in found.items()})
    return {clip: answers.measured[name] for clip, name in names.items()}


def hidden_part(images: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Pixels in [-1, 1] less their mean over the images that hide them, 0 where visible, in rows (n, H * W * C).

    Without the mean, a constant where hidden would show the mask, and so would the originals: two strangers would agree.
    """
    here = np.broadcast_to(hidden[..., None], images.shape)
    pixels = np.where(here, images.astype(np.float64) / 127.5 - 1, 0.0)
    means = pixels.sum(axis=0) / np.maximum(here.sum(axis=0), 1)
    centred: np.ndarray = np.where(here, pixels - means, 0.0).reshape(len(images), -1)
    return centred


def principal_axes(rows: np.ndarray) -> np.ndarray:
    """The first COMPONENTS principal axes (or fewer, where there are not as many pixels), (d, k)."""
    return np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][:COMPONENTS].T


def whitened(rows: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Components of mean 0 and spread 1; those that do not vary (up to rounding) stay 0."""
    components = (rows - rows.mean(axis=0)) @ axes
    spread = components.std(axis=0)
    return np.divide(components, spread, out=np.zeros_like(components), where=spread > 1e-6)


def smile(x: np.ndarray, z: np.ndarray, seed: int = 0) -> dict[float, float]:
    """By clip, the estimate over held-out folds: rows i of x (n, d) and z (n, e) belong together."""
    generator = torch.Generator().manual_seed(seed)
    x_all, z_all = torch.from_numpy(x).float(), torch.from_numpy(z).float()
    folds = torch.randperm(len(x), generator=generator).tensor_split(FOLDS)
    estimates = []
    for turn in range(FOLDS):
        held, choosing, *rest = folds[turn:] + folds[:turn]
        train = torch.cat(rest)
        critic = fitted(x_all[train], z_all[train], x_all[choosing], z_all[choosing], generator)
        with torch.no_grad():
            estimates.append([bound(critic(x_all[held], z_all[held]), clip) for clip in CLIPS])
    return dict(zip(CLIPS, np.mean(estimates, axis=0).tolist(), strict=True))


def fitted(x: Tensor, z: Tensor, choosing_x: Tensor, choosing_z: Tensor, generator: torch.Generator) -> Critic:
    """The critic of the step at which it told the choosing pairs apart best; the untrained one, when no step does."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        critic = Critic(x.shape[1], z.shape[1])
    for last in (critic.of_x, critic.straight_x):  # T = 0 everywhere: nothing is known yet
        nn.init.zeros_(last.weight)
    nn.init.zeros_(critic.of_x.bias)
    nn.init.zeros_(critic.of_z.weight[-1:])
    optimizer = torch.optim.AdamW(critic.parameters(), lr=RATE, weight_decay=DECAY)
    best, chosen = float("inf"), copy.deepcopy(critic.state_dict())
    for step in range(STEPS):
        if step % LOOK == 0:
            with torch.no_grad():
                told = float(jensen_shannon_loss(critic(choosing_x, choosing_z)))
            if told < best:
                best, chosen = told, copy.deepcopy(critic.state_dict())
        loss = jensen_shannon_loss(critic(x, z))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    critic.load_state_dict(chosen)
    return critic


def jensen_shannon_loss(t: Tensor) -> Tensor:
    """E_P[softplus(-T)] + E_Q[softplus(T)] of (n, n): the diagonal is P, the rest Q. Least at T = log of the density ratio."""
    apart = ~torch.eye(len(t), dtype=torch.bool)
    return F.softplus(-t.diagonal()).mean() + F.softplus(t[apart]).mean()


def bound(t: Tensor, clip: float) -> float:
    apart = ~torch.eye(len(t), dtype=torch.bool)
    return float(t.diagonal().mean() - t[apart].clamp(-clip, clip).double().exp().mean().log())
