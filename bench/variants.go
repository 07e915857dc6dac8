package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// connCounts are what the table of connections varies.
var connCounts = []int{1, 8, 64, 256, 1024}

func conns(n int) string {
	if n == 1 {
		return "1 connection"
	}
	return fmt.Sprintf("%d connections", n)
}

// connsTable varies the number of connections.
func (p *plan) connsTable() error {
	// One address may have 1000 connections; wrk has one address. And what would wait longer than 50 ms is throttled, which 1024 connections on two cores
	// shared with the client come near to.
	const settings = "conns_per_ip_max: 2000\nqueue_time_max: 1s\n"
	fmt.Print("settings of keyplane for this table:\n", settings)
	config, err := p.config("conns", settings)
	if err != nil {
		return err
	}
	hsm, err := p.startSoftHSM("conns", config...)
	if err != nil {
		return err
	}
	defer hsm.stop()
	var cells []cell
	for _, op := range p.ops {
		floor, _, err := p.startFloor(hsm, op)
		if err != nil {
			return err
		}
		defer floor.stop()
		for _, n := range connCounts {
			for _, t := range []*target{floor, hsm} {
				cells = append(cells, p.cell(t, op, conns(n), n))
			}
		}
	}
	if err := p.alternate("conns", cells); err != nil {
		return err
	}
	for _, op := range p.ops {
		if op == "GenerateDataKey" || op == "Decrypt" {
			p.promise(op+" on SoftHSM at 1 connection, p50 of the echo", p.ratio("conns", op, conns(1), hsmName, echoName, p50), atMost, 1.4)
		}
	}
	return nil
}

const noRoundsName = "SoftHSM, rounds off"

// roundsTable switches rounds off.
func (p *plan) roundsTable() error {
	on, err := p.startSoftHSM("rounds")
	if err != nil {
		return err
	}
	defer on.stop()
	config, err := p.config("norounds", "round_max: 1\n")
	if err != nil {
		return err
	}
	off, err := p.startSoftHSM("norounds", config...)
	if err != nil {
		return err
	}
	defer off.stop()
	off.name = noRoundsName
	var cells []cell
	for _, op := range p.ops {
		floor, _, err := p.startFloor(on, op)
		if err != nil {
			return err
		}
		defer floor.stop()
		for _, t := range []*target{floor, on, off} {
			cells = append(cells, p.cell(t, op, "", p.conns))
		}
	}
	return p.alternate("rounds", cells)
}

// payloadSizes are bytes of data key or plaintext.
var payloadSizes = []int{32, 256, 1024, 4096}

// payloadTable varies the size of what is encrypted, decrypted or generated; a data key has at most 1024 bytes.
func (p *plan) payloadTable() error {
	hsm, err := p.startSoftHSM("payload")
	if err != nil {
		return err
	}
	defer hsm.stop()
	var cells []cell
	for _, op := range []string{"GenerateDataKey", "Encrypt", "Decrypt"} {
		for _, n := range payloadSizes {
			if err := hsm.payload(n); err != nil {
				return err
			}
			body, ok := hsm.bodies[op]
			if !ok {
				continue
			}
			floor, _, err := p.startFloor(hsm, op)
			if err != nil {
				return err
			}
			defer floor.stop()
			in := fmt.Sprintf("%d B", n)
			cells = append(cells, p.cell(floor, op, in, p.conns), cell{op, in, hsm.name, func(d time.Duration) (measurement, error) {
				hsm.bodies[op] = body
				return hsm.measure(op, p.conns, d, p.tmp)
			}})
		}
	}
	return p.alternate("payload", cells)
}

// tlsTable switches TLS 1.3 on, for keyplane and for the floor. wrk keeps its connections: what is compared is records, not handshakes.
func (p *plan) tlsTable() error {
	cert, key, err := writeCertificate(p.tmp)
	if err != nil {
		return err
	}
	var cells []cell
	for _, v := range []struct {
		in    string
		extra []string // of keyplane and of the echo alike
	}{
		{"plain HTTP", nil},
		{"TLS 1.3", []string{"--tls-cert", cert, "--tls-key", key}},
	} {
		hsm, err := p.startSoftHSM("tls"+fmt.Sprint(len(v.extra)), v.extra...)
		if err != nil {
			return err
		}
		defer hsm.stop()
		for _, op := range p.ops {
			floor, _, err := p.startFloor(hsm, op, v.extra...)
			if err != nil {
				return err
			}
			defer floor.stop()
			for _, t := range []*target{floor, hsm} {
				cells = append(cells, p.cell(t, op, v.in, p.conns))
			}
		}
	}
	return p.alternate("tls", cells)
}

// config writes a configuration file and returns the flags that name it.
func (p *plan) config(name, text string) ([]string, error) {
	file := filepath.Join(p.tmp, name+".yaml")
	return []string{"--config", file}, os.WriteFile(file, []byte(text), 0o600)
}
