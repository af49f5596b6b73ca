/* The trivial init of the floor: a kernel that has nothing to do but start and power off. */
#include <sys/reboot.h>
#include <unistd.h>

int main(void)
{
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}
