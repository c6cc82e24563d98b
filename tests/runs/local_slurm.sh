#!/bin/bash
# A real SLURM of one node on this machine, for trying hydra/launcher=slurm and for its test. Root; Debian and Ubuntu:
#
#   apt-get install -y --no-install-recommends slurm-wlm munge
#   eval "$(tests/runs/local_slurm.sh start)"     # starts munged, slurmctld and slurmd; sets SLURM_CONF for sbatch and the others
#   tests/runs/local_slurm.sh stop
#
# Everything lies in one folder (LOCAL_SLURM, /var/tmp/local-slurm); no configuration of the machine is touched.
set -euo pipefail

folder=${LOCAL_SLURM:-/var/tmp/local-slurm}
export SLURM_CONF=$folder/slurm.conf

say() { echo "local_slurm: $*" >&2; }

fail() {
    say "$*"
    tail -n 5 "$folder"/*.log >&2 2>/dev/null || true
    exit 1
}

# until SECONDS COMMAND...: wait until the command succeeds
until_true() {
    local seconds=$1
    shift
    for _ in $(seq $((seconds * 10))); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.1
    done
    return 1
}

alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

idle() { sinfo --noheader --format %T 2>/dev/null | grep -qE '^(idle|mixed|allocated)'; }

start() {
    local program
    for program in munged slurmctld slurmd sbatch; do
        command -v $program >/dev/null || fail "no $program: apt-get install -y --no-install-recommends slurm-wlm munge"
    done
    [ "$(id -u)" = 0 ] || fail "needs root: the daemons start jobs as the users who submit them"
    if ! { alive "$folder/munged.pid" && alive "$folder/slurmctld.pid" && alive "$folder/slurmd.pid" && idle; }; then
        stop
        rm -rf "$folder"
        mkdir -p "$folder"/{munge,state,spool}
        chmod 755 "$folder"
        configure
        # munged refuses to work as root: its own user, and a key that only it can read
        dd if=/dev/urandom of="$folder/munge/key" bs=128 count=1 status=none
        chown -R munge: "$folder/munge"
        chmod 400 "$folder/munge/key"
        chmod 755 "$folder/munge"
        setpriv --reuid munge --regid munge --clear-groups munged --key-file "$folder/munge/key" \
            --socket "$folder/munge/socket" --pid-file "$folder/munge/munged.pid" --log-file "$folder/munge/munged.log" \
            --seed-file "$folder/munge/seed" || fail "munged does not start"
        ln -sf munge/munged.pid "$folder/munged.pid"
        slurmctld -f "$SLURM_CONF" >&2
        slurmd -f "$SLURM_CONF" >&2
        until_true 30 idle || fail "the node does not come up within 30 s"
    fi
    say "up: $(sinfo --noheader --format '%n %T, %c processors')"
    echo "export SLURM_CONF=$SLURM_CONF"
}

configure() {
    cat >"$SLURM_CONF" <<END
ClusterName=local
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=30
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) State=UNKNOWN
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
}

stop() {
    local name
    for name in slurmd slurmctld munged; do
        if alive "$folder/$name.pid"; then
            kill "$(cat "$folder/$name.pid")"
            until_true 20 bash -c "! kill -0 $(cat "$folder/$name.pid")" || say "$name does not end"
        fi
    done
}

case "${1:-}" in
    start) start ;;
    stop) stop ;;
    *) fail "usage: eval \"\$(tests/runs/local_slurm.sh start)\", tests/runs/local_slurm.sh stop" ;;
esac
