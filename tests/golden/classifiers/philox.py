"""The documented draws (common/base/rng.h, train/eval/classifier.h) in Python, from Philox4x32-10's definition (Salmon et al., SC 2011): for golden files and reference checks."""
import math

AUGMENT, INIT, SHUFFLE, SPLIT = 1, 2, 3, 4
MASK = 2**32 - 1


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [q >> 32 ^ c[1] ^ k[0], q & MASK, p >> 32 ^ c[3] ^ k[1], p & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


class Stream:
    """key = seed; counter = id low 64 bits | view | purpose 16 bits, block 16 bits."""

    def __init__(self, seed, ident, view, purpose):
        self.key = (seed & MASK, seed >> 32)
        self.counter = [ident & MASK, ident >> 32 & MASK, view, purpose << 16]
        self.words = []

    def u32(self):
        if not self.words:
            self.words = philox(self.counter, self.key)
            self.counter[3] += 1
        return self.words.pop(0)

    def below(self, n):
        x = self.u32()
        while x < (2**32 - n) % n:
            x = self.u32()
        return x % n

    def normal(self):
        u = (self.u32() + 1) / 2**32
        return math.sqrt(-2 * math.log(u)) * math.cos(6.283185307179586 * (self.u32() / 2**32))


def permutation(seed, epoch, n):
    """Fisher-Yates; a new stream every 65,536 swaps."""
    out = list(range(n))
    for done in range(n - 1):
        if done % 65536 == 0:
            stream = Stream(seed, done // 65536, epoch, SHUFFLE)
        i = n - done
        j = stream.below(i)
        out[i - 1], out[j] = out[j], out[i - 1]
    return out


def split(seed, n):
    """(indices that fit, indices of the held-out tenth), both ascending."""

    def draw(i):
        stream = Stream(seed, i, 0, SPLIT)
        return stream.u32() << 32 | stream.u32(), i

    held = set(sorted(range(n), key=draw)[: n // 10])
    return [i for i in range(n) if i not in held], sorted(held)
