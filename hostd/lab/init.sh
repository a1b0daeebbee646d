#!/bin/busybox sh
# Process 1 of the lab: this host's file system, read-only, under a layer in memory; then hostd's agent.
# The command line says: lab.out=FOLDER (really written), lab.modules=FOLDER (lib/modules/VERSION on the host).
b=/bin/busybox
fail() { echo "lab: $*"; exec $b poweroff -f; }
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for word in $($b cat /proc/cmdline); do
    case $word in
    lab.out=*) out=$($b printf "${word#lab.out=}") ;;
    lab.modules=*) modules=$($b printf "${word#lab.modules=}") ;;
    esac
done
for module in /modules/early/*; do $b insmod "$module" || fail "$module does not load"; done
options=trans=virtio,version=9p2000.L,msize=1048576
$b mount -t 9p -o $options,cache=loose,ro root /host || fail "the host's file system can't be mounted"
$b mount -t tmpfs -o size=75% top /top
$b mkdir /top/upper /top/work
$b mount -t overlay -o lowerdir=/host,upperdir=/top/upper,workdir=/top/work root /root || fail "no overlay"
for module in /modules/late/*; do $b insmod "$module" || echo "lab: $module does not load"; done
/steady || echo "lab: the kernel may patch itself"

# What is the machine's own, not the host's.
for place in dev proc sys; do $b mkdir -p /root/$place; $b mount --move /$place /root/$place; done
cd /root || fail "no root"
$b mkdir -p dev/pts dev/shm run tmp sys/fs/cgroup
$b mount -t devpts -o mode=620,ptmxmode=666 pts dev/pts
$b mount -t tmpfs -o size=75%,mode=1777 shm dev/shm
$b mount -t tmpfs -o mode=755 run run
$b ln -s /proc/self/fd dev/fd
$b ln -s /proc/self/fd/0 dev/stdin
$b ln -s /proc/self/fd/1 dev/stdout
$b ln -s /proc/self/fd/2 dev/stderr
$b mount -t cgroup2 cgroup sys/fs/cgroup
if [ -n "$modules" ] && [ -d "/root$modules" ]; then
    version=${modules##*/}
    $b mkdir -p "lib/modules/$version"
    $b mount --bind "/root$modules" "lib/modules/$version"
fi
# Who has no modprobe gets busybox's: the kernel itself calls it, too.
$b mkdir -p run/hostd
$b cp /bin/busybox run/hostd/busybox
[ -e sbin/modprobe ] || $b ln -s /run/hostd/busybox sbin/modprobe
if [ -n "$out" ]; then
    # The host's folder is hidden if it lies in what is the machine's own: /run, /dev/shm.
    $b mkdir -p "/root$out"
    $b mount -t 9p -o $options,cache=mmap out "/root$out" || fail "$out can't be mounted for writing"
fi
$b ip link set lo up || echo "lab: no loopback"
$b hostname lab
echo 1 > proc/sys/vm/overcommit_memory
$b cp /agent run/hostd/agent
ulimit -n 1000000
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec $b switch_root /root /run/hostd/agent
