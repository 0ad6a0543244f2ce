"""Golden .npy files: the bytes of numpy.save.

    python3 make_npy.py > npy_golden.h        (numpy 2)
"""
import io

import numpy as np

ARRAYS = {
    "matrix": np.arange(6, dtype="<f4").reshape(2, 3) / 4 - 0.5,
    "vector": np.array([-1, 0, 2**40], dtype="<i8"),
    "scalar": np.array(2.5, dtype="<f8"),
    "empty": np.zeros((0, 4), dtype="|u1"),
    "long": np.zeros((1, 1, 1, 1, 2, 1, 1, 1), dtype="<f2"),
}
print("/* Made by make_npy.py with numpy %s; do not edit. */" % np.__version__)
for name, array in ARRAYS.items():
    out = io.BytesIO()
    np.save(out, array)
    print("static const unsigned char npy_%s[] = {%s};" % (name, ", ".join(str(b) for b in out.getvalue())))
