# Every target does its own set-up: missing packages are installed by apt (as root, or by sudo).

PREFIX ?= /usr/local
export PREFIX DESTDIR

.PHONY: build demo test image kernel kernel-qemu bench fuzz install clean

build:    ## the command, as one static file
	@setup/build.sh

demo:     ## run a command in the default appliance and one in a small Debian
	@setup/demo.sh

test:     ## every check and test, on real machines
	@setup/test.sh

image:    ## a small Debian image; prints its path
	@images/build.sh

kernel:   ## AppPot's own User-Mode Linux kernel (about 6 minutes)
	@images/kernel/build.sh

kernel-qemu: ## a kernel for QEMU, from Debian's package, which is not installed
	@images/kernel/debian.sh

bench:    ## everything that is claimed about speed, measured side by side (5 minutes; BENCH_QUICK=1: 2)
	@benches/run.sh

fuzz:     ## everything that reads what others wrote, FUZZ_SECONDS (30) each
	@setup/fuzz.sh

install:  ## into PREFIX (/usr/local), below DESTDIR: command, kernels if built, completions
	@setup/install.sh

clean:    ## what was built here; caches below the home directory stay
	@rm -rf target contract/fuzz/target snapshot/fuzz/target image/fuzz/target
