#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# On a gateway of the lab: a bridge with two machines, and an internet behind the other side. Both are network namespaces.
set -eu

cp /srv/archives/*.deb /var/cache/apt/archives/
sysctl --quiet --write net.ipv4.ip_forward=1
ip link add vmbr1 type bridge
ip address add 192.168.100.1/24 dev vmbr1
ip link set vmbr1 up

ip netns add internet
ip link add uplink type veth peer name eth0 netns internet
ip address add 45.0.0.1/24 dev uplink
ip link set uplink up
ip -n internet link set lo up
ip -n internet link set eth0 up
for address in 45.0.0.2 45.0.0.10 45.0.0.11; do
    ip -n internet address add "$address/24" dev eth0
done

# machine NAME PORT MAC ADDRESS
machine() {
    ip netns add "$1"
    ip link add "$2" type veth peer name eth0 netns "$1"
    ip link set "$2" master vmbr1 up
    ip -n "$1" link set lo up
    ip -n "$1" link set eth0 address "$3" up
    ip -n "$1" address add "$4/24" dev eth0
    ip -n "$1" route add default via 192.168.100.1
    mkdir -p "/etc/netns/$1"
    echo "nameserver 192.168.100.1" >"/etc/netns/$1/resolv.conf"
}

machine stranger stranger 52:54:00:00:00:09 192.168.100.12
machine web-1 web1 52:54:00:00:00:01 192.168.100.11
