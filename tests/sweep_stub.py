"""A stand-in for finetune.py that a sweep starts: evaluations with pauses between them, then metrics.json.

sweep_stub.py CONFIG.yaml; its loss is the distance of the learning rate from .01, in powers of ten.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

import yaml

flags = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
folder = Path(flags["output_dir"])
folder.mkdir(exist_ok=True)
with open(folder.parent / "begun.txt", "a") as file:
    file.write(f"{folder.name} {os.getpid()}\n")
loss = abs(math.log10(flags["learning_rate"]) + 2)
for evaluation in range(3):
    time.sleep(flags.get("pause", 0.0))
    with open(folder / "log.jsonl", "a") as file:
        row = {"step": 10 * evaluation + 10, "epoch": evaluation + 1.0, "eval_loss": loss + 1 / (evaluation + 1)}
        file.write(json.dumps(row) + "\n")
if flags.get("refused_above", 1.0) < flags["learning_rate"]:
    print("finetune.py: The loss of step 3 is nan. Lower --learning_rate.", file=sys.stderr)
    sys.exit(2)
broken = flags["learning_rate"] > flags.get("nan_above", 1.0)
metrics = {"eval_loss": math.nan if broken else loss, "accuracy": 1 / (1 + loss) - 0.01 * flags.get("lora_r", 0)}
(folder / "metrics.json").write_text(json.dumps(metrics))
