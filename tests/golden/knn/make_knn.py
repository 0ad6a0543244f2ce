"""Golden k-NN predictions: DINO's eval_knn.py protocol in NumPy, on features that both sides compute from a formula.

    python3 make_knn.py > knn_golden.h        (numpy 1.24)
"""
import numpy as np

TRAIN, TEST, WIDTH, CLASSES = 90, 60, 37, 6


def sequence(n, seed):  # 32-bit LCG of Numerical Recipes; the C test has the same
    out, x = np.empty(n), seed
    for i in range(n):
        x = (1664525 * x + 1013904223) % 2**32
        out[i] = x / 2**32 - 0.5
    return out


def features(count, seed, labels):
    f = sequence(count * WIDTH, seed).reshape(count, WIDTH).astype(np.float32)
    f[np.arange(count), labels] += np.float32(0.75)  # a little class signal
    return f


train_label = np.arange(TRAIN) % CLASSES
test_label = (np.arange(TEST) * 5 + 1) % CLASSES
a = features(TRAIN, 1, train_label).astype(np.float64)
b = features(TEST, 2, test_label).astype(np.float64)
a /= np.linalg.norm(a, axis=1, keepdims=True)
b /= np.linalg.norm(b, axis=1, keepdims=True)
similarity = b @ a.T
print("/* Made by make_knn.py with numpy %s; do not edit. */" % np.__version__)
print("enum { KNN_TRAIN = %d, KNN_TEST = %d, KNN_WIDTH = %d, KNN_CLASSES = %d };" % (TRAIN, TEST, WIDTH, CLASSES))
for k in (1, 5, 20):
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    votes = np.zeros((TEST, CLASSES))
    for i in range(TEST):
        for j in order[i]:
            votes[i, train_label[j]] += np.exp(similarity[i, j] / 0.07)
    predicted = votes.argmax(axis=1)
    ranked = np.argsort(-votes, axis=1, kind="stable")[:, :5]
    top5 = np.mean([(votes[i, test_label[i]] > 0) and test_label[i] in ranked[i] for i in range(TEST)])
    print("static const int knn_k%d[] = {%s};" % (k, ", ".join(map(str, predicted))))
    print("static const double knn_k%d_top1 = %.17g, knn_k%d_top5 = %.17g;" % (k, np.mean(predicted == test_label), k, top5))
