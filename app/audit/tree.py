"""The root of a Merkle tree over leaves in a given order: the tree hash of RFC 9162, section 2.1.1.

MTH()       = SHA-256("")
MTH(d)      = SHA-256(0x00 || d)
MTH(D[0:n]) = SHA-256(0x01 || MTH(D[0:k]) || MTH(D[k:n])),  k the largest power of two below n
"""

import hashlib


def root(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    hashes = [hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves]
    while len(hashes) > 1:  # level by level: one that is left over moves up as it is
        pairs = zip(hashes[::2], hashes[1::2], strict=False)
        above = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in pairs]
        hashes = above + hashes[len(above) * 2 :]
    return hashes[0]
