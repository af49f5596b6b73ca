#!/bin/sh
# Services start where an init runs. An appliance that is booted directly has none.
[ -d /run/systemd/system ] || [ -e /run/initctl ] || exit 101
