#!/bin/bash
# One task of an array for each part of the folder; nothing but this package is needed.
#   FOLDER=/shared/faces OUT=/shared/out sbatch docs/scaling/slurm_array.sh
# When all have ended, the same without --shard does what is left and writes the summary.
#SBATCH --job-name=stylesr
#SBATCH --array=0-15
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --requeue
set -euo pipefail
exec srun python -m stylesr_jax.upsample "$FOLDER" --out "$OUT" --resume --json \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
