"""Trains a small icon classifier from the files of a mounted Dataset, as any training script would read them.

The folder of an image is its label. Each epoch opens and decodes every file anew, in a random order, like a data loader that keeps
nothing; the model is a softmax regression over small thumbnails, so the time goes into reading.
"""

import hashlib
import mmap
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

IMAGES = os.environ.get("IMAGES", "/data/icons")
MODEL = os.environ.get("MODEL", "/data/model")
EPOCHS = int(os.environ.get("EPOCHS", "2"))
SIDE = 12


def walk(root):
    """All files below root, sorted, so that every node sees the same order."""
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)


def load_model(root):
    """Maps the largest file as a serving process maps its weights, and touches all of it."""
    path = max(walk(root), key=os.path.getsize)
    start = time.monotonic()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as weights:
        digest = hashlib.sha256(weights).hexdigest()
        size = len(weights)
    seconds = time.monotonic() - start
    print(f"model {os.path.basename(path)}: {size / 1e6:.1f} MB in {seconds:.2f} s, sha256 {digest[:16]}", flush=True)


def thumbnail(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGBA").resize((SIDE, SIDE)), dtype=np.float32).ravel() / 255.0


def main():
    load_model(MODEL)
    files = [path for path in walk(IMAGES) if path.endswith(".png")]
    names = sorted({os.path.basename(os.path.dirname(path)) for path in files})
    labels = np.array([names.index(os.path.basename(os.path.dirname(path))) for path in files])
    size = sum(os.path.getsize(path) for path in files)
    print(f"images: {len(files)} files, {size / 1e6:.1f} MB, {len(names)} labels", flush=True)

    random = np.random.default_rng(1)
    weights = np.zeros((SIDE * SIDE * 4 + 1, len(names)), dtype=np.float32)
    with ThreadPoolExecutor(8) as pool:
        for epoch in range(1, EPOCHS + 1):
            start, loss, right = time.monotonic(), 0.0, 0
            order = random.permutation(len(files))
            for first in range(0, len(order), 256):
                batch = order[first : first + 256]
                x = np.stack(list(pool.map(thumbnail, (files[i] for i in batch))))
                x = np.hstack([x, np.ones((len(batch), 1), dtype=np.float32)])
                scores = x @ weights
                scores -= scores.max(axis=1, keepdims=True)
                likelihood = np.exp(scores)
                likelihood /= likelihood.sum(axis=1, keepdims=True)
                truth = labels[batch]
                loss -= float(np.log(likelihood[np.arange(len(batch)), truth] + 1e-9).sum())
                right += int((likelihood.argmax(axis=1) == truth).sum())
                likelihood[np.arange(len(batch)), truth] -= 1
                weights -= 0.05 * (x.T @ likelihood) / len(batch)
            seconds = time.monotonic() - start
            print(
                f"epoch {epoch}: {len(files) / seconds:.0f} files/s, loss {loss / len(files):.3f}, "
                f"accuracy {right / len(files):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
