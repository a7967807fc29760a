"""Tiny networks that restore images: a masked autoencoder, autoencoders with a codebook and with a Gaussian code, an inpainting U-Net."""

from typing import Any

from diffusers import AutoencoderKL, UNet2DModel, VQModel
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from worker.families import masked_autoencoder

SIZE = 8


def mae() -> Any:
    config = ViTMAEConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        image_size=SIZE,
        patch_size=2,
        initializer_range=0.2,
    )
    network = ViTMAEForPreTraining(config)
    masked_autoencoder.fix_positions(network)
    return network


def vq() -> Any:
    return VQModel(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIZE,
        num_vq_embeddings=16,
    )


def kl() -> Any:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=2,
        sample_size=SIZE,
    )


def inpainting() -> Any:
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )


NETWORKS = {
    "mae": "masked_autoencoder",
    "vq": "vq_autoencoder",
    "kl": "vq_autoencoder",
    "inpainting": "inpainting_diffusion",
}
BUILDERS = {"mae": mae, "vq": vq, "kl": kl, "inpainting": inpainting}
