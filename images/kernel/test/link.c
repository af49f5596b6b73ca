// SPDX-License-Identifier: GPL-2.0-only
/*
 * The host's end of the link: starts a machine with a socketpair as file descriptor 3.
 *
 *   link echo MiB linux args...   send MiB bytes, expect the same bytes back
 *   link sink MiB linux args...   send MiB bytes, the guest checks them and says so
 *
 * The bytes are the 64-bit numbers 0, 1, 2, … as they lie in memory. Prints the rate; exits with 0
 * when all bytes were right and the machine ended with 0.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static pid_t start(char **argv, int *link)
{
	int pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return -1;
	pid = fork();
	if (pid == 0) {
		dup2(pair[1], 3);
		fcntl(3, F_SETFD, 0);
		execv(argv[0], argv);
		_exit(127);
	}
	close(pair[1]);
	*link = pair[0];
	return pid;
}

static unsigned char byte_at(uint64_t i)
{
	return (unsigned char)(i / 8 >> (i % 8 * 8));
}

static size_t fill(unsigned char *buf, size_t len, uint64_t at)
{
	size_t i;

	for (i = 0; i < len; i++)
		buf[i] = byte_at(at + i);
	return len;
}

/* Send and receive at once, or both sides would wait with full buffers. */
static uint64_t transfer(int fd, uint64_t total, uint64_t expect)
{
	static unsigned char out[65536], in[65536];
	uint64_t sent = 0, got = 0, bad = 0;
	size_t have = 0, pos = 0;

	while (sent < total || got < expect) {
		struct pollfd p = { fd, (short)((got < expect ? POLLIN : 0) |
						(sent < total ? POLLOUT : 0)), 0 };

		if (poll(&p, 1, 60000) <= 0) {
			printf("stuck after %llu sent, %llu received\n",
			       (unsigned long long)sent, (unsigned long long)got);
			return 1;
		}
		if (p.revents & POLLIN) {
			ssize_t i, n = read(fd, in, sizeof(in));

			if (n <= 0)
				return 1;
			for (i = 0; i < n; i++, got++)
				bad += in[i] != byte_at(got);
		}
		if (p.revents & POLLOUT) {
			ssize_t n;

			if (pos == have) {
				have = fill(out, sizeof(out), sent);
				pos = 0;
			}
			n = send(fd, out + pos, have - pos, MSG_DONTWAIT);
			if (n < 0 && errno != EAGAIN)
				return 1;
			if (n > 0) {
				pos += (size_t)n;
				sent += (uint64_t)n;
			}
		}
		if (p.revents & (POLLERR | POLLNVAL))
			return 1;
	}
	return bad;
}

int main(int argc, char **argv)
{
	uint64_t total, bad;
	int fd, status;
	double began;
	pid_t pid;
	char c = 0;

	if (argc < 4)
		return 2;
	total = strtoull(argv[2], NULL, 10) << 20;
	pid = start(argv + 3, &fd);
	if (pid < 0 || read(fd, &c, 1) != 1 || c != 'R')
		return 2;
	began = now();
	bad = transfer(fd, total, strcmp(argv[1], "echo") ? 0 : total);
	if (strcmp(argv[1], "echo"))
		bad += read(fd, &c, 1) != 1 || c != 'G';
	printf("%s: %llu wrong, %.0f MB/s\n", argv[1], (unsigned long long)bad,
	       (double)total / 1e6 / (now() - began));
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status))
		return 1;
	return bad != 0;
}
