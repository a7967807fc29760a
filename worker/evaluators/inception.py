"""FID's Inception v3: the pooled features that published Frechet distances are computed in, by torch-fidelity.

The network takes images of eight bits and resizes them to 299 x 299 itself, as TensorFlow 1 did; a float image would be cast
wrongly, so none is accepted. All 2048 features are given: distances in 64 or 192 of them are no FID.
Source: Heusel et al., arXiv 1706.08500; weights of Szegedy et al., arXiv 1512.00567, "2015-12-05".
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

FEATURES = "2048"
BATCH = 64


def load(weights: dict[str, Tensor], device: torch.device) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:  # the package reads a file, or else the internet
        file = Path(folder) / "weights"
        torch.save(weights, file)
        network: nn.Module = FeatureExtractorInceptionV3("inception-v3-compat", [FEATURES], str(file))
    return network.to(device).eval()


@torch.no_grad()
def embed(network: nn.Module, pictures: np.ndarray) -> np.ndarray:
    if pictures.dtype != np.uint8:
        raise ValueError(f"pictures: must be uint8, not {pictures.dtype}")
    device = next(network.parameters()).device
    colours = np.repeat(pictures, 3 // pictures.shape[3], axis=3)  # a grey image three times
    images = torch.from_numpy(colours).permute(0, 3, 1, 2)
    return np.concatenate([network(part.to(device))[0].cpu().numpy() for part in images.split(BATCH)])
