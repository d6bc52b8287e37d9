#!/usr/bin/env bash
# Starts a SLURM cluster of this one machine, runs the command given, and stops it. Exit code 77: it does not start here.
# Needs root and Debian's slurm-wlm and munge (apt-get install --no-install-recommends slurm-wlm munge).
set -euo pipefail

place=$(mktemp -d)
export SLURM_CONF="$place/slurm.conf"
chmod 755 "$place"
mkdir -p "$place"/{state,spool} /run/munge
chown munge:munge /run/munge
cat > "$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
KillWait=5
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END

stop() {
    for name in slurmd slurmctld; do
        [[ -s "$place/$name.pid" ]] && kill "$(cat "$place/$name.pid")" 2> /dev/null || true
    done
    [[ -n "${munge_started:-}" ]] && pkill -u munge munged || true
    sleep 1
    rm -rf "$place"
}
trap stop EXIT

if ! munge -n > /dev/null 2>&1; then
    runuser -u munge -- munged || exit 77
    munge_started=yes
fi
{ slurmctld && slurmd; } || exit 77
for _ in $(seq 30); do
    sinfo --noheader --format %T 2> /dev/null | grep -q idle && break
    sleep 1
done
sinfo --noheader --format %T | grep -q idle || { tail -n 20 "$place"/*.log; exit 77; }
"$@"
