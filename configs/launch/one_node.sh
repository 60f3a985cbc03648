#!/usr/bin/env bash
# One machine with several GPUs (or, for a try, several processes on a CPU): one process per GPU.
# Edit the three lines below. The same file continues a stopped run: add --resume behind it.
set -euo pipefail

CONFIG=configs/tinystories.yaml
OUT_DIR=runs/one_node
PROCESSES=gpu # or a number: 2

# micro_batch_size x grad_accum_steps is the batch of all processes together: it must be a multiple of their number. A model that does not fit on one GPU: --parallelism fsdp (docs/DESIGN.md, "Beyond one machine").
exec torchrun --standalone --nproc-per-node "$PROCESSES" \
  -m tiny_transformer train --config "$CONFIG" --out_dir "$OUT_DIR" --grad_accum_steps 8 --parallelism ddp "$@"
