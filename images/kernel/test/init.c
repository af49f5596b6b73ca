// SPDX-License-Identifier: GPL-2.0-only
/*
 * PID 1 of the test machines: does what `do=` on the kernel command line says, prints one line
 * per finding on the console, sets the machine's exit code and powers off.
 *
 *   do=true                nothing: the floor of the boot time
 *   do=overlay             what the agent does: read-only root, tmpfs, overlay, chroot, one command
 *   do=exit:N              exit code N
 *   do=touch:MiB           write every page of MiB in random order, read it all back
 *   do=sparse:MiB          the same on file-backed shared memory and on the zero page
 *   do=fork:N              N processes, each checks and rewrites its copy of 8 MiB, three deep
 *   do=spawn:N             N times fork and exec, from a process with 8 MiB
 *   do=threads:N           N threads fault the same memory in at once
 *   do=echo:MiB            serve /dev/ttyS0: send back MiB bytes
 *   do=sink:MiB            serve /dev/ttyS0: read MiB bytes, check the pattern
 *   do=slowsink:MiB        the same, but let it fill up first and begin slowly
 *   do=badmem              a process that must die by SIGSEGV, and one that runs out of memory
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define MIB (1UL << 20)

static int console = -1;

static void say(const char *fmt, ...)
{
	char line[256];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	if (write(console, line, (size_t)n) < 0)
		return;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static __attribute__((noreturn)) void power_off(int code)
{
	char text[16];
	int fd = open("/proc/exitcode", O_WRONLY);

	if (fd >= 0) {
		int n = snprintf(text, sizeof(text), "%d\n", code);

		if (write(fd, text, (size_t)n) != n)
			say("cannot set the exit code\n");
		close(fd);
	}
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static __attribute__((noreturn)) void fail(const char *what)
{
	say("FAIL %s: %s\n", what, strerror(errno));
	power_off(1);
}

/* A permutation of 0..n-1: i -> (i * odd + c) mod 2^k, walked until below n. */
static uint64_t next_index(uint64_t i, uint64_t n)
{
	uint64_t mask = 1;

	while (mask < n)
		mask <<= 1;
	mask--;
	do {
		i = (i * 0x5851f42d4c957f2dULL + 0x14057b7ef767814fULL) & mask;
	} while (i >= n);
	return i;
}

static uint64_t stamp(uint64_t page)
{
	return page * 0x9e3779b97f4a7c15ULL + 1;
}

static void touch_all(uint64_t *mem, uint64_t pages)
{
	uint64_t i, page = 0;

	for (i = 0; i < pages; i++) {
		page = next_index(page, pages);
		mem[page * (PAGE / 8) + page % 512] = stamp(page);
	}
}

static uint64_t count_wrong(const uint64_t *mem, uint64_t pages)
{
	uint64_t i, wrong = 0;

	for (i = 0; i < pages; i++)
		if (mem[i * (PAGE / 8) + i % 512] != stamp(i))
			wrong++;
	return wrong;
}

static int test_touch(unsigned long mib)
{
	uint64_t pages = mib * MIB / PAGE, wrong;
	double start = now();
	uint64_t *mem = mmap(NULL, mib * MIB, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (mem == MAP_FAILED)
		fail("mmap");
	touch_all(mem, pages);
	say("touched %lu MiB in %.2f s\n", mib, now() - start);
	start = now();
	wrong = count_wrong(mem, pages);
	say("checked in %.2f s, %lu wrong\n", now() - start, (unsigned long)wrong);
	return wrong != 0;
}

static int test_sparse(unsigned long mib)
{
	uint64_t pages = mib * MIB / PAGE, i, page = 0, wrong = 0;
	uint64_t *shared, *zero;
	int fd = memfd_create("sparse", 0);

	if (fd < 0 || ftruncate(fd, (off_t)(mib * MIB)))
		fail("memfd");
	shared = mmap(NULL, mib * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	zero = mmap(NULL, mib * MIB, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || zero == MAP_FAILED)
		fail("mmap");
	for (i = 0; i < pages; i++) {
		page = next_index(page, pages);
		wrong += zero[page * (PAGE / 8)] != 0;
	}
	touch_all(shared, pages);
	wrong += count_wrong(shared, pages);
	touch_all(zero, pages);
	wrong += count_wrong(zero, pages) + count_wrong(shared, pages);
	say("sparse %lu MiB: %lu wrong\n", mib, (unsigned long)wrong);
	return wrong != 0;
}

static int check_copy(uint64_t *mem, uint64_t pages, uint64_t salt, int depth)
{
	uint64_t i;
	int status;
	pid_t child = 0;

	for (i = 0; i < pages; i++)
		if (mem[i * 512] != stamp(i) + salt)
			return 1;
	for (i = 0; i < pages; i += 2)
		mem[i * 512] += 7;
	for (i = 1; i < pages; i += 2)
		mem[i * 512] += 7;
	if (depth > 0) {
		child = fork();
		if (child == 0)
			_exit(check_copy(mem, pages, salt + 7, depth - 1));
	}
	for (i = 0; i < pages; i++)
		if (mem[i * 512] != stamp(i) + salt + 7)
			return 2;
	if (child > 0 && (waitpid(child, &status, 0) != child || status != 0))
		return 3;
	return child < 0 ? 4 : 0;
}

static int test_fork(unsigned long count)
{
	uint64_t pages = 8 * MIB / PAGE, i, bad = 0;
	uint64_t *mem = mmap(NULL, 8 * MIB, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	double start = now();
	int status;

	for (i = 0; i < pages; i++)
		mem[i * 512] = stamp(i);
	for (i = 0; i < count; i++) {
		pid_t child = fork();

		if (child < 0)
			fail("fork");
		if (child == 0)
			_exit(check_copy(mem, pages, 0, 3));
		if (i % 4 == 3)
			while (waitpid(-1, &status, WNOHANG) > 0)
				bad += status != 0;
	}
	while (wait(&status) > 0)
		bad += status != 0;
	for (i = 0; i < pages; i++)
		bad += mem[i * 512] != stamp(i);
	say("fork %lu: %lu bad, %.2f s\n", count, (unsigned long)bad, now() - start);
	return bad != 0;
}

static int test_spawn(unsigned long count)
{
	double start = now();
	unsigned long i;
	char *mem = malloc(8 * MIB);
	int status, bad = 0;

	memset(mem, 1, 8 * MIB);
	for (i = 0; i < count; i++) {
		pid_t child = fork();

		if (child == 0) {
			execl("/init", "init", "exit", NULL);
			_exit(1);
		}
		bad += waitpid(child, &status, 0) != child || status != 0;
	}
	say("spawn %lu: %d bad, %.0f us each\n", count, bad, (now() - start) * 1e6 / (double)count);
	free(mem);
	return bad != 0;
}

struct slice {
	uint64_t *mem;
	uint64_t pages;
	unsigned int word;
};

static void *add_one(void *arg)
{
	struct slice *s = arg;
	uint64_t i, page = s->word;

	for (i = 0; i < s->pages; i++) {
		page = next_index(page, s->pages);
		s->mem[page * 512 + s->word] = stamp(page) + s->word;
	}
	return NULL;
}

static int test_threads(unsigned long count)
{
	uint64_t pages = 128 * MIB / PAGE, i, bad = 0;
	uint64_t *mem = mmap(NULL, 128 * MIB, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct slice slices[64];
	pthread_t threads[64];
	unsigned int t;

	if (mem == MAP_FAILED || count > 64)
		fail("threads");
	for (t = 0; t < count; t++) {
		slices[t] = (struct slice){ mem, pages, t };
		if (pthread_create(&threads[t], NULL, add_one, &slices[t]))
			fail("pthread_create");
	}
	for (t = 0; t < count; t++)
		pthread_join(threads[t], NULL);
	for (t = 0; t < count; t++)
		for (i = 0; i < pages; i++)
			bad += mem[i * 512 + t] != stamp(i) + t;
	say("threads %lu: %lu bad\n", count, (unsigned long)bad);
	return bad != 0;
}

static int open_link(void)
{
	struct termios raw;
	int fd = open("/dev/ttyS0", O_RDWR | O_NOCTTY);

	if (fd < 0 || tcgetattr(fd, &raw))
		fail("ttyS0");
	cfmakeraw(&raw);
	raw.c_cflag |= CLOCAL;
	if (tcsetattr(fd, TCSANOW, &raw) || write(fd, "R", 1) != 1)
		fail("ttyS0 raw");
	return fd;
}

static void write_all(int fd, const char *buf, size_t len)
{
	while (len > 0) {
		ssize_t n = write(fd, buf, len);

		if (n <= 0)
			fail("write to link");
		buf += n;
		len -= (size_t)n;
	}
}

static int test_echo(unsigned long mib)
{
	static char buf[65536];
	unsigned long left = mib * MIB;
	int fd = open_link();

	while (left > 0) {
		ssize_t n = read(fd, buf, sizeof(buf));

		if (n <= 0)
			fail("read from link");
		write_all(fd, buf, (size_t)n);
		left -= (unsigned long)n;
	}
	tcdrain(fd);
	return 0;
}

/* The sender writes the 64-bit numbers 0, 1, 2, …: no byte may be lost, doubled or moved. */
static int test_sink(unsigned long mib, int slowly)
{
	static unsigned char buf[65536];
	uint64_t done = 0, total = mib * MIB, bad = 0;
	int fd = open_link();
	double start = now();

	if (slowly)
		sleep(1);
	while (done < total) {
		ssize_t i, n = read(fd, buf, sizeof(buf));

		if (n <= 0)
			fail("read from link");
		for (i = 0; i < n; i++, done++)
			bad += buf[i] != (unsigned char)(done / 8 >> (done % 8 * 8));
		if (slowly && done < 4 * MIB)
			usleep(1000);
	}
	say("sink %lu MiB: %lu bad, %.2f s\n", mib, (unsigned long)bad, now() - start);
	write_all(fd, bad ? "B" : "G", 1);
	tcdrain(fd);
	return bad != 0;
}

static int test_badmem(void)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		*(volatile int *)0x1000 = 1;
		_exit(0);
	}
	if (waitpid(child, &status, 0) != child || !WIFSIGNALED(status) ||
	    WTERMSIG(status) != SIGSEGV)
		return 1;
	child = fork();
	if (child == 0)
		for (;;) {
			volatile char *p = mmap(NULL, 16 * MIB, PROT_READ | PROT_WRITE,
						MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
			size_t i;

			if (p == MAP_FAILED)
				_exit(0);
			for (i = 0; i < 16 * MIB; i += PAGE)
				p[i] = 1;
		}
	if (waitpid(child, &status, 0) != child ||
	    !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)) {
		say("out of memory: status %x\n", status);
		return 1;
	}
	say("badmem: as it should be\n");
	return 0;
}

static int test_overlay(void)
{
	int status;
	pid_t child;

	mkdir("/base", 0755);
	mkdir("/top", 0755);
	mkdir("/new", 0755);
	if (mount("none", "/base", "hostfs", MS_RDONLY, "/") ||
	    mount("none", "/top", "tmpfs", 0, "mode=0755"))
		fail("mount base");
	mkdir("/top/up", 0755);
	mkdir("/top/work", 0755);
	if (mount("none", "/new", "overlay", 0, "lowerdir=/base,upperdir=/top/up,workdir=/top/work"))
		fail("mount overlay");
	child = fork();
	if (child == 0) {
		if (chroot("/new") || chdir("/"))
			_exit(99);
		execl("/bin/true", "true", NULL);
		_exit(98);
	}
	if (waitpid(child, &status, 0) != child)
		fail("waitpid");
	sync();
	return WIFEXITED(status) ? WEXITSTATUS(status) : 97;
}

static int run(const char *what)
{
	const char *colon = strchr(what, ':');
	unsigned long n = colon ? strtoul(colon + 1, NULL, 10) : 0;
	size_t len = colon ? (size_t)(colon - what) : strlen(what);

#define IS(name) (len == strlen(name) && !strncmp(what, name, len))
	if (IS("true"))
		return 0;
	if (IS("exit"))
		return (int)n;
	if (IS("overlay"))
		return test_overlay();
	if (IS("touch"))
		return test_touch(n);
	if (IS("sparse"))
		return test_sparse(n);
	if (IS("fork"))
		return test_fork(n);
	if (IS("spawn"))
		return test_spawn(n);
	if (IS("threads"))
		return test_threads(n);
	if (IS("echo"))
		return test_echo(n);
	if (IS("sink"))
		return test_sink(n, 0);
	if (IS("slowsink"))
		return test_sink(n, 1);
	if (IS("badmem"))
		return test_badmem();
#undef IS
	say("FAIL unknown test %s\n", what);
	return 1;
}

int main(int argc, char **argv)
{
	const char *what = getenv("do"); /* the kernel passes unknown name=value words on */
	int code;

	if (argc > 1 && !strcmp(argv[1], "exit"))
		return 0;
	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mount("none", "/dev", "devtmpfs", 0, NULL);
	mount("none", "/proc", "proc", 0, NULL);
	console = open("/dev/console", O_WRONLY);
	code = run(what ? what : "true");
	say("RESULT %s %d\n", what ? what : "true", code);
	power_off(code);
}
