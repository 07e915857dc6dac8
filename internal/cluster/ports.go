package cluster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// Ports of processes are below those that the system gives to connections, so that nobody has taken one while its process was down.
const (
	portMin = 20000
	portMax = 32000
)

// freePort is a port that nobody listens on, and that was not returned before.
func (c *Cluster) freePort() (int, error) {
	for range 1000 {
		port := portMin + rand.IntN(portMax-portMin)
		if c.ports[port] {
			continue
		}
		ln, err := net.Listen("tcp4", local(port))
		if err != nil {
			continue
		}
		_ = ln.Close()
		c.ports[port] = true
		return port, nil
	}
	return 0, errors.New("cluster: no port is free")
}

func local(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
