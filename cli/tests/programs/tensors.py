"""A model's weights: `make FOLDER` writes them, `read FOLDER` maps them and prints sums of whole tensors and of slices."""

import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

NAME = "model.safetensors"


def make(folder):
    random = np.random.default_rng(1)
    layers = {f"layer.{n}.weight": random.standard_normal((512, 300 + n)).astype(np.float32) for n in range(8)}
    save_file(layers, folder / NAME, metadata={"format": "np"})


def read(folder):
    with safe_open(folder / NAME, framework="numpy") as tensors:
        # Not in the order of the file.
        for name in sorted(tensors.keys(), reverse=True):
            part = tensors.get_slice(name)[100:110, 5:]
            print(name, part.shape, part.sum(dtype=np.float64), tensors.get_tensor(name).sum(dtype=np.float64))
    print("all", sum(tensor.nbytes for tensor in load_file(folder / NAME).values()))


{"make": make, "read": read}[sys.argv[1]](Path(sys.argv[2]))
