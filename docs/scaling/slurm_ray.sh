#!/bin/bash
# A Ray cluster for as long as the job lasts: a head on the first node, a worker for each GPU.
#   FOLDER=/shared/faces OUT=/shared/out sbatch docs/scaling/slurm_ray.sh
# Submitted again, it goes on where it stopped.
#SBATCH --job-name=stylesr
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
set -euo pipefail
export RAY_AUTH_MODE=token # others on these machines are kept out
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
address=$ip:6379
size=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_ON_NODE" --block)

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
    ray start --head --node-ip-address="$ip" --port=6379 "${size[@]}" &
sleep 20
if ((${#nodes[@]} > 1)); then
    others=$(IFS=,; echo "${nodes[*]:1}")
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --nodelist="$others" \
        --overlap ray start --address="$address" "${size[@]}" &
    sleep 20
fi
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
    python -m stylesr_jax.upsample "$FOLDER" --out "$OUT" --cluster "$address" --json
