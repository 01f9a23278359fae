/* Faults of a disk and of a clock, for a process that is started with LD_PRELOAD.
 *
 * The environment says what fails, and how often:
 *
 *   FAULTS_FILE     the file whose writes and syncs fail, an absolute path
 *   FAULTS_SEED     of all that is random
 *   FAULTS_KINDS    some of "full", "sync", "clock", "pause"
 *   FAULTS_ONE_IN   about one call in so many begins a fault
 *   FAULTS_CONTROL  instead of these two: a file that says it at each moment, see `struct control`
 *
 * full   The disk is full for some calls: ENOSPC, after a part was written or nothing.
 * sync   A sync fails with EIO. What was written since the last one is partly lost, as the system
 *        may drop it from its memory. Writes to a file that was opened with O_DSYNC are syncs, too.
 * clock  The time of day jumps, back as well.
 * pause  The clock that counts from the start jumps ahead, as if the process had been stopped. Who
 *        waits for this clock waits longer.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MOST_UNSYNCED 65536
#define SECTOR 512 /* bytes; disks write them wholly or not at all */
#define LONGEST_FULL 30 /* calls */
#define MOST_DAYS 400
#define MOST_AHEAD_S 3600

/* What was in the file before it was written to, since the last sync. */
struct unsynced {
    off_t at;
    size_t size, known; /* of `size` bytes the first `known` were in the file */
    char *before;
};

/* What is in the control file. */
struct control {
    char now[56];      /* kinds, a space, one in so many calls; empty: no faults */
    uint64_t happened; /* faults so far */
};

static const char *file;
static struct control *control;
static char kinds[56];
static unsigned one_in = 100;
static uint64_t state;
static int was_full, full_for; /* the last call; and so many of the next ones */
static struct unsynced unsynced[MOST_UNSYNCED];
static size_t count;
static long realtime_off, monotonic_off; /* seconds */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static int (*real_fdatasync)(int), (*real_fsync)(int), (*real_ftruncate)(int, off_t);
static int (*real_msync)(void *, size_t, int);
static int (*real_statvfs)(const char *, struct statvfs *);
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    const char *some = getenv("FAULTS_KINDS"), *rate = getenv("FAULTS_ONE_IN");
    const char *seed = getenv("FAULTS_SEED"), *path = getenv("FAULTS_CONTROL");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    real_writev = dlsym(RTLD_NEXT, "writev");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate");
    real_msync = dlsym(RTLD_NEXT, "msync");
    real_statvfs = dlsym(RTLD_NEXT, "statvfs");
    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    file = getenv("FAULTS_FILE");
    state = 0x9e3779b97f4a7c15u ^ (seed ? strtoull(seed, NULL, 10) : 0);
    if (some)
        snprintf(kinds, sizeof kinds, "%s", some);
    if (rate && atoi(rate) > 0)
        one_in = atoi(rate);
    if (path) {
        int fd = open(path, O_RDWR);
        control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (fd < 0 || control == MAP_FAILED)
            abort(); /* else a test would take it for granted that faults happen */
        close(fd);
    }
}

/* Whether faults of a kind happen at the moment. */
static int may(const char *kind)
{
    char now[sizeof control->now];
    if (!control)
        return strstr(kinds, kind) != NULL;
    if (!control->now[0] || sscanf(control->now, "%55s %u", now, &one_in) < 2)
        return 0;
    return strstr(now, kind) != NULL;
}

static int happens(void)
{
    if (control)
        control->happened++;
    return 1;
}

/* A number below `below`; xorshift. */
static uint64_t pick(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 11) % below;
}

static int is_ours(int fd)
{
    char link[64], path[PATH_MAX];
    ssize_t size;
    if (!file)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    size = readlink(link, path, sizeof path - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    return strcmp(path, file) == 0;
}

static int is_full(void)
{
    was_full = 0;
    if (!may("full"))
        return 0;
    if (full_for > 0)
        full_for--;
    else if (pick(one_in) == 0)
        full_for = pick(LONGEST_FULL);
    else
        return 0;
    return was_full = happens();
}

static int sync_fails(void)
{
    return may("sync") && pick(one_in) == 0 && happens();
}

static void keep(int fd, off_t at, size_t size)
{
    struct unsynced *one = &unsynced[count];
    ssize_t known;
    if (count == MOST_UNSYNCED || !(one->before = malloc(size)))
        return; /* then this part can't be lost */
    known = pread(fd, one->before, size, at);
    one->at = at;
    one->size = size;
    one->known = known < 0 ? 0 : known;
    count++;
}

/* Forget what was written since the last sync; if it failed, lose half of it. */
static void settle(int lost)
{
    while (count > 0) {
        struct unsynced *one = &unsynced[--count];
        if (lost && pick(2)) {
            memset(one->before + one->known, 0, one->size - one->known);
            /* Through another descriptor: this one may be one that syncs. */
            int other = open(file, O_WRONLY);
            (void)!real_pwrite(other, one->before, one->size, one->at);
            close(other);
        }
        free(one->before);
    }
}

static size_t part_of(size_t size)
{
    return size > SECTOR && pick(2) ? pick(size) : 0;
}

/* Write, or fail. `plain` writes so many bytes from the beginning of what is to be written. */
static ssize_t write_or_fail(int fd, off_t at, size_t size,
                             ssize_t (*plain)(int, const void *, int, size_t, off_t),
                             const void *what, int parts)
{
    ssize_t written;
    int syncs, failure = 0;
    pthread_mutex_lock(&lock);
    syncs = (fcntl(fd, F_GETFL) & O_DSYNC) == O_DSYNC;
    if (!syncs)
        keep(fd, at, size);
    if (is_full()) {
        failure = ENOSPC;
        size = part_of(size);
    } else if (syncs && sync_fails()) {
        failure = EIO;
        size = pick(2) ? size : 0; /* it is on the disk, or it isn't */
    }
    written = size ? plain(fd, what, parts, size, at) : 0;
    if (failure && (failure == EIO || written <= 0)) {
        errno = failure;
        written = -1;
    }
    pthread_mutex_unlock(&lock);
    return written;
}

static ssize_t plain_pwrite(int fd, const void *what, int parts, size_t size, off_t at)
{
    (void)parts;
    return real_pwrite(fd, what, size, at);
}

static ssize_t plain_writev(int fd, const void *what, int parts, size_t size, off_t at)
{
    struct iovec some[IOV_MAX];
    int n = 0;
    (void)at;
    for (const struct iovec *part = what; n < parts && size > 0; part++, n++) {
        some[n].iov_base = part->iov_base;
        some[n].iov_len = part->iov_len < size ? part->iov_len : size;
        size -= some[n].iov_len;
    }
    return real_writev(fd, some, n);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    if (!is_ours(fd))
        return real_pwrite(fd, data, size, at);
    return write_or_fail(fd, at, size, plain_pwrite, data, 1);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t at)
{
    return pwrite(fd, data, size, at);
}

ssize_t writev(int fd, const struct iovec *parts, int number)
{
    size_t size = 0;
    if (!is_ours(fd))
        return real_writev(fd, parts, number);
    for (int i = 0; i < number; i++)
        size += parts[i].iov_len;
    return write_or_fail(fd, lseek(fd, 0, SEEK_CUR), size, plain_writev, parts, number);
}

static int sync_or_fail(int fd, int (*plain)(int))
{
    int failure, result = -1;
    if (!is_ours(fd))
        return plain(fd);
    pthread_mutex_lock(&lock);
    failure = is_full() ? ENOSPC : sync_fails() ? EIO : 0;
    if (failure)
        settle(1);
    else if ((result = plain(fd)) == 0)
        settle(0);
    pthread_mutex_unlock(&lock);
    if (failure)
        errno = failure;
    return result;
}

int fdatasync(int fd) { return sync_or_fail(fd, real_fdatasync); }

int fsync(int fd) { return sync_or_fail(fd, real_fsync); }

int ftruncate(int fd, off_t size)
{
    int failure = 0;
    if (is_ours(fd)) {
        pthread_mutex_lock(&lock);
        failure = is_full() ? ENOSPC : 0;
        pthread_mutex_unlock(&lock);
    }
    if (failure) {
        errno = failure;
        return -1;
    }
    return real_ftruncate(fd, size);
}

int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }

int msync(void *start, size_t size, int flags)
{
    int failure;
    pthread_mutex_lock(&lock);
    failure = sync_fails();
    pthread_mutex_unlock(&lock);
    if (failure) {
        errno = EIO;
        return -1;
    }
    return real_msync(start, size, flags);
}

int statvfs(const char *path, struct statvfs *disk)
{
    int result = real_statvfs(path, disk);
    if (result == 0 && was_full && may("full"))
        disk->f_bavail = disk->f_bfree = 0;
    return result;
}

int statvfs64(const char *path, struct statvfs64 *disk)
{
    return statvfs(path, (struct statvfs *)disk); /* the same, where `off_t` has 64 bits */
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = real_clock_gettime ? real_clock_gettime(clock, now)
                                    : (int)syscall(SYS_clock_gettime, clock, now);
    if (result != 0)
        return result;
    if (clock == CLOCK_REALTIME && may("clock")) {
        pthread_mutex_lock(&lock);
        if (pick(one_in) == 0 && happens())
            realtime_off = 86400L * ((long)pick(2 * MOST_DAYS) - MOST_DAYS);
        now->tv_sec += realtime_off;
        pthread_mutex_unlock(&lock);
    } else if (clock == CLOCK_MONOTONIC && (monotonic_off || may("pause"))) {
        pthread_mutex_lock(&lock);
        if (may("pause") && pick(one_in) == 0 && happens())
            monotonic_off += pick(MOST_AHEAD_S);
        now->tv_sec += monotonic_off; /* it never goes back */
        pthread_mutex_unlock(&lock);
    }
    return result;
}
