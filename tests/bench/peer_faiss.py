"""The peer of bench_knn: faiss's flat inner-product index on the same features, one thread.

    peer_faiss.py data FOLDER ROWS QUERIES WIDTH      rows.f32 and queries.f32: 200 noisy clusters, not of length 1
    peer_faiss.py search FOLDER WIDTH K               raw features -> normalize_L2 -> add -> search; writes found.faiss (i64 [queries][K])
    peer_faiss.py compare FOLDER WIDTH K              found.ours against found.faiss: shares of equal neighbour lists and of equal neighbours, both against NumPy in f64 where they differ

search prints one JSON line as bench_knn does.
"""
import json
import os
import resource
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np  # noqa: E402


def path(name):
    return os.path.join(sys.argv[2], name)


def data(rows, queries, width):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((200, width), dtype=np.float32)
    for name, n in (("rows.f32", rows), ("queries.f32", queries)):
        x = rng.standard_normal((n, width), dtype=np.float32) + 0.5 * centres[rng.integers(0, 200, n)]
        x.tofile(path(name))


def read(name, width):
    return np.fromfile(path(name), np.float32).reshape(-1, width)


def user():
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def search(width, k):
    import faiss
    faiss.omp_set_num_threads(1)
    rows, queries = read("rows.f32", width), read("queries.f32", width)
    wall, cpu = time.perf_counter(), user()
    faiss.normalize_L2(rows)
    faiss.normalize_L2(queries)
    index = faiss.IndexFlatIP(width)
    index.add(rows)
    _, found = index.search(queries, k)
    wall, cpu = time.perf_counter() - wall, user() - cpu
    found.tofile(path("found.faiss"))
    print(json.dumps({"wall_s": round(wall, 3), "user_s": round(cpu, 3), "version": faiss.__version__}))


def compare(width, k):
    ours, theirs = np.fromfile(path("found.ours"), np.uint32).reshape(-1, k).astype(np.int64), np.fromfile(path("found.faiss"), np.int64).reshape(-1, k)
    rows, queries = read("rows.f32", width).astype(np.float64), read("queries.f32", width).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    worst = 0.0
    for i in np.flatnonzero((ours != theirs).any(1)):
        s = rows @ queries[i]
        best = -np.sort(-s)[:k]
        worst = max(worst, np.abs(s[ours[i]] - best).max())
    print(json.dumps({"lists": float((ours == theirs).all(1).mean()), "neighbours": float((ours == theirs).mean()), "worst": float(worst)}))


{"data": data, "search": search, "compare": compare}[sys.argv[1]](*map(int, sys.argv[3:]))
