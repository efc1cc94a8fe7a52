"""Run by the Python of MLX's environment: `run_mlx.py FOLDER`. Logits of the ids in FOLDER/ids.json by mlx-lm, in
float32 on the CPU, as FOLDER/logits.npy, and greedy tokens after them as FOLDER/greedy.json."""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model


folder = Path(sys.argv[1])
mx.set_default_device(mx.cpu)
model, _ = load_model(folder / "native", strict=True)
model.set_dtype(mx.float32)
ids = json.loads((folder / "ids.json").read_text())
np.save(folder / "logits.npy", np.array(model(mx.array(ids)).astype(mx.float32)))
rows = [list(row) for row in ids]
for _ in range(16):
    for row in rows:
        row.append(int(mx.argmax(model(mx.array([row]))[0, -1])))
(folder / "greedy.json").write_text(json.dumps([row[len(ids[0]) :] for row in rows]))
