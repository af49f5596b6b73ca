/*
 * What the benchmark runs on the host and in guests: one static program, so that the same
 * instructions are compared. It prints "name value" lines; times are its own clock's.
 *
 *   probe inside DIR SOURCE   system calls, page faults, fork+exec, computing, files in DIR, gcc -O2
 *   probe sink                reads standard input to its end: MB/s
 *   probe source MIB          writes so many MiB to standard output
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 1 << 20, PAGE = 4096 };

static char block[BLOCK];

static void check(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

/* Seconds. */
static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static void print(const char *name, double value)
{
	printf("%s %.6g\n", name, value);
	fflush(stdout);
}

/* Microseconds of a system call that does nothing. */
static void system_calls(void)
{
	long n = 1000;
	double time;

	for (;;) {
		double start = now();
		for (long i = 0; i < n; i++)
			syscall(SYS_getppid);
		time = now() - start;
		if (time > 0.1)
			break;
		n *= 2;
	}
	print("syscall", time / n * 1e6);
}

/* Microseconds until a fresh page of memory can be used. */
static void page_faults(void)
{
	const size_t size = 64 << 20;
	double start;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(memory != MAP_FAILED, "mmap");
	/* Pages of 4 KiB on both sides: the guest has no others. */
	madvise(memory, size, MADV_NOHUGEPAGE);
	start = now();
	for (size_t at = 0; at < size; at += PAGE)
		memory[at] = 1;
	print("fault", (now() - start) / (size / PAGE) * 1e6);
	munmap(memory, size);
}

/* Runs a program to its end. */
static void spawn(char *const argv[])
{
	int status;
	pid_t child = fork();

	check(child >= 0, "fork");
	if (child == 0) {
		execvp(argv[0], argv);
		_exit(127);
	}
	check(waitpid(child, &status, 0) == child, "waitpid");
	if (status != 0) {
		fprintf(stderr, "%s: status %#x\n", argv[0], status);
		exit(1);
	}
}

/* Microseconds of fork, exec and wait. */
static void processes(void)
{
	const int n = 200;
	char *argv[] = { "/proc/self/exe", "nothing", NULL };
	double start = now();

	for (int i = 0; i < n; i++)
		spawn(argv);
	print("process", (now() - start) / n * 1e6);
}

/* A fixed amount of computing, in the caches: integers and floating point. */
static double compute_once(void)
{
	static uint32_t table[4096];
	uint32_t x = 12345;
	double sum = 0;

	for (long i = 0; i < 60L * 1000 * 1000; i++) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		table[x & 4095] += x;
		sum = sum * 0.999 + table[(x >> 12) & 4095];
	}
	return sum;
}

/* Milliseconds: the best of three, since other people's work can only slow it down. */
static void computing(void)
{
	volatile double result;
	double best = 1e9;

	for (int i = 0; i < 3; i++) {
		double start = now();
		result = compute_once();
		double time = now() - start;
		if (time < best)
			best = time;
	}
	(void)result;
	print("compute", best * 1e3);
}

static const char *in(const char *directory, const char *name, int number)
{
	static char path[4096];

	snprintf(path, sizeof path, "%s/%s%d", directory, name, number);
	return path;
}

static void create_small(const char *path)
{
	int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);

	check(fd >= 0 && write(fd, block, 100) == 100 && close(fd) == 0, path);
}

static void stat_small(const char *path)
{
	struct stat s;

	check(stat(path, &s) == 0 && s.st_size == 100, path);
}

static void read_small(const char *path)
{
	int fd = open(path, O_RDONLY);

	check(fd >= 0 && read(fd, block, PAGE) == 100 && close(fd) == 0, path);
}

static void unlink_small(const char *path)
{
	check(unlink(path) == 0, path);
}

/* Microseconds of each operation on files of 100 bytes. */
static void small_files(const char *directory)
{
	static const struct {
		const char *name;
		void (*work)(const char *path);
	} steps[] = {
		{ "create", create_small },
		{ "stat", stat_small },
		{ "read-small", read_small },
		{ "unlink", unlink_small },
	};
	const int n = 200;

	for (size_t s = 0; s < sizeof steps / sizeof *steps; s++) {
		double start = now();
		for (int i = 0; i < n; i++)
			steps[s].work(in(directory, "small", i));
		print(steps[s].name, (now() - start) / n * 1e6);
	}
}

/* Reads to the end; MB/s from the first byte on. */
static double drain(int fd)
{
	double start = 0, total = 0;
	ssize_t got;

	while ((got = read(fd, block, BLOCK)) > 0) {
		if (start == 0)
			start = now();
		total += got;
	}
	check(got == 0 && total > 0, "read");
	return total / (now() - start) / 1e6;
}

/* MB/s of a file that this system has not read yet. */
static void read_file(const char *directory)
{
	int fd = open(in(directory, "large", 0), O_RDONLY);

	check(fd >= 0, "open large0");
	print("read", drain(fd));
	close(fd);
}

/* MB/s of a new file, until fsync(2) has returned. */
static void write_file(const char *directory)
{
	const int n = 128;
	const char *path = in(directory, "written", 0);
	double start;
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);

	check(fd >= 0, path);
	/* Not zeros only: some filesystems would not store them. */
	memset(block, 'x', sizeof block);
	start = now();
	for (int i = 0; i < n; i++)
		check(write(fd, block, BLOCK) == BLOCK, path);
	check(fsync(fd) == 0 && close(fd) == 0, path);
	print("write", (double)n * BLOCK / (now() - start) / 1e6);
	unlink(path);
}

/* Milliseconds. */
static void compile(const char *directory, char *source)
{
	char object[4096];
	char *argv[] = { "gcc", "-O2", "-w", "-c", "-o", object, source, NULL };
	double start;

	strcpy(object, in(directory, "object", 0));
	start = now();
	spawn(argv);
	print("compile", (now() - start) * 1e3);
	unlink(object);
}

static void inside(const char *directory, char *source)
{
	system_calls();
	page_faults();
	processes();
	computing();
	small_files(directory);
	read_file(directory);
	write_file(directory);
	if (*source)
		compile(directory, source);
}

static void produce(int mib)
{
	for (int i = 0; i < mib; i++)
		for (size_t done = 0; done < BLOCK;) {
			ssize_t wrote = write(1, block + done, BLOCK - done);
			check(wrote > 0, "write");
			done += wrote;
		}
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (strcmp(what, "nothing") == 0)
		return 0;
	if (strcmp(what, "inside") == 0 && argc == 4)
		inside(argv[2], argv[3]);
	else if (strcmp(what, "sink") == 0)
		print("sink", drain(0));
	else if (strcmp(what, "source") == 0 && argc == 3)
		produce(atoi(argv[2]));
	else
		return 2;
	return 0;
}
