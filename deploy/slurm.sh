#!/bin/bash
# Train on several machines under Slurm, for longer than one job may last:
#
#   sbatch deploy/slurm.sh flowers --dataset_path datasets/flowers --image_size 64
#
# The first argument is the run's name, all others are options of tools/train.py. Submit it from the
# project's folder, which all machines have to see, results/ included. Two minutes before the time is
# up, the run saves and ends, and Slurm queues the job again, which then resumes. So it does after a
# machine was lost, or the job had to make room for another one.

#SBATCH --job-name=iddm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -u

run_name=$1
shift

results=results
begins=() # the options that only the beginning of a run takes
others=()
while [ $# -gt 0 ]; do
    case $1 in
        --pretrain=* | --pretrain_path=*) begins+=("$1") ;;
        --pretrain)
            begins+=("$1")
            case ${2---} in # a value may follow
                --*) ;;
                *) begins+=("$2"); shift ;;
            esac
            ;;
        --pretrain_path) begins+=("$1" "${2-}"); shift ;;
        --result_path=*) results=${1#*=}; others+=("$1") ;;
        --result_path) results=${2-}; others+=("$1" "$results"); shift ;;
        *) others+=("$1") ;;
    esac
    shift
done
if [ -e "$results/$run_name/ckpt_last.pt" ] || [ -e "$results/$run_name/ckpt_prev.pt" ]; then
    begins=(--resume)
fi

first_machine=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
processes=${SLURM_GPUS_ON_NODE:-1} # one for each GPU
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / processes))

# Slurm sends its warning to this shell alone. The processes of the run get it from here.
time_is_up=no
hand_on() {
    time_is_up=yes
    scancel --signal=TERM "$SLURM_JOB_ID"
}
trap hand_on TERM

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "$processes" \
    --rdzv_id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --rdzv_backend c10d --rdzv_endpoint "$first_machine:29500" \
    tools/train.py --run_name "$run_name" "${others[@]}" "${begins[@]}" &
step=$!

wait "$step"
status=$?
while kill -0 "$step" 2> /dev/null; do # the signal has ended "wait", not the step
    wait "$step"
    status=$?
done

if [ "$time_is_up" = yes ]; then
    echo "The time was up: the job is queued again, and will resume."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
