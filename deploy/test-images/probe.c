/* probe: the one program of the image `prewarm-test/scratch`, and an extra one in the others.
 *
 *     probe WORD [ARGUMENT…] [, WORD [ARGUMENT…]]…
 *
 * does one word after the other and exits with 0 unless told otherwise. Static, so that it runs where nothing else is.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void die(const char *what) {
    fprintf(stderr, "probe: %s: %s\n", what, strerror(errno));
    exit(99);
}

static void write_all(int fd, const char *data, size_t size) {
    while (size > 0) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) die("write");
        data += n, size -= n;
    }
}

static void copy(int from, int to) {
    static char buffer[65536];
    ssize_t n;
    while ((n = read(from, buffer, sizeof buffer)) > 0) write_all(to, buffer, n);
    if (n < 0) die("read");
}

static void pause_for(double seconds) {
    struct timespec t = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    while (nanosleep(&t, &t) < 0 && errno == EINTR) continue;
}

/* Counts, one byte an index, so that a lost or doubled block shows. */
static void emit(int fd, size_t size) {
    static char block[65536];
    for (size_t i = 0; i < sizeof block; i++) block[i] = (char)(i % 251);
    for (size_t n; size > 0; size -= n) write_all(fd, block, n = size < sizeof block ? size : sizeof block);
}

static int compare(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }

static void env(void) {
    int n = 0;
    while (environ[n]) n++;
    qsort(environ, n, sizeof *environ, compare);
    for (int i = 0; i < n; i++) puts(environ[i]);
}

static void id(void) {
    gid_t groups[256];
    int n = getgroups(256, groups);
    printf("uid=%d gid=%d groups=", getuid(), getgid());
    for (int i = 0; i < n; i++) printf("%s%d", i ? "," : "", groups[i]);
    printf("\n");
}

/* Descriptors by number and kind; the names of pipes differ from run to run. */
static void fds(void) {
    DIR *dir = opendir("/proc/self/fd");
    if (!dir) die("/proc/self/fd");
    for (struct dirent *e; (e = readdir(dir));) {
        struct stat s;
        int fd = atoi(e->d_name);
        if (e->d_name[0] == '.' || fd == dirfd(dir) || fstat(fd, &s) < 0) continue;
        printf("%d %s\n", fd, S_ISFIFO(s.st_mode) ? "pipe" : S_ISCHR(s.st_mode) ? "device" : S_ISREG(s.st_mode) ? "file"
                              : S_ISSOCK(s.st_mode) ? "socket" : "other");
    }
    closedir(dir);
}

static void file(const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0) die(path);
    copy(fd, 1);
    close(fd);
}

/* A child, or a daemon (double fork, own session), that holds our stdout for SECONDS and then writes a line. */
static void child(int as_daemon, const char *seconds, const char *line) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid < 0) die("fork");
    if (pid > 0) {
        if (as_daemon) waitpid(pid, NULL, 0);
        return;
    }
    if (as_daemon) {
        setsid();
        if (fork() != 0) _exit(0);
    }
    pause_for(atof(seconds));
    dprintf(1, "%s\n", line);
    _exit(0);
}

/* Orphans that end at once: whoever is process 1 has to reap them. */
static void zombies(int count) {
    while (count-- > 0) {
        pid_t pid = fork();
        if (pid < 0) die("fork");
        if (pid == 0) {
            if (fork() == 0) _exit(0);
            _exit(0);
        }
        waitpid(pid, NULL, 0);
    }
}

static volatile sig_atomic_t got;
static void on_signal(int number) { got = number; }

/* Waits for SIGNAL at most SECONDS, and says which came. */
static void await_signal(int number, double seconds) {
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(number, &action, NULL);
    printf("waiting\n");
    fflush(stdout);
    for (int i = 0; i < seconds * 100 && !got; i++) pause_for(0.01);
    printf("signal %d\n", (int)got);
}

static void eat_memory(size_t bytes) {
    for (size_t done = 0; done < bytes; done += 1 << 20) {
        char *p = malloc(1 << 20);
        if (!p) die("malloc");
        memset(p, 1, 1 << 20);
    }
}

static int words(char **w, int n) {
    const char *word = w[0], *a = n > 1 ? w[1] : "", *b = n > 2 ? w[2] : "";
    if (!strcmp(word, "args")) for (int i = 1; i < n; i++) printf("[%s]\n", w[i]);
    else if (!strcmp(word, "out")) printf("%s\n", a);
    else if (!strcmp(word, "print")) printf("%s", a); /* no newline */
    else if (!strcmp(word, "err")) fflush(stdout), fprintf(stderr, "%s\n", a);
    else if (!strcmp(word, "env")) env();
    else if (!strcmp(word, "getenv")) printf("%s\n", getenv(a) ? getenv(a) : "(unset)");
    else if (!strcmp(word, "cwd")) { char *d = getcwd(NULL, 0); puts(d ? d : "(none)"); free(d); }
    else if (!strcmp(word, "id")) id();
    else if (!strcmp(word, "pid")) printf("%d\n", getpid());
    else if (!strcmp(word, "parent")) printf("%d\n", getppid());
    else if (!strcmp(word, "session")) printf("%s\n", getsid(0) == getpid() ? "leader" : "member");
    else if (!strcmp(word, "umask")) { mode_t m = umask(0); umask(m); printf("%04o\n", m); }
    else if (!strcmp(word, "host")) { char h[256]; gethostname(h, sizeof h); puts(h); }
    else if (!strcmp(word, "fds")) fds();
    else if (!strcmp(word, "file")) fflush(stdout), file(a);
    else if (!strcmp(word, "status")) fflush(stdout), file("/proc/self/status");
    else if (!strcmp(word, "limits")) fflush(stdout), file("/proc/self/limits");
    else if (!strcmp(word, "create")) { int fd = open(a, O_WRONLY | O_CREAT | O_TRUNC, 0666); if (fd < 0) die(a); write_all(fd, b, strlen(b)); close(fd); }
    else if (!strcmp(word, "cat")) fflush(stdout), copy(0, 1);
    else if (!strcmp(word, "emit")) fflush(stdout), emit(1, strtoull(a, NULL, 10));
    else if (!strcmp(word, "emit-err")) fflush(stdout), emit(2, strtoull(a, NULL, 10));
    else if (!strcmp(word, "close")) fflush(stdout), close(atoi(a));
    else if (!strcmp(word, "sleep")) fflush(stdout), pause_for(atof(a));
    else if (!strcmp(word, "child")) child(0, a, b);
    else if (!strcmp(word, "daemon")) child(1, a, b);
    else if (!strcmp(word, "zombies")) zombies(atoi(a));
    else if (!strcmp(word, "ignore")) signal(atoi(a), SIG_IGN);
    else if (!strcmp(word, "await")) await_signal(atoi(a), *b ? atof(b) : 10);
    else if (!strcmp(word, "memory")) eat_memory(strtoull(a, NULL, 10));
    else if (!strcmp(word, "exec")) { fflush(stdout); execvp(a, w + 1); die(a); }
    else if (!strcmp(word, "exit")) fflush(stdout), exit(atoi(a));
    else if (!strcmp(word, "kill")) { struct rlimit none = {0, 0}; setrlimit(RLIMIT_CORE, &none); fflush(stdout); signal(atoi(a), SIG_DFL); kill(getpid(), atoi(a)); pause_for(1); }
    else return fprintf(stderr, "probe: unknown word '%s'\n", word), exit(98), 0;
    return fflush(stdout);
}

int main(int argc, char **argv) {
    for (int from = 1, to; from < argc; from = to + 1) {
        for (to = from; to < argc && strcmp(argv[to], ",") != 0; to++) continue;
        if (to > from) {
            char *saved = argv[to]; /* execvp wants its list ended */
            argv[to] = NULL;
            words(argv + from, to - from);
            argv[to] = saved;
        }
    }
    return 0;
}
