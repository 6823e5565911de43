"""A loader as training has it: `make FOLDER` writes samples, `train FOLDER` reads them with forked workers, each epoch in a new order.

Small samples are files of their own; the others are pieces of one packed file, whose descriptor the workers inherit."""

import mmap
import multiprocessing
import os
import random
import sys
import zlib
from pathlib import Path

FILES, PACKED, PACKED_BYTES, WORKERS, EPOCHS = 300, 100, 50_021, 4, 2


def content(number, length):
    return random.Random(number).randbytes(length)


def make(folder):
    (folder / "small").mkdir()
    for number in range(FILES):
        data = content(number, 1_000 + 37 * number)
        (folder / "small" / f"{number}-{zlib.crc32(data):08x}").write_bytes(data)
    pieces = [content(FILES + number, PACKED_BYTES) for number in range(PACKED)]
    (folder / "packed").write_bytes(b"".join(pieces))
    (folder / "packed.index").write_text("\n".join(f"{zlib.crc32(piece):08x}" for piece in pieces))


class Samples:
    def __init__(self, folder):
        self.files = [entry.path for entry in os.scandir(folder / "small")]
        self.sums = [int(line, 16) for line in (folder / "packed.index").read_text().split()]
        self.packed = os.open(folder / "packed", os.O_RDONLY)
        self.map = mmap.mmap(self.packed, 0, prot=mmap.PROT_READ)

    def __len__(self):
        return len(self.files) + len(self.sums)

    def is_right(self, index):
        if index < len(self.files):
            path = self.files[index]
            with open(path, "rb") as file:
                data = file.read()
            return os.stat(path).st_size == len(data) and zlib.crc32(data) == int(path.rsplit("-", 1)[1], 16)
        piece = index - len(self.files)
        start = piece * PACKED_BYTES
        if index % 2:
            data = os.pread(self.packed, PACKED_BYTES, start)
        else:
            data = self.map[start:start + PACKED_BYTES]
        return zlib.crc32(data) == self.sums[piece]


def work(samples, indices, results):
    results.put(sum(not samples.is_right(index) for index in indices))


def train(folder):
    samples = Samples(folder)
    fork = multiprocessing.get_context("fork")
    wrong = 0
    for epoch in range(EPOCHS):
        order = list(range(len(samples)))
        random.Random(epoch).shuffle(order)
        results = fork.SimpleQueue()
        workers = [fork.Process(target=work, args=(samples, order[n::WORKERS], results)) for n in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            if worker.exitcode != 0:
                sys.exit(f"a worker ended with {worker.exitcode}")
        wrong += sum(results.get() for _ in workers)
    print(f"{EPOCHS} epochs of {len(samples)} samples by {WORKERS} workers, {wrong} wrong")


{"make": make, "train": train}[sys.argv[1]](Path(sys.argv[2]))
