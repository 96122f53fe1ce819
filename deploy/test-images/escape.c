/* escape: tries to get out of a container, in every way that it knows, and says what the kernel answered to each.
 *
 *     escape                all of them, one line each: what was tried, and `ok`, a value or the name of an error
 *     escape kill-all       kills everything that it may kill, but itself
 *
 * Every attempt is a process of its own. Nothing here does harm where it succeeds: what would (a reboot, the clock, writing
 * to the kernel's files) is asked for in a way that fails after the permission was given.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/rtnetlink.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif

static char told[512];

/* An outcome that is more than success or an error. */
static long say(const char *format, const char *text, long number) {
    snprintf(told, sizeof told, format, text, number);
    return 0;
}

/* Runs what follows in a process of its own, and prints what came of it. */
#define TRY(name, expression) do { \
    int low[2], ends[2] = {100, 101}; /* out of the way of those that others may have left open */ \
    if (pipe(low) < 0 || dup2(low[0], 100) < 0 || dup2(low[1], 101) < 0 || close(low[0]) < 0 || close(low[1]) < 0) exit(99); \
    fflush(stdout); \
    pid_t tried = fork(); \
    if (tried == 0) { \
        alarm(10); \
        errno = 0; \
        long result = (long)(expression); \
        if (result < 0) say("%s", strerrorname_np(errno), 0); \
        else if (!*told) say("ok", "", 0); \
        exit(write(ends[1], told, strlen(told)) < 0); \
    } \
    close(ends[1]); \
    char answer[513] = ""; \
    ssize_t size = read(ends[0], answer, sizeof answer - 1); \
    close(ends[0]); \
    int status = 0; \
    waitpid(tried, &status, 0); \
    if (size <= 0) snprintf(answer, sizeof answer, "killed by %d", WTERMSIG(status)); \
    printf("%s: %s\n", name, answer); \
} while (0)

static long opened(const char *path, int flags) { return open(path, flags | O_NONBLOCK | O_CLOEXEC); }
static long call0(long n) { return syscall(n, 0, 0, 0, 0, 0, 0); }

static void mounts(void) {
    TRY("mount a tmpfs", mount("x", "/tmp", "tmpfs", 0, NULL));
    TRY("mount the root elsewhere", mount("/", "/tmp", NULL, MS_BIND | MS_REC, NULL));
    TRY("mount another proc", mount("proc", "/tmp", "proc", 0, NULL));
    TRY("mount another sysfs", mount("sysfs", "/tmp", "sysfs", 0, NULL));
    TRY("mount a control group", mount("cgroup", "/tmp", "cgroup", 0, "devices"));
    TRY("mount a control group, version 2", mount("cgroup2", "/tmp", "cgroup2", 0, NULL));
    TRY("mount an overlay", mount("overlay", "/tmp", "overlay", 0, "lowerdir=/,upperdir=/tmp,workdir=/var/tmp"));
    TRY("mount devices", mount("devtmpfs", "/tmp", "devtmpfs", 0, NULL));
    TRY("make /sys writable", mount(NULL, "/sys", NULL, MS_REMOUNT | MS_BIND, NULL));
    TRY("make /proc/sys writable", mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL));
    TRY("make the root read-only", mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL));
    TRY("make the root shared", mount(NULL, "/", NULL, MS_REC | MS_SHARED, NULL));
    TRY("move /proc", mount("/proc", "/tmp", NULL, MS_MOVE, NULL));
    TRY("unmask /proc/keys", umount2("/proc/keys", 0));
    TRY("unmask /sys/firmware", umount2("/sys/firmware", MNT_DETACH));
    TRY("unmount /proc/sys", umount2("/proc/sys", MNT_DETACH));
    TRY("unmount the root", umount2("/", MNT_DETACH));
    TRY("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
    TRY("fsmount", syscall(SYS_fsmount, -1, 0, 0));
    TRY("fspick", syscall(SYS_fspick, AT_FDCWD, "/", 0));
    TRY("open_tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1));
    TRY("move_mount", syscall(SYS_move_mount, AT_FDCWD, "/proc", AT_FDCWD, "/tmp", 0));
    TRY("mount_setattr", syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, NULL, 0));
    TRY("pivot_root", syscall(SYS_pivot_root, "/", "/tmp"));
}

/* The classic way out of a chroot. Where does it end? */
static long out_of_chroot(void) {
    struct stat before, after;
    if (stat("/", &before) < 0 || (mkdir("/tmp/jail", 0700) < 0 && errno != EEXIST)) return -1;
    int outside = open("/", O_RDONLY | O_DIRECTORY);
    if (outside < 0 || chroot("/tmp/jail") < 0 || fchdir(outside) < 0) return -1;
    for (int i = 0; i < 100; i++)
        if (chdir("..") < 0) return -1;
    if (chroot(".") < 0 || stat("/", &after) < 0) return -1;
    return say(before.st_ino == after.st_ino && before.st_dev == after.st_dev ? "the same root" : "another root", "", 0);
}

static long cloned(unsigned long flags) {
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(0);
    return pid;
}

static long joined(const char *name) {
    char path[64];
    snprintf(path, sizeof path, "/proc/1/ns/%s", name);
    int fd = open(path, O_RDONLY);
    return fd < 0 ? -1 : setns(fd, 0);
}

static void namespaces(void) {
    TRY("chroot", chroot("/tmp"));
    TRY("out of a chroot", out_of_chroot());
    const struct { const char *name; unsigned long flag; } kinds[] = {
        {"mnt", CLONE_NEWNS}, {"pid", CLONE_NEWPID}, {"user", CLONE_NEWUSER}, {"net", CLONE_NEWNET},
        {"uts", CLONE_NEWUTS}, {"ipc", CLONE_NEWIPC}, {"cgroup", CLONE_NEWCGROUP}, {"time", CLONE_NEWTIME}};
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char name[64];
        snprintf(name, sizeof name, "unshare %s", kinds[i].name);
        TRY(name, unshare(kinds[i].flag));
        if (kinds[i].flag != CLONE_NEWTIME) { /* its bit is the signal's in clone */
            snprintf(name, sizeof name, "clone %s", kinds[i].name);
            TRY(name, cloned(kinds[i].flag));
        }
        snprintf(name, sizeof name, "setns %s", kinds[i].name);
        TRY(name, joined(kinds[i].name));
    }
    TRY("unshare user and mnt", unshare(CLONE_NEWUSER | CLONE_NEWNS));
    TRY("clone3", call0(SYS_clone3));
    TRY("setns by pidfd", setns(syscall(SYS_pidfd_open, 1, 0), CLONE_NEWNS));
}

static long read_memory_of(pid_t pid) {
    char here;
    struct iovec local = {&here, 1}, remote = {(void *)0x400000, 1};
    return process_vm_readv(pid, &local, 1, &remote, 1, 0);
}

static long count_processes(void) {
    DIR *dir = opendir("/proc");
    long count = 0;
    for (struct dirent *e; dir && (e = readdir(dir));) count += e->d_name[0] >= '1' && e->d_name[0] <= '9';
    return say("%s%ld", "", count);
}

static long link_of(const char *path) {
    char target[400];
    ssize_t n = readlink(path, target, sizeof target - 1);
    if (n < 0) return -1;
    target[n] = 0;
    return say("%s", target, 0);
}

static void processes(void) {
    TRY("processes", count_processes());
    TRY("the first one's program", link_of("/proc/1/exe"));
    TRY("the first one's root", link_of("/proc/1/root"));
    TRY("the first one's directory", link_of("/proc/1/cwd"));
    TRY("the first one's program, to be written", opened("/proc/1/exe", O_WRONLY));
    TRY("the own program, to be written", opened("/proc/self/exe", O_WRONLY));
    TRY("the first one's memory", opened("/proc/1/mem", O_RDWR));
    TRY("the first one's parent", say("%s%ld", "", getppid() == 1));
    TRY("ptrace of the first", ptrace(PTRACE_SEIZE, 1, 0, 0));
    TRY("ptrace of its parent", ptrace(PTRACE_SEIZE, 0, 0, 0));
    TRY("process_vm_readv of the first", read_memory_of(1));
    TRY("process_vm_readv of nobody", read_memory_of(0));
    TRY("a descriptor of the first", syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, 1, 0), 3, 0));
    TRY("kcmp", syscall(SYS_kcmp, 1, getpid(), 0, 0, 0));
    TRY("kill the first", kill(1, SIGKILL));
    TRY("kill the parent's parent", kill(0x7ffffff0, SIGKILL));
    TRY("limits of the first", prlimit(1, RLIMIT_NOFILE, NULL, NULL));
    TRY("more than the hard limit", prlimit(0, RLIMIT_NOFILE, &(struct rlimit){1 << 30, 1 << 30}, NULL));
    TRY("a better nice", setpriority(PRIO_PROCESS, 0, -5));
    TRY("real time", sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){1}));
    TRY("a better place with the OOM killer", opened("/proc/self/oom_score_adj", O_RDWR) < 0 ? -1
            : write(open("/proc/self/oom_score_adj", O_WRONLY), "-500", 4));
    for (int fd = 3; fd < 12; fd++) {
        char name[64], path[64];
        snprintf(name, sizeof name, "to where descriptor %d leads", fd);
        snprintf(path, sizeof path, "/proc/1/fd/%d/../../..", fd);
        TRY(name, chdir(path));
    }
}

static long by_handle(void) {
    /* The root of an ext4 file system: inode 2. */
    struct { struct file_handle head; unsigned inode[2]; } handle = {{8, 1}, {2, 0}};
    int at = open("/etc/passwd", O_RDONLY);
    return open_by_handle_at(at, &handle.head, O_RDONLY);
}

static long handle_of(void) {
    struct { struct file_handle head; unsigned char bytes[128]; } handle = {{128, 0}, {0}};
    int mount;
    return name_to_handle_at(AT_FDCWD, "/etc/passwd", &handle.head, &mount, 0);
}

/* A device's node, and whether it opens. */
static void device(const char *what, mode_t kind, unsigned major, unsigned minor) {
    char name[100];
    unlink("/tmp/node");
    snprintf(name, sizeof name, "make a node of %s", what);
    TRY(name, mknod("/tmp/node", kind | 0666, makedev(major, minor)));
    snprintf(name, sizeof name, "open the node of %s", what);
    TRY(name, opened("/tmp/node", O_RDWR));
    unlink("/tmp/node");
}

static void devices(void) {
    TRY("open by handle", by_handle());
    TRY("a file's handle", handle_of());
    unsigned major = 8, minor = 0;
    char line[200];
    FILE *partitions = fopen("/proc/partitions", "r");
    while (partitions && fgets(line, sizeof line, partitions))
        if (sscanf(line, "%u %u", &major, &minor) == 2) break;
    device("the first disk", S_IFBLK, major, minor);
    device("a loop", S_IFBLK, 7, 0);
    device("memory", S_IFCHR, 1, 1);
    device("the kernel's log", S_IFCHR, 1, 11);
    device("fuse", S_IFCHR, 10, 229);
    device("loops", S_IFCHR, 10, 237);
    device("virtual machines", S_IFCHR, 10, 232);
    device("the console", S_IFCHR, 5, 1);
    device("a terminal", S_IFCHR, 4, 1);
    device("null", S_IFCHR, 1, 3);
    device("nothing", S_IFCHR, 0, 0);
}

static long length_of(const char *path) {
    char block[4096];
    long size = 0;
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    if (fd < 0) return -1;
    for (ssize_t n; (n = read(fd, block, sizeof block)) != 0; size += n)
        if (n < 0) return -1;
    return say("%s%ld bytes", "", size);
}

static long entries_of(const char *path) {
    DIR *dir = opendir(path);
    if (!dir) return -1;
    long count = 0;
    while (readdir(dir)) count++;
    return say("%s%ld entries", "", count - 2);
}

static void kernel_files(void) {
    const char *writable[] = {
        "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/drop_caches",
        "/proc/sys/kernel/hostname", "/proc/sys/kernel/ns_last_pid", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/fs/binfmt_misc/register",
        "/proc/irq/default_smp_affinity", "/proc/bus/pci", "/proc/fs/ext4", "/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/timer_list",
        "/proc/1/attr/exec", "/proc/1/loginuid", "/proc/1/uid_map", "/proc/1/setgroups", "/proc/1/oom_adj",
        "/sys/kernel/uevent_helper", "/sys/kernel/profiling", "/sys/power/state", "/sys/class/net/lo/mtu", "/sys/devices/system/cpu/online",
        "/sys/module/overlay/parameters/metacopy", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/release_agent",
        "/sys/fs/cgroup/devices/devices.allow", "/sys/fs/cgroup/devices/cgroup.procs", "/sys/fs/cgroup/memory/release_agent",
        "/sys/fs/cgroup/memory/notify_on_release", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/systemd/release_agent", "/dev/mem", "/dev/kmsg", "/dev/vda",
        "/dev/sda", "/dev/console", "/dev/core"};
    for (unsigned i = 0; i < sizeof writable / sizeof *writable; i++) {
        char name[200];
        snprintf(name, sizeof name, "write to %s", writable[i]);
        TRY(name, opened(writable[i], O_WRONLY));
    }
    const char *lengths[] = {"/proc/keys", "/proc/timer_list", "/proc/kcore", "/proc/sched_debug", "/proc/latency_stats", "/proc/kmsg"};
    for (unsigned i = 0; i < sizeof lengths / sizeof *lengths; i++) TRY(lengths[i], length_of(lengths[i]));
    const char *masked[] = {"/proc/acpi", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap", "/proc/asound"};
    for (unsigned i = 0; i < sizeof masked / sizeof *masked; i++) TRY(masked[i], entries_of(masked[i]));
    TRY("a control group of its own", mkdir("/sys/fs/cgroup/left", 0700));
    TRY("a control group of its own, of memory", mkdir("/sys/fs/cgroup/memory/left", 0700));
    TRY("a file among the control groups", opened("/sys/fs/cgroup/left-file", O_CREAT | O_WRONLY));
    TRY("a file in /sys", opened("/sys/left", O_CREAT | O_WRONLY));
    TRY("a file in /proc", opened("/proc/left", O_CREAT | O_WRONLY));
    TRY("the mode of /proc/keys", chmod("/proc/keys", 0600));
    TRY("the owner of /proc/timer_list", chown("/proc/timer_list", 7, 7));
    TRY("the time of /proc/keys", utimensat(AT_FDCWD, "/proc/keys", (struct timespec[2]){{7, 7}, {7, 7}}, 0));
    TRY("the mode of /proc/acpi", chmod("/proc/acpi", 0700));
    TRY("the mode of /proc/sys", chmod("/proc/sys", 0700));
    TRY("the mode of /sys", chmod("/sys", 0700));
    TRY("the mode of /sys/fs/cgroup", chmod("/sys/fs/cgroup", 0700));
    TRY("the mode of /sys/fs/cgroup/memory", chmod("/sys/fs/cgroup/memory", 0700));
    const char *hidden[] = {"/.prewarm", "/.prewarm/base", "/.prewarm/job/upper", "/.prewarm/job/work", "/.prewarm/init", "/proc/1/root/.prewarm",
                            "/proc/self/root/../.prewarm", "/../.prewarm", "/proc/1/cwd/../../../.prewarm", "/var/lib/docker", "/proc/1/map_files"};
    for (unsigned i = 0; i < sizeof hidden / sizeof *hidden; i++) TRY(hidden[i], opened(hidden[i], O_RDONLY));
}

static long has_capability(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct all[2] = {{~0u, ~0u, ~0u}, {0x1ff, 0x1ff, 0x1ff}};
    return syscall(SYS_capset, &header, all);
}

static long filtered(int flags_first) {
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {1, &allow};
    if (flags_first && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return -1;
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

static long listened_to_calls(void) {
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {1, &allow};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

static long new_network_device(void) {
    struct { struct nlmsghdr head; struct ifinfomsg body; char name[32]; } request = {
        {sizeof request, RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0}, {0}, {0}};
    struct { struct nlmsghdr head; struct nlmsgerr body; char rest[500]; } answer = {0};
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (fd < 0 || send(fd, &request, sizeof request, 0) < 0 || recv(fd, &answer, sizeof answer, 0) < 0) return -1;
    errno = -answer.body.error;
    return errno ? -1 : 0;
}

static long loopback_down(void) {
    struct ifreq request = {.ifr_name = "lo"};
    return ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCSIFFLAGS, &request);
}

static long option(int level, int name) {
    int one = 1;
    return setsockopt(socket(AF_INET, SOCK_DGRAM, 0), level, name, &one, sizeof one);
}

static void calls(void) {
    TRY("keyctl", syscall(SYS_keyctl, 0, -3, 0, 0, 0));
    TRY("add_key", syscall(SYS_add_key, "user", "left", "left", 4, -4));
    TRY("request_key", syscall(SYS_request_key, "user", "left", NULL, 0));
    union bpf_attr map = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    TRY("bpf", syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof map));
    TRY("userfaultfd", syscall(SYS_userfaultfd, 1));
    struct perf_event_attr event = {.type = PERF_TYPE_SOFTWARE, .size = sizeof event, .config = PERF_COUNT_SW_CPU_CLOCK};
    TRY("perf_event_open", syscall(SYS_perf_event_open, &event, 0, -1, -1, 0));
    TRY("perf_event_open of everybody", syscall(SYS_perf_event_open, &event, -1, 0, -1, 0));
    TRY("kexec_load", syscall(SYS_kexec_load, 0, 1000, NULL, ~0ul));
    TRY("kexec_file_load", syscall(SYS_kexec_file_load, -1, -1, 0, NULL, ~0ul));
    TRY("init_module", syscall(SYS_init_module, NULL, 0, ""));
    TRY("finit_module", syscall(SYS_finit_module, -1, "", 0));
    TRY("delete_module", syscall(SYS_delete_module, "no_such_module", 0));
    TRY("reboot", syscall(SYS_reboot, 0, 0, 0, NULL));
    TRY("swapon", syscall(SYS_swapon, "/no/such/file", 0));
    TRY("swapoff", syscall(SYS_swapoff, "/no/such/file"));
    TRY("acct", syscall(SYS_acct, "/no/such/file"));
    TRY("clock_settime", clock_settime(CLOCK_REALTIME, &(struct timespec){0, -1}));
    TRY("adjtimex", adjtimex(&(struct timex){.modes = ADJ_TICK, .tick = 1}));
    TRY("the kernel's log", syscall(SYS_syslog, 10, NULL, 0));
    TRY("the kernel's log, cleared", syscall(SYS_syslog, 5, NULL, 0));
    TRY("quotactl", syscall(SYS_quotactl, 0x80000100, NULL, 0, NULL));
    TRY("fanotify_init", syscall(SYS_fanotify_init, 0, 0));
    TRY("io_uring_setup", syscall(SYS_io_uring_setup, 1, NULL));
    TRY("lookup_dcookie", syscall(SYS_lookup_dcookie, 0, NULL, 0));
    TRY("move_pages", syscall(SYS_move_pages, 1, 0, NULL, NULL, NULL, 0));
    TRY("migrate_pages", syscall(SYS_migrate_pages, 1, 0, NULL, NULL));
    TRY("set_mempolicy", syscall(SYS_set_mempolicy, 0, NULL, 0));
    TRY("mbind", syscall(SYS_mbind, 0, 0, 0, NULL, 0, 0));
    TRY("vhangup", syscall(SYS_vhangup));
    TRY("personality", syscall(SYS_personality, 0x0400000));
    TRY("landlock", syscall(SYS_landlock_create_ruleset, NULL, 0, 1));
    TRY("memfd_secret", syscall(SYS_memfd_secret, 0));
    TRY("process_madvise", syscall(SYS_process_madvise, -1, NULL, 0, 0, 0));
#ifdef __x86_64__
    TRY("iopl", syscall(SYS_iopl, 3));
    TRY("ioperm", syscall(SYS_ioperm, 0x80, 1, 1));
    TRY("modify_ldt", syscall(SYS_modify_ldt, 0, NULL, 0));
    TRY("uselib", syscall(SYS_uselib, "/no/such/file"));
    TRY("sysfs", syscall(SYS_sysfs, 3));
    TRY("ustat", syscall(SYS_ustat, 0, NULL));
    TRY("create_module", syscall(SYS_create_module, NULL, 0));
    TRY("nfsservctl", call0(SYS_nfsservctl));
    TRY("_sysctl", call0(SYS__sysctl));
#endif
    TRY("a call that there isn't", syscall(1000));
    TRY("host name", sethostname("left", 4));
    TRY("domain name", setdomainname("left", 4));
    TRY("all capabilities", has_capability());
    TRY("an ambient capability", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN, 0, 0));
    TRY("a dropped bound", prctl(PR_CAPBSET_DROP, CAP_CHOWN, 0, 0, 0));
    TRY("securebits", prctl(PR_SET_SECUREBITS, 0x2f, 0, 0, 0));
    TRY("a filter", filtered(0));
    TRY("a filter, without new privileges", filtered(1));
    TRY("a filter that asks", listened_to_calls());
    TRY("user 0", setresuid(0, 0, 0));
    TRY("user 7", setresuid(7, 7, 7));
    TRY("groups", syscall(SYS_setgroups, 1, (gid_t[]){7}));
    for (int family = 0; family < 46; family++) {
        char name[64];
        snprintf(name, sizeof name, "a socket of family %d", family);
        TRY(name, socket(family, SOCK_DGRAM, 0));
    }
    TRY("a raw socket", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    TRY("a packet socket", socket(AF_PACKET, SOCK_RAW, 0));
    TRY("a new network device", new_network_device());
    TRY("the loopback device down", loopback_down());
    TRY("marked packets", option(SOL_SOCKET, 36));
    TRY("others' addresses", option(IPPROTO_IP, 19));
    TRY("a larger buffer than allowed", option(SOL_SOCKET, 33));
    TRY("memory locked", mlockall(MCL_CURRENT));
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "kill-all")) {
        pid_t pid = fork();
        if (pid == 0) _exit(kill(-1, SIGKILL) < 0 ? errno : 0);
        int status = 0;
        waitpid(pid, &status, 0);
        printf("alive: %d\n", WEXITSTATUS(status));
        return 0;
    }
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    mounts();
    namespaces();
    processes();
    devices();
    kernel_files();
    calls();
    return fflush(stdout);
}
