package cluster

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of times in /proc: USER_HZ, which is 100 on every Linux that there is.
const tick = 10 * time.Millisecond

// cpuOf is user and system time in a /proc/<pid>/stat.
func cpuOf(stat []byte) time.Duration {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]) // the name before may have anything in it
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(string(fields[11]), 10, 64)
	system, _ := strconv.ParseInt(string(fields[12]), 10, 64)
	return time.Duration(user+system) * tick
}

// socketOf is the inode of the IPv4 socket of this machine that is bound to local and connected to remote; 0 if there is none.
func socketOf(table []byte, local, remote netip.AddrPort) uint64 {
	want := kernelAddr(local) + " " + kernelAddr(remote) + " "
	for line := range strings.Lines(string(table)) {
		_, rest, _ := strings.Cut(line, ": ")
		if !strings.HasPrefix(rest, want) {
			continue
		}
		if fields := strings.Fields(rest); len(fields) > 8 {
			inode, _ := strconv.ParseUint(fields[8], 10, 64)
			return inode
		}
	}
	return 0
}

// kernelAddr is an address as /proc/net/tcp writes it: the bytes of the address in the order of this machine, which is little-endian where SoftHSM and Go run it.
func kernelAddr(a netip.AddrPort) string {
	b := a.Addr().As4()
	var host [4]byte
	binary.BigEndian.PutUint32(host[:], binary.NativeEndian.Uint32(b[:]))
	return strings.ToUpper(hex.EncodeToString(host[:])) + fmt.Sprintf(":%04X", a.Port())
}

// has reports whether a process has the socket with that inode open.
func has(pid int, inode uint64) bool {
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	want := fmt.Sprintf("socket:[%d]", inode)
	for _, fd := range fds {
		if name, err := os.Readlink(dir + fd.Name()); err == nil && name == want {
			return true
		}
	}
	return false
}

// traced reports whether every thread of a process has a tracer.
func traced(pid int) bool {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil || len(tasks) == 0 {
		return false
	}
	for _, t := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, t.Name()))
		if err == nil && bytes.Contains(b, []byte("TracerPid:\t0\n")) {
			return false
		}
	}
	return true
}
