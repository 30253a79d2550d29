
# A requeued job continues from its last checkpoint with the settings that its run recorded: to edit
# the config while the job waits does not change it.
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && compgen -G "$run/checkpoints/step-*[0-9]" >/dev/null; then
    start=("${resume[@]}")
fi

# One torchrun per node, which slurm_node.py starts. Their rendezvous is on the first node, whose
# address Slurm passes on. Jobs that share a node have different ports.
export python node ranks_per_node port=$((12000 + SLURM_JOB_ID % 20000))
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 bash -c '
exec "$python" -P "$node" \
    --nnodes="$SLURM_NNODES" --nproc_per_node="$ranks_per_node" \
    --rdzv_backend=c10d --rdzv_id="$SLURM_JOB_ID" \
    --rdzv_endpoint="$SLURM_LAUNCH_NODE_IPADDR:$port" --rdzv_conf=is_host=$((SLURM_NODEID == 0)) \
    "$@"' bash "$program" "${start[@]}" &
srun=$!

# Before the time limit Slurm sends SIGUSR1 to this script, which passes it on to the ranks: they save
# and exit.
limit=
trap 'limit=reached signal=received; kill -USR1 "$srun"' USR1
signal=received
while [ -n "$signal" ]; do # a signal ends wait before srun has ended
    signal=
    wait "$srun"
    code=$?
done

if [ -n "$limit" ] && grep -qs '"state": "interrupted"' "$run/status.json"; then
    echo "saved before the time limit; requeueing job $SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
