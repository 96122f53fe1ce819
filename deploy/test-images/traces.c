/* traces: what a job can leave behind, and what the next one could find of it.
 *
 *     traces leave        does to its surroundings whatever it may, says what came of each, and ends
 *     traces inventory    lists all that it finds, in an order and a form that two lists can be compared in
 *
 * Nothing here writes where a success would do harm to the machine: it only opens such files.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/if_packet.h>
#include <linux/magic.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

/* --- Leaving ---------------------------------------------------------------------------------------------- */

static int done, refused;

/* Counts what worked; says what didn't, if somebody wants to know why. */
static int did(const char *what, long result) {
    if (result < 0) {
        refused++;
        if (getenv("VERBOSE")) printf("%s: %s\n", what, strerrorname_np(errno));
    } else {
        done++;
    }
    return result >= 0;
}

static const struct timespec LONG_AGO[2] = {{1234567, 0}, {1234567, 0}};

/* Where files are the kernel's or the host's: there, nothing is written into them. */
static int is_kernels(const char *path) {
    return !strncmp(path, "/proc", 5) || !strncmp(path, "/sys", 4);
}

/* Changes all that can be changed of something that is there. */
static void change(const char *path, const struct stat *s) {
    if (S_ISREG(s->st_mode) && !is_kernels(path)) {
        int fd = open(path, O_WRONLY | O_APPEND);
        if (did(path, fd)) did(path, write(fd, "left\n", 5)), close(fd);
    }
    did(path, lsetxattr(path, "user.left", "left", 4, 0));
    did(path, lsetxattr(path, "trusted.left", "left", 4, 0));
    /* A capability: of no use to who has it, but everybody can read it. */
    unsigned capability[5] = {0x02000001, 1, 0, 0, 0};
    did(path, lsetxattr(path, "security.capability", capability, sizeof capability, 0));
    if (!S_ISLNK(s->st_mode)) did(path, chmod(path, (s->st_mode & 07777) ^ 01022));
    did(path, lchown(path, 4242, 4343));
    if (!S_ISLNK(s->st_mode)) did(path, chmod(path, (s->st_mode & 07777) ^ 01022));
    did(path, utimensat(AT_FDCWD, path, LONG_AGO, AT_SYMLINK_NOFOLLOW));
}

/* Puts one of each kind into a directory. */
static void create_in(const char *dir) {
    char path[PATH_MAX], other[PATH_MAX];
    const char *base = strcmp(dir, "/") ? dir : "";
#define NAME(suffix) (snprintf(path, sizeof path, "%s/left" suffix, base), path)
    int fd = open(NAME(""), O_CREAT | O_WRONLY, 0666);
    if (did(path, fd)) did(path, write(fd, "left\n", 5)), close(fd);
    strcpy(other, path);
    did(NAME(".hard"), link(other, path));
    did(NAME(".soft"), symlink("/etc/passwd", path));
    did(NAME(".fifo"), mkfifo(path, 0666));
    did(NAME(".device"), mknod(path, S_IFCHR | 0666, makedev(1, 3)));
    if (did(NAME(".dir"), mkdir(path, 0777))) {
        strcat(path, "/left");
        did(path, (fd = open(path, O_CREAT | O_WRONLY, 0666)));
        close(fd);
    }
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int bound = socket(AF_UNIX, SOCK_STREAM, 0);
    if (strlen(NAME(".socket")) < sizeof name.sun_path) {
        strcpy(name.sun_path, path);
        if (did(path, bind(bound, (void *)&name, sizeof name))) did(path, listen(bound, 1));
    }
#undef NAME
}

static int is_number(const char *s) {
    for (; *s; s++)
        if (*s < '0' || *s > '9') return 0;
    return 1;
}

/* Of /proc without the processes, and of /sys, the upper part is enough. */
static int too_deep(const char *path) {
    int slashes = 0;
    for (const char *c = path; *c; c++) slashes += *c == '/';
    return is_kernels(path) && slashes > 4;
}

static int is_a_process(const char *path) {
    return !strncmp(path, "/proc/", 6) && (is_number(path + 6) || !strcmp(path + 6, "self") || !strcmp(path + 6, "thread-self"));
}

/* Everything below `path`, what is in a directory before the directory. */
static void walk(const char *path, void (*visit)(const char *, const struct stat *)) {
    struct stat s;
    if (lstat(path, &s) < 0 || is_a_process(path) || too_deep(path)) return;
    if (S_ISDIR(s.st_mode)) {
        struct dirent **names;
        int n = scandir(path, &names, NULL, alphasort);
        for (int i = 0; i < n; i++) {
            char below[PATH_MAX];
            const char *name = names[i]->d_name;
            if (strcmp(name, ".") && strcmp(name, "..") &&
                snprintf(below, sizeof below, "%s/%s", strcmp(path, "/") ? path : "", name) < PATH_MAX)
                walk(below, visit);
            free(names[i]);
        }
    }
    visit(path, &s);
}

/* Modes and owners of /proc's own files are those of the whole machine: what root of any container makes of them, the
 * host and all other containers see (fs/proc/generic.c, proc_notify_change). What masks them is another matter. */
static int is_the_machines(const char *path, const struct stat *s) {
    struct stat proc;
    return !strncmp(path, "/proc", 5) && stat("/proc", &proc) == 0 && proc.st_dev == s->st_dev;
}

static void change_and_create(const char *path, const struct stat *s) {
    if (is_the_machines(path, s)) return;
    change(path, s);
    if (S_ISDIR(s->st_mode)) create_in(path);
}

static void keep_busy(void) {
    for (;;) pause();
}

static void leave_processes(void) {
    for (int kind = 0; kind < 5; kind++) {
        pid_t pid = fork();
        if (!did("fork", pid) || pid > 0) {
            if (kind == 2 && pid > 0) waitpid(pid, NULL, 0);
            continue;
        }
        switch (kind) {
        case 0: /* a child */
            keep_busy();
        case 1: /* one that has ended, and that nobody asks after */
            _exit(0);
        case 2: /* a daemon */
            setsid();
            if (fork() != 0) _exit(0);
            keep_busy();
        case 3: /* one that minds no signal */
            for (int n = 1; n < 65; n++) signal(n, SIG_IGN);
            setsid();
            keep_busy();
        case 4: /* one that is stopped */
            raise(SIGSTOP);
            _exit(0);
        }
    }
}

static int bound(int family, int type, int port) {
    int fd = socket(family, type, 0);
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (did("bind", bind(fd, (void *)&name, sizeof name)) && type == SOCK_STREAM) did("listen", listen(fd, 5));
    return fd;
}

/* Sends `what` to nobody: through a socket that is in flight itself. */
static void send_in_flight(int what) {
    int pair[2];
    if (!did("socketpair", socketpair(AF_UNIX, SOCK_DGRAM, 0, pair))) return;
    int both[2] = {what, pair[1]};
    char control[CMSG_SPACE(sizeof both)] = {0}, byte = 0;
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(sizeof both);
    memcpy(CMSG_DATA(head), both, sizeof both);
    did("sendmsg", sendmsg(pair[0], &message, 0));
    close(pair[0]), close(pair[1]), close(what);
}

/* Sends something to the router, if there is one: the network remembers where it is. */
static void meet_the_router(void) {
    char line[256];
    unsigned to, router;
    FILE *f = fopen("/proc/net/route", "r");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%*s %x %x", &to, &router) != 2 || to != 0 || router == 0) continue;
        struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {router}};
        did("router", sendto(socket(AF_INET, SOCK_DGRAM, 0), "left", 4, 0, (void *)&name, sizeof name));
    }
    if (f) fclose(f);
}

static void leave_sockets(void) {
    meet_the_router();
    bound(AF_INET, SOCK_DGRAM, 7778);
    int server = bound(AF_INET, SOCK_STREAM, 7777);
    send_in_flight(bound(AF_INET, SOCK_STREAM, 7779));
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(7777), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    for (int i = 0; i < 3; i++) {
        /* The first is accepted, the others wait; all with bytes that nobody reads. */
        int client = socket(AF_INET, SOCK_STREAM, 0);
        if (did("connect", connect(client, (void *)&name, sizeof name))) did("send", send(client, "left", 4, 0));
        if (i == 0) did("accept", accept(server, NULL, NULL));
    }
    struct sockaddr_un abstract = {.sun_family = AF_UNIX, .sun_path = "\0left"};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (did("abstract", bind(fd, (void *)&abstract, sizeof abstract))) did("listen", listen(fd, 5));
    did("raw", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    did("packet", socket(AF_PACKET, SOCK_RAW, htons(3)));
    did("netlink", socket(AF_NETLINK, SOCK_RAW, 0));
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct ip_mreqn group = {{inet_addr("224.1.2.3")}, {htonl(INADDR_LOOPBACK)}, 0};
    did("multicast", setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group));
}

static void leave_ipc(void) {
    int id = shmget(0x1eaf, 1 << 20, IPC_CREAT | 0666);
    if (did("shmget", id)) memset(shmat(id, NULL, 0), 1, 1 << 20);
    did("shmget private", shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0666));
    id = semget(0x1eaf, 3, IPC_CREAT | 0666);
    struct sembuf up = {0, 1, 0};
    if (did("semget", id)) did("semop", semop(id, &up, 1));
    id = msgget(0x1eaf, IPC_CREAT | 0666);
    struct { long type; char text[4]; } message = {1, "left"};
    if (did("msgget", id)) did("msgsnd", msgsnd(id, &message, 4, IPC_NOWAIT));
    mqd_t queue = mq_open("/left", O_CREAT | O_RDWR, 0666, NULL);
    if (did("mq_open", queue)) did("mq_send", mq_send(queue, "left", 4, 0));
    int fd = shm_open("/left-object", O_CREAT | O_RDWR, 0666);
    static char block[1 << 20];
    memset(block, 1, sizeof block);
    if (did("shm_open", fd))
        for (int i = 0; i < 20; i++) did("filling /dev/shm", write(fd, block, sizeof block));
    fd = memfd_create("left", 0);
    if (did("memfd", fd)) did("memfd write", write(fd, block, sizeof block));
    did("add_key", syscall(SYS_add_key, "user", "left", "left", 4, -3));
    did("add_key for the user", syscall(SYS_add_key, "user", "left", "left", 4, -4));
}

static void write_to(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    if (did(path, fd)) did(path, write(fd, text, strlen(text))), close(fd);
}

static void leave_settings(void) {
    did("core", setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}));
    did("memlock", prlimit(0, RLIMIT_MEMLOCK, &(struct rlimit){4096, 4096}, NULL));
    did("nproc", prlimit(1, RLIMIT_NPROC, &(struct rlimit){50, 50}, NULL));
    did("nice down", setpriority(PRIO_PROCESS, 0, -5));
    did("nice", setpriority(PRIO_PGRP, 0, 7));
    did("nice of all of this user", setpriority(PRIO_USER, 0, 7));
    struct sched_param none = {0};
    did("batch", sched_setscheduler(0, SCHED_BATCH, &none));
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    did("affinity", sched_setaffinity(0, sizeof one, &one));
    did("ioprio", syscall(SYS_ioprio_set, 1, 0, 3 << 13));
    write_to("/proc/self/oom_score_adj", "500");
    write_to("/proc/1/oom_score_adj", "600");
    write_to("/proc/self/coredump_filter", "1");
    write_to("/proc/self/timerslack_ns", "1000000");
    write_to("/proc/self/autogroup", "5");
    umask(0);
    did("personality", personality(PER_LINUX32));
    did("subreaper", prctl(PR_SET_CHILD_SUBREAPER, 1));
    did("hostname", sethostname("left", 4));
    did("domainname", setdomainname("left", 4));
    did("mlockall", mlockall(MCL_CURRENT));
    signal(SIGCHLD, SIG_IGN);
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    did("mount", mount("left", "/tmp", "tmpfs", 0, NULL));
    did("umount", umount2("/proc/keys", MNT_DETACH));
    did("remount", mount(NULL, "/sys", NULL, MS_REMOUNT | MS_BIND, NULL));
    did("nofile", setrlimit(RLIMIT_NOFILE, &(struct rlimit){64, 64}));
}

/* Removes, moves and replaces what is there. */
static void destroy(void) {
    did("unlink", unlink("/etc/passwd"));
    did("unlink", unlink("/etc/hosts"));
    did("unlink", unlink("/dev/null"));
    did("rename", rename("/usr", "/usr.left"));
    did("symlink", symlink("/tmp", "/usr"));
    did("rename", rename("/home", "/tmp/home.left"));
    did("unlink", unlink("/bin/sh"));
    did("symlink", symlink("/bin/false", "/bin/sh"));
    did("rmdir", rmdir("/proc/left"));
}

static void leave(void) {
    leave_processes();
    leave_sockets();
    leave_ipc();
    walk("/", change_and_create);
    destroy();
    leave_settings();
    did("chdir", chdir("/tmp"));
    did("chroot", chroot("/tmp"));
    printf("%d done, %d refused\n", done, refused);
}

/* --- Finding ------------------------------------------------------------------------------------------------ */

static uint64_t digest(const char *path) {
    static unsigned char block[65536];
    uint64_t hash = 0xcbf29ce484222325;
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    if (fd < 0) return errno;
    for (ssize_t n; (n = read(fd, block, sizeof block)) > 0;)
        for (ssize_t i = 0; i < n; i++) hash = (hash ^ block[i]) * 0x100000001b3;
    close(fd);
    return hash;
}

static void xattrs(const char *path) {
    char names[4096], value[4096];
    ssize_t n = llistxattr(path, names, sizeof names);
    if (n < 0 && errno != ENOTSUP && errno != ENODATA) printf(" xattrs %s", strerrorname_np(errno));
    for (char *name = names; n > 0 && name < names + n; name += strlen(name) + 1) {
        ssize_t size = lgetxattr(path, name, value, sizeof value);
        printf(" %s=", name);
        for (ssize_t i = 0; i < size; i++) printf("%02x", (unsigned char)value[i]);
    }
}

#define MQUEUE 0x19800202

/* What is made for each job is young; how young is of no interest. */
static int is_made_for_each(const char *path) {
    struct statfs s = {0};
    int fd = open(path, O_PATH | O_NOFOLLOW);
    int known = fd >= 0 && fstatfs(fd, &s) == 0;
    close(fd);
    return is_kernels(path) || (known && (s.f_type == TMPFS_MAGIC || s.f_type == DEVPTS_SUPER_MAGIC || s.f_type == MQUEUE));
}

static void list(const char *path, const struct stat *s) {
    const char *kind = S_ISREG(s->st_mode) ? "file" : S_ISDIR(s->st_mode) ? "directory" : S_ISLNK(s->st_mode) ? "link"
                     : S_ISCHR(s->st_mode) ? "character" : S_ISBLK(s->st_mode) ? "block"
                     : S_ISFIFO(s->st_mode) ? "fifo" : "socket";
    printf("%s %s %04o %d:%d", path, kind, s->st_mode & 07777, s->st_uid, s->st_gid);
    if (is_made_for_each(path) && s->st_mtime > time(NULL) - 3600) printf(" young");
    else printf(" %ld.%09ld", (long)s->st_mtime, s->st_mtim.tv_nsec);
    if (S_ISREG(s->st_mode) && !is_kernels(path)) printf(" %lld bytes %016llx", (long long)s->st_size, (long long)digest(path));
    if (S_ISREG(s->st_mode)) printf(" %d links", (int)s->st_nlink);
    if (S_ISCHR(s->st_mode) || S_ISBLK(s->st_mode)) printf(" %d,%d", major(s->st_rdev), minor(s->st_rdev));
    char target[PATH_MAX];
    ssize_t n = S_ISLNK(s->st_mode) ? readlink(path, target, sizeof target - 1) : 0;
    if (n > 0) target[n] = 0, printf(" -> %s", target);
    xattrs(path);
    printf("\n");
}

/* Lines of a file, each from word `from` on, without the words that `skip` (a mask) names. */
static void lines(const char *path, int from, unsigned long skip) {
    char line[8192];
    FILE *f = fopen(path, "r");
    printf("[%s]%s%s\n", path, f ? "" : " ", f ? "" : strerrorname_np(errno));
    while (f && fgets(line, sizeof line, f)) {
        int n = 0;
        char *rest = line;
        for (char *word; (word = strsep(&rest, " \t\n"));) {
            if (!*word) continue;
            if (n >= from && !(skip >> n & 1)) printf(" %s", word);
            n++;
        }
        printf("\n");
    }
    if (f) fclose(f);
}

static void processes(void) {
    struct dirent **names;
    int n = scandir("/proc", &names, NULL, alphasort);
    printf("[processes]\n");
    for (int i = 0; i < n; i++) {
        if (!is_number(names[i]->d_name)) continue;
        char path[300], stat[512];
        snprintf(path, sizeof path, "/proc/%s/stat", names[i]->d_name);
        FILE *f = fopen(path, "r");
        /* number, name, state, parent, group, session, terminal */
        if (f && fgets(stat, sizeof stat, f)) {
            char *end = stat;
            for (int words = 0; *end && (words += *end == ' ') < 7; end++) continue;
            printf(" %.*s\n", (int)(end - stat), stat);
        }
        if (f) fclose(f);
    }
}

/* TCP's sockets: own and other address, and state. One whose other side closed first is kept by the kernel for a
 * minute, for packets that are late (TIME_WAIT, 06): those lines are told apart. */
static void tcp(const char *path) {
    char line[512], local[100], remote[100], state[10];
    FILE *f = fopen(path, "r");
    printf("[%s]\n", path);
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, " %*s %99s %99s %9s", local, remote, state) == 3 && strcmp(state, "st"))
            printf(" %s%s %s %s\n", strcmp(state, "06") ? "" : "TIME_WAIT ", local, remote, state);
    if (f) fclose(f);
}

static void descriptors(void) {
    printf("[descriptors]\n");
    for (int fd = 0; fd < 4096; fd++) {
        char path[64], target[PATH_MAX];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(path, target, sizeof target - 1);
        if (n < 0) continue;
        target[n] = 0;
        char *number = strchr(target, '[');
        if (number) *number = 0;
        struct stat s = {0};
        fstat(fd, &s);
        printf(" %d %s flags %o mode %o %d:%d\n", fd, target, fcntl(fd, F_GETFL), s.st_mode, s.st_uid, s.st_gid);
    }
}

static void namespaces(void) {
    const char *names[] = {"cgroup", "net", "time", "user"};
    for (int i = 0; i < 4; i++) {
        char path[64], target[64] = "";
        snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
        if (readlink(path, target, sizeof target - 1) > 0) printf(" %s\n", target);
    }
}

static void settings(void) {
    char text[PATH_MAX];
    printf("[settings]\n");
    mode_t mask = umask(0);
    umask(mask);
    printf(" umask %04o\n cwd %s\n", mask, getcwd(text, sizeof text));
    printf(" pid %d %d %d %d\n", getpid(), getppid(), getpgrp(), getsid(0));
    gethostname(text, sizeof text);
    printf(" host %s\n", text);
    getdomainname(text, sizeof text);
    printf(" domain %s\n", text);
    printf(" nice %d policy %d ioprio %ld\n", getpriority(PRIO_PROCESS, 0), sched_getscheduler(0), syscall(SYS_ioprio_get, 1, 0));
    cpu_set_t cpus;
    sched_getaffinity(0, sizeof cpus, &cpus);
    printf(" cpus %d\n personality %x\n", CPU_COUNT(&cpus), personality(0xffffffff));
    int subreaper = 0, death = 0;
    prctl(PR_GET_CHILD_SUBREAPER, &subreaper);
    prctl(PR_GET_PDEATHSIG, &death);
    printf(" subreaper %d death signal %d dumpable %d securebits %d timer slack %d\n", subreaper, death, prctl(PR_GET_DUMPABLE),
           prctl(PR_GET_SECUREBITS), prctl(PR_GET_TIMERSLACK));
    namespaces();
    for (char **e = environ; *e; e++) printf(" env %s\n", *e);
}

static void inventory(void) {
    /* First, so that what this does isn't in it. */
    descriptors();
    processes();
    settings();
    lines("/proc/self/status", 0, 0);
    lines("/proc/self/limits", 0, 0);
    const char *plain[] = {"/proc/self/oom_score_adj", "/proc/self/coredump_filter", "/proc/self/autogroup", "/proc/self/loginuid",
                           "/proc/self/cgroup", "/proc/sysvipc/shm", "/proc/sysvipc/sem", "/proc/sysvipc/msg", "/proc/keys",
                           "/proc/net/route", "/proc/net/arp", "/proc/net/if_inet6", "/proc/net/igmp",
                           "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname", "/proc/sys/kernel/sem",
                           "/proc/sys/kernel/shmmax", "/proc/sys/kernel/msgmax", "/proc/sys/fs/mqueue/queues_max",
                           "/proc/sys/net/core/somaxconn", "/proc/sys/net/ipv4/ip_local_port_range",
                           "/sys/fs/cgroup/pids/pids.current", "/sys/fs/cgroup/pids.current",
                           "/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/pids.max",
                           "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"};
    for (unsigned i = 0; i < sizeof plain / sizeof *plain; i++) lines(plain[i], 0, 0);
    /* Without the numbers of the mounts and of the file systems. */
    lines("/proc/self/mountinfo", 3, 0);
    tcp("/proc/net/tcp");
    tcp("/proc/net/tcp6");
    /* Without where they are in memory, and what inode they have. */
    lines("/proc/net/unix", 3, 1 << 6);
    lines("/proc/net/netlink", 1, 1 << 9);
    lines("/proc/net/packet", 1, 1 << 8);
    const char *others[] = {"/proc/net/udp", "/proc/net/udp6", "/proc/net/udplite", "/proc/net/raw", "/proc/net/raw6", "/proc/net/icmp"};
    for (int i = 0; i < 6; i++) tcp(others[i]);
    printf("[files]\n");
    walk("/", list);
}

int main(int argc, char **argv) {
    const char *word = argc > 1 ? argv[1] : "";
    if (!strcmp(word, "leave")) leave();
    else if (!strcmp(word, "inventory")) inventory();
    else return fprintf(stderr, "traces: leave or inventory?\n"), 98;
    return fflush(stdout);
}
