/* Preloaded into a process, it lets chosen writes to chosen files fail as a bad disk does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char pattern[PATH_MAX], last[PATH_MAX + 32];
static int first, count, code, seen, hits, is_armed;

/* Let the calls from the nth on fail, so many of them (below 0: all), whose path has the text. */
void faults_arm(const char *text, int nth, int times, int error) {
    pthread_mutex_lock(&lock);
    snprintf(pattern, sizeof pattern, "%s", text);
    first = nth, count = times, code = error, seen = hits = 0, is_armed = 1, last[0] = 0;
    pthread_mutex_unlock(&lock);
}

void faults_disarm(void) { is_armed = 0; }
int faults_hits(void) { return hits; }
int faults_seen(void) { return seen; }
const char *faults_last(void) { return last; }

static int fails(const char *call, const char *path) {
    int is_hit = 0;
    if (!is_armed) return 0;
    pthread_mutex_lock(&lock);
    if (is_armed && strstr(path, pattern)) {
        seen++;
        is_hit = seen >= first && (count < 0 || hits < count);
        if (is_hit) {
            hits++;
            snprintf(last, sizeof last, "%s %s", call, path);
        }
    }
    pthread_mutex_unlock(&lock);
    if (is_hit) errno = code;
    return is_hit;
}

static int fails_fd(const char *call, int fd) {
    char link[64], path[PATH_MAX];
    int saved = errno;
    if (!is_armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length <= 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

static int fails_at(const char *call, int folder, const char *name) {
    char link[64], path[PATH_MAX];
    int saved = errno;
    if (!is_armed) return 0;
    if (name[0] == '/' || folder == AT_FDCWD) return fails(call, name);
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length <= 0) return 0;
    snprintf(path + length, sizeof path - length, "/%s", name);
    return fails(call, path);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name);

#define ON_FD(type, name, parameters, arguments) \
    type name parameters { REAL(name) return fails_fd(#name, fd) ? -1 : real arguments; }

ON_FD(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
ON_FD(ssize_t, writev, (int fd, const struct iovec *parts, int number), (fd, parts, number))
ON_FD(int, fsync, (int fd), (fd))
ON_FD(int, fdatasync, (int fd), (fd))
ON_FD(int, ftruncate, (int fd, off_t size), (fd, size))
ON_FD(int, ftruncate64, (int fd, off64_t size), (fd, size))
ON_FD(int, fchmod, (int fd, mode_t mode), (fd, mode))

#define IS_WRITE(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT))

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name) \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        if (IS_WRITE(flags) && fails_at(#name, AT_FDCWD, path)) return -1; \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        REAL(name) \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        if (IS_WRITE(flags) && fails_at(#name, folder, path)) return -1; \
        return real(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

int rename(const char *from, const char *to) {
    REAL(rename)
    return fails_at("rename", AT_FDCWD, to) ? -1 : real(from, to);
}

int renameat(int from_folder, const char *from, int folder, const char *to) {
    REAL(renameat)
    return fails_at("renameat", folder, to) ? -1 : real(from_folder, from, folder, to);
}

int link(const char *from, const char *to) {
    REAL(link)
    return fails_at("link", AT_FDCWD, to) ? -1 : real(from, to);
}

int linkat(int from_folder, const char *from, int folder, const char *to, int flags) {
    REAL(linkat)
    return fails_at("linkat", folder, to) ? -1 : real(from_folder, from, folder, to, flags);
}

/* What only a disk that may not be written refuses: a broken one may forget a file. */
static int is_readonly(void) { return is_armed && code == EROFS; }

int unlink(const char *path) {
    REAL(unlink)
    return is_readonly() && fails_at("unlink", AT_FDCWD, path) ? -1 : real(path);
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat)
    return is_readonly() && fails_at("unlinkat", folder, path) ? -1 : real(folder, path, flags);
}

int rmdir(const char *path) {
    REAL(rmdir)
    return is_readonly() && fails_at("rmdir", AT_FDCWD, path) ? -1 : real(path);
}

int utimensat(int folder, const char *path, const struct timespec times[2], int flags) {
    REAL(utimensat)
    if (is_readonly() && fails_at("utimensat", folder, path)) return -1;
    return real(folder, path, times, flags);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir)
    return fails_at("mkdir", AT_FDCWD, path) ? -1 : real(path, mode);
}
