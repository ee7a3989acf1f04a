#!/bin/sh
# A SLURM of one node for trying `--cluster slurm.yaml`: munged, slurmctld and slurmd on this machine.
#
#     sudo apt-get install slurm-wlm munge
#     sudo benchmarks/slurm/one_node.sh start FOLDER      # then: export SLURM_CONF=FOLDER/slurm.conf
#     sudo benchmarks/slurm/one_node.sh stop FOLDER
#
# Everything (configuration, key, state, logs, process ids) lies in FOLDER; nothing of the system's own
# configuration is read or changed. Needs root, since slurmd starts jobs for others.
set -eu
what=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
host=$(hostname -s)

if [ "$what" = stop ]; then
    for name in slurmd slurmctld munged; do
        if [ -f "$folder/$name.pid" ]; then
            kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
        fi
    done
    exit 0
fi

mkdir -p "$folder/state" "$folder/spool" "$folder/munge"
chown munge:munge "$folder/munge" 2>/dev/null || true
chmod 755 "$folder" "$folder/munge"
if [ ! -f "$folder/munge/key" ]; then
    dd if=/dev/urandom of="$folder/munge/key" bs=1 count=1024 2>/dev/null
fi
chmod 400 "$folder/munge/key"
# Run by one user alone, munged asks for files of that user.
chown "$(id -u):$(id -g)" "$folder/munge" "$folder/munge/key"
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"

memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
cat > "$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPort=${SLURMCTLD_PORT:-16817}
SlurmdPort=${SLURMD_PORT:-16818}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=normal Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
END
export SLURM_CONF="$folder/slurm.conf"
slurmctld
slurmd
for _ in 1 2 3 4 5 6 7 8 9 10; do
    sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break
    sleep 1
done
sinfo
