"""The peers of bench_cache on the same amount of noise: numpy.memmap, one .npy file per sample, a WebDataset tar.

    peer_cache.py write KIND DIR KB COUNT      durable: everything is on the disk when the time is taken
    peer_cache.py read KIND DIR [COUNT]        random order and a sum over every byte; a tar, which can't be read at random, in its own order
    peer_cache.py drop FILE ..                 takes files out of the page cache

KIND: memmap, npy, webdataset. Samples are f16, width 256. One JSON line: MB/s of sample bytes, bytes on the disk.
"""
import glob
import json
import os
import sys
import time

import numpy as np

WIDTH = 256


def samples(rows, count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield (rng.integers(0, 65536, (rows, WIDTH), dtype=np.uint16) & 0x7BFF).view(np.float16)


def fsync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def write(kind, folder, kb, count):
    rows = kb * 1000 // (2 * WIDTH)
    data = list(samples(rows, count))
    os.makedirs(folder, exist_ok=True)
    if kind == "webdataset":
        import webdataset  # before the clock starts
    begin = time.perf_counter()
    if kind == "memmap":
        m = np.lib.format.open_memmap(f"{folder}/all.npy", mode="w+", dtype=np.float16, shape=(count, rows, WIDTH))
        for i, x in enumerate(data):
            m[i] = x
        m.flush()
        fsync(f"{folder}/all.npy")
    elif kind == "npy":
        for i, x in enumerate(data):
            np.save(f"{folder}/{i:06d}.npy", x)
        os.sync()
    else:
        with webdataset.TarWriter(f"{folder}/all.tar") as tar:
            for i, x in enumerate(data):
                tar.write({"__key__": f"{i:06d}", "npy": x})
        fsync(f"{folder}/all.tar")
    seconds = time.perf_counter() - begin
    disk = sum(os.stat(p).st_blocks * 512 for p in glob.glob(f"{folder}/*"))
    print(json.dumps({"write_mb_s": round(1e-6 * sum(x.nbytes for x in data) / seconds), "disk_bytes": disk}))


def read(kind, folder, most):
    if kind == "webdataset":
        import webdataset  # before the clock starts
    begin, total = time.perf_counter(), 0
    if kind == "memmap":
        m = np.load(f"{folder}/all.npy", mmap_mode="r")
        order = np.random.default_rng(1).permutation(len(m))[: most or None]
        for i in order:
            x = np.array(m[i])
            total += x.nbytes
            x.view(np.uint64).sum()
    elif kind == "npy":
        names = sorted(glob.glob(f"{folder}/*.npy"))
        begin = time.perf_counter()
        for i in np.random.default_rng(1).permutation(len(names))[: most or None]:
            x = np.load(names[i])
            total += x.nbytes
            x.view(np.uint64).sum()
    else:
        for s in webdataset.WebDataset(f"{folder}/all.tar", shardshuffle=False).decode():
            x = s["npy"]
            total += x.nbytes
            x.view(np.uint64).sum()
            most -= 1
            if most == 0:
                break
    print(json.dumps({"read_mb_s": round(1e-6 * total / (time.perf_counter() - begin), 1)}))


def drop(paths):
    for p in paths:
        fd = os.open(p, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


if sys.argv[1] == "drop":
    drop(sys.argv[2:])
elif sys.argv[1] == "write":
    write(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
else:
    read(sys.argv[2], sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 0)
