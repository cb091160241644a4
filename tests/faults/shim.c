/* Preloaded into the agent: makes its calls fail, crawl or hang as the rules in a shared file say (see shim.py).
 *
 * Every rule is looked at anew at each call, so that a test turns a fault on and off while the process runs. A rule
 * counts what it hit. What no rule concerns goes straight to libc.
 */
#define _GNU_SOURCE
/* Each name is wrapped under both its forms below, so it must not be an alias of the other here. */
#undef _FILE_OFFSET_BITS
#undef _TIME_BITS
#define _LARGEFILE64_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN = 1, CREATE = 2, READ = 4, WRITE = 8, SYNC = 16, TRUNCATE = 32, RENAME = 64, STAT = 128, LIST = 256, SEND = 512 };
enum { FAIL = 1, SHORT = 2, SLOW = 3, HANG = 4 };
#define RULES 16
#define PATH_BYTES 1024

/* The same fields stand in shim.py. */
struct rule {
	uint32_t active; /* the fault's number, so that one that hangs notices when another has taken its place */
	uint32_t calls, action, error;
	uint64_t delay_us;
	uint64_t skip;  /* so many calls pass first */
	uint64_t most;  /* so many are hit then; 0: all */
	uint64_t seen, hits;
	uint32_t waiting; /* threads that hang or are slowed just now */
	uint32_t padding;
	char folder[PATH_BYTES];
	char ending[64];
};
struct control {
	int64_t clock_offset_ns;
	uint64_t clock_hits;
	struct rule rules[RULES];
};

static struct control *control;

#define REAL(name) \
	({ \
		static __typeof__(&name) found; \
		if (!found) \
			found = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
		found; \
	})

__attribute__((constructor)) static void take_control(void)
{
	const char *path = getenv("FAULT_CONTROL");
	if (!path)
		return;
	int fd = REAL(open)(path, O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		fprintf(stderr, "FAULT_CONTROL: %s: %s\n", path, strerror(errno));
		_exit(99);
	}
	void *shared = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (shared != MAP_FAILED)
		control = shared;
}

static int concerns(unsigned call)
{
	if (control)
		for (int n = 0; n < RULES; n++)
			if (__atomic_load_n(&control->rules[n].active, __ATOMIC_ACQUIRE) && control->rules[n].calls & call)
				return 1;
	return 0;
}

static void path_of(int fd, char *path)
{
	char link[40];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, PATH_BYTES - 1);
	path[length < 0 ? 0 : length] = 0;
	char *deleted = strstr(path, " (deleted)");
	if (deleted)
		*deleted = 0;
}

static void absolute(int fd, const char *name, char *path)
{
	if (!name || name[0] == '/') {
		snprintf(path, PATH_BYTES, "%s", name ? name : "");
		return;
	}
	char folder[PATH_BYTES];
	if (fd == AT_FDCWD) {
		if (!getcwd(folder, sizeof folder))
			folder[0] = 0;
	} else {
		path_of(fd, folder);
	}
	if (name[0] == 0)
		snprintf(path, PATH_BYTES, "%s", folder);
	else if (snprintf(path, PATH_BYTES, "%s/%s", folder, name) >= PATH_BYTES)
		path[0] = 0;
}

static int matches(const struct rule *rule, const char *path)
{
	if (!rule->folder[0]) /* a port */
		return !strcmp(path, rule->ending);
	size_t inside = strlen(rule->folder), whole = strlen(path), ending = strlen(rule->ending);
	if (strncmp(path, rule->folder, inside) || (path[inside] && path[inside] != '/'))
		return 0;
	return whole >= ending && !strcmp(path + whole - ending, rule->ending);
}

static void pause_us(uint64_t us)
{
	struct timespec left = {us / 1000000, us % 1000000 * 1000};
	while (nanosleep(&left, &left) && errno == EINTR)
		;
}

/* What happens to this call: 0 (nothing, or nothing any more), FAIL with errno set, or SHORT. */
static int meddle(unsigned call, const char *path)
{
	int saved = errno;
	for (int n = 0; n < RULES; n++) {
		struct rule *rule = &control->rules[n];
		uint32_t fault = __atomic_load_n(&rule->active, __ATOMIC_ACQUIRE);
		if (!fault || !(rule->calls & call) || !matches(rule, path))
			continue;
		uint64_t seen = __atomic_fetch_add(&rule->seen, 1, __ATOMIC_ACQ_REL);
		if (seen < rule->skip || (rule->most && seen >= rule->skip + rule->most))
			continue;
		__atomic_fetch_add(&rule->waiting, 1, __ATOMIC_ACQ_REL);
		__atomic_fetch_add(&rule->hits, 1, __ATOMIC_ACQ_REL);
		if (rule->action == SLOW)
			pause_us(rule->delay_us);
		while (rule->action == HANG && __atomic_load_n(&rule->active, __ATOMIC_ACQUIRE) == fault)
			pause_us(5000); /* signals do not end it: like a hard mount whose server is away */
		__atomic_fetch_sub(&rule->waiting, 1, __ATOMIC_ACQ_REL);
		errno = saved;
		if (rule->action == FAIL) {
			errno = (int)rule->error;
			return FAIL;
		}
		if (rule->action == SHORT)
			return SHORT;
	}
	return 0;
}

static int on_path(unsigned call, int fd, const char *name)
{
	if (!concerns(call))
		return 0;
	char path[PATH_BYTES];
	absolute(fd, name, path);
	return meddle(call, path);
}

static int on_fd(unsigned call, int fd)
{
	if (!concerns(call))
		return 0;
	char path[PATH_BYTES];
	int saved = errno;
	path_of(fd, path);
	errno = saved;
	return meddle(call, path);
}

/* Opening: a file that may be made by it counts as CREATE, any other as OPEN. */

static int on_open(int fd, const char *name, int flags)
{
	return on_path(flags & O_CREAT ? CREATE : OPEN, fd, name);
}

#define MODE(flags) \
	mode_t mode = 0; \
	if ((flags) & (O_CREAT | __O_TMPFILE)) { \
		va_list rest; \
		va_start(rest, flags); \
		mode = va_arg(rest, mode_t); \
		va_end(rest); \
	}
#define WRAP_OPEN(name) \
	int name(const char *path, int flags, ...) \
	{ \
		MODE(flags) \
		return on_open(AT_FDCWD, path, flags) == FAIL ? -1 : REAL(name)(path, flags, mode); \
	}
#define WRAP_OPENAT(name) \
	int name(int fd, const char *path, int flags, ...) \
	{ \
		MODE(flags) \
		return on_open(fd, path, flags) == FAIL ? -1 : REAL(name)(fd, path, flags, mode); \
	}
WRAP_OPEN(open)
WRAP_OPEN(open64)
WRAP_OPENAT(openat)
WRAP_OPENAT(openat64)

/* Reading and writing: SHORT does the first half of it, as a disk does that fills up. */

#define SOME(call, fd, count) \
	int verdict = on_fd(call, fd); \
	if (verdict == FAIL) \
		return -1; \
	if (verdict == SHORT && (count) > 1) \
		(count) /= 2;
#define WRAP_AT(name, call, type, offset_type) \
	ssize_t name(int fd, type data, size_t count, offset_type offset) \
	{ \
		SOME(call, fd, count) \
		return REAL(name)(fd, data, count, offset); \
	}
#define WRAP_HERE(name, call, type) \
	ssize_t name(int fd, type data, size_t count) \
	{ \
		SOME(call, fd, count) \
		return REAL(name)(fd, data, count); \
	}
WRAP_AT(pread, READ, void *, off_t)
WRAP_AT(pread64, READ, void *, off64_t)
WRAP_AT(pwrite, WRITE, const void *, off_t)
WRAP_AT(pwrite64, WRITE, const void *, off64_t)
WRAP_HERE(read, READ, void *)
WRAP_HERE(write, WRITE, const void *)

/* A short writev leaves out every buffer behind the first. */
#define FIRST(fd, buffers, count) \
	struct iovec first; \
	int verdict = on_fd(WRITE, fd); \
	if (verdict == FAIL) \
		return -1; \
	if (verdict == SHORT && (count) > 0) { \
		first = *(buffers); \
		first.iov_len = first.iov_len > 1 ? first.iov_len / 2 : first.iov_len; \
		(buffers) = &first; \
		(count) = 1; \
	}

ssize_t writev(int fd, const struct iovec *buffers, int count)
{
	FIRST(fd, buffers, count)
	return REAL(writev)(fd, buffers, count);
}

ssize_t pwritev(int fd, const struct iovec *buffers, int count, off_t offset)
{
	FIRST(fd, buffers, count)
	return REAL(pwritev)(fd, buffers, count, offset);
}

ssize_t pwritev64(int fd, const struct iovec *buffers, int count, off64_t offset)
{
	FIRST(fd, buffers, count)
	return REAL(pwritev64)(fd, buffers, count, offset);
}

/* Everything else that either happens or fails. */

#define ON_FD(result, name, call, parameters, arguments) \
	result name parameters { return on_fd(call, fd) == FAIL ? -1 : REAL(name) arguments; }
#define ON_PATH(result, name, call, at, parameters, arguments) \
	result name parameters { return on_path(call, at, path) == FAIL ? -1 : REAL(name) arguments; }

ON_FD(int, fsync, SYNC, (int fd), (fd))
ON_FD(int, fdatasync, SYNC, (int fd), (fd))
ON_FD(int, ftruncate, TRUNCATE, (int fd, off_t length), (fd, length))
ON_FD(int, ftruncate64, TRUNCATE, (int fd, off64_t length), (fd, length))
ON_FD(int, fstat, STAT, (int fd, struct stat *status), (fd, status))
ON_FD(int, fstat64, STAT, (int fd, struct stat64 *status), (fd, status))
ON_PATH(int, stat, STAT, AT_FDCWD, (const char *path, struct stat *status), (path, status))
ON_PATH(int, stat64, STAT, AT_FDCWD, (const char *path, struct stat64 *status), (path, status))
ON_PATH(int, lstat, STAT, AT_FDCWD, (const char *path, struct stat *status), (path, status))
ON_PATH(int, lstat64, STAT, AT_FDCWD, (const char *path, struct stat64 *status), (path, status))
ON_PATH(int, fstatat, STAT, fd, (int fd, const char *path, struct stat *s, int flags), (fd, path, s, flags))
ON_PATH(int, fstatat64, STAT, fd, (int fd, const char *path, struct stat64 *s, int flags), (fd, path, s, flags))
ON_PATH(int, statx, STAT, fd, (int fd, const char *path, int flags, unsigned mask, struct statx *s),
	(fd, path, flags, mask, s))
ON_PATH(int, statvfs, STAT, AT_FDCWD, (const char *path, struct statvfs *status), (path, status))
ON_PATH(int, statvfs64, STAT, AT_FDCWD, (const char *path, struct statvfs64 *status), (path, status))
ON_PATH(int, access, STAT, AT_FDCWD, (const char *path, int mode), (path, mode))
ON_PATH(int, mkdir, CREATE, AT_FDCWD, (const char *path, mode_t mode), (path, mode))
ON_PATH(int, rename, RENAME, AT_FDCWD, (const char *path, const char *fresh), (path, fresh))
ON_PATH(int, renameat, RENAME, fd, (int fd, const char *path, int to, const char *fresh), (fd, path, to, fresh))
ON_PATH(int, unlink, RENAME, AT_FDCWD, (const char *path), (path))
ON_PATH(int, unlinkat, RENAME, fd, (int fd, const char *path, int flags), (fd, path, flags))

DIR *opendir(const char *path)
{
	return on_path(LIST, AT_FDCWD, path) == FAIL ? NULL : REAL(opendir)(path);
}

DIR *fdopendir(int fd)
{
	return on_fd(LIST, fd) == FAIL ? NULL : REAL(fdopendir)(fd);
}

struct dirent *readdir(DIR *folder)
{
	return on_fd(LIST, dirfd(folder)) == FAIL ? NULL : REAL(readdir)(folder);
}

struct dirent64 *readdir64(DIR *folder)
{
	return on_fd(LIST, dirfd(folder)) == FAIL ? NULL : REAL(readdir64)(folder);
}

ssize_t getdents64(int fd, void *data, size_t count)
{
	return on_fd(LIST, fd) == FAIL ? -1 : REAL(getdents64)(fd, data, count);
}

/* By the other side's port: a process also sends to itself, to wake its threads. */

ssize_t send(int fd, const void *data, size_t count, int flags)
{
	struct sockaddr_in peer = {0};
	socklen_t size = sizeof peer;
	int saved = errno;
	if (concerns(SEND) && !getpeername(fd, (struct sockaddr *)&peer, &size) && peer.sin_family == AF_INET) {
		char port[16];
		snprintf(port, sizeof port, "%d", ntohs(peer.sin_port));
		errno = saved;
		if (meddle(SEND, port) == FAIL)
			return -1;
	}
	errno = saved;
	return REAL(send)(fd, data, count, flags);
}

/* The time of day, as it is after somebody has set the clock. What only ever counts up stays as it is. */

static int64_t offset_ns(void)
{
	int64_t offset = control ? __atomic_load_n(&control->clock_offset_ns, __ATOMIC_ACQUIRE) : 0;
	if (offset)
		__atomic_fetch_add(&control->clock_hits, 1, __ATOMIC_ACQ_REL);
	return offset;
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
	int result = REAL(clock_gettime)(clock, at);
	if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
		int64_t ns = at->tv_sec * 1000000000LL + at->tv_nsec + offset_ns();
		at->tv_sec = ns / 1000000000LL;
		at->tv_nsec = ns % 1000000000LL;
	}
	return result;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
	int result = REAL(gettimeofday)(at, zone);
	if (!result) {
		int64_t us = at->tv_sec * 1000000LL + at->tv_usec + offset_ns() / 1000;
		at->tv_sec = us / 1000000LL;
		at->tv_usec = us % 1000000LL;
	}
	return result;
}

time_t time(time_t *at)
{
	time_t now = REAL(time)(NULL) + offset_ns() / 1000000000LL;
	if (at)
		*at = now;
	return now;
}
