"""Makes relucheck/_data/digits.npz, the shipped sample of MNIST. For maintainers: users and tests never run it.

    python tools/make_digits.py ROOT           writes the file and prints the checksums that relucheck/data.py holds
    python tools/make_digits.py ROOT --check   writes nothing; exits with 1 if it would write other values than are shipped

ROOT is a data root that has MNIST/raw. The rule: of the training file the first 200 images of each class, of the test
file the first 50, both kept in file order. The values depend on nothing else; the file's bytes also depend on zlib,
which is why data.py holds the checksums of both.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import torch

from relucheck import data

PER_CLASS = {"train": 200, "test": 50}
FILE = Path(data.__file__).parent / "_data" / "digits.npz"


def first_of_each_class(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Positions, increasing, of the first ``count`` entries of each class in ``labels``, int64 [n]."""
    firsts = [torch.nonzero(labels == label).flatten()[:count] for label in labels.unique()]
    return torch.cat(firsts).sort().values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()

    arrays: dict[str, np.ndarray] = {}
    checksums = {}
    for split, count in PER_CLASS.items():
        mnist = data.load_mnist(arguments.root, split, download=False)
        chosen = first_of_each_class(mnist.labels, count)
        images, labels = mnist.images[chosen], mnist.labels[chosen]
        arrays[f"{split}_images"] = images.numpy()
        arrays[f"{split}_labels"] = labels.to(torch.uint8).numpy()
        checksums[split] = data.checksum(images, labels)
        print(f"{split}: {len(chosen)} images, last at position {int(chosen[-1])}, SHA-256 {checksums[split]}")
    if arguments.check:
        shipped = {split: data.load_digits(split).checksum for split in PER_CLASS}
        print("the shipped sample is the same" if shipped == checksums else f"the shipped sample differs: {shipped}")
        return 0 if shipped == checksums else 1
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(stream.getvalue())
    print(f"{FILE}: {FILE.stat().st_size} bytes, SHA-256 {hashlib.sha256(stream.getvalue()).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
