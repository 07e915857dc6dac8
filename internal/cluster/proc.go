package cluster

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"syscall"
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

// socketOf is the inode of the IPv4 TCP socket of this machine that is bound to local and connected to remote; 0 if there is none. It asks the kernel for that one
// (sock_diag(7)): /proc/net/tcp has every connection that ended within a minute too, and to read it took most of the time of this process while all others were dead.
func socketOf(local, remote netip.AddrPort) uint64 {
	const (
		sockDiagByFamily = 20
		netlinkSockDiag  = 4
		headerSize       = 16
		inodeAt          = headerSize + 68 // in the answer: nlmsghdr and inet_diag_msg
	)
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, netlinkSockDiag)
	if err != nil {
		return 0
	}
	defer func() { _ = syscall.Close(fd) }()
	// struct inet_diag_req_v2: family, protocol, extensions, padding, states, and the sockid: ports and addresses as on the wire, the interface, a cookie that any has.
	ask := make([]byte, headerSize, headerSize+56)
	ask = append(ask, syscall.AF_INET, syscall.IPPROTO_TCP, 0, 0, 0xff, 0xff, 0xff, 0xff)
	ask = binary.BigEndian.AppendUint16(ask, local.Port())
	ask = binary.BigEndian.AppendUint16(ask, remote.Port())
	for _, a := range []netip.Addr{local.Addr(), remote.Addr()} {
		b := a.As4()
		ask = append(append(ask, b[:]...), make([]byte, 12)...)
	}
	ask = append(ask, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	binary.NativeEndian.PutUint32(ask, uint32(len(ask)))
	binary.NativeEndian.PutUint16(ask[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(ask[6:], syscall.NLM_F_REQUEST)
	if err := syscall.Sendto(fd, ask, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return 0
	}
	answer := make([]byte, 4096)
	n, _, err := syscall.Recvfrom(fd, answer, 0)
	if err != nil || n < inodeAt+4 || binary.NativeEndian.Uint16(answer[4:]) != sockDiagByFamily {
		return 0
	}
	return uint64(binary.NativeEndian.Uint32(answer[inodeAt:]))
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
