"""Famous networks that measure images, on weights that the operator gives: one file each, named as in the catalogue.

    load(weights, device) -> network     from a dict of tensors; never from the internet
    embed(network, pictures) -> (n, d)   of uint8 images (n, H, W, C), float32

Their packages are the optional extra `evaluators`; importing a file without it fails, which worker.backbones tells.
"""
