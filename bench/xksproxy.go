package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/xks"
)

const (
	xksTable  = "xks"
	xksRate   = 1800 // requests/s: AWS's for one external key store
	xksP99Max = 25   // ms: a tenth of what AWS KMS waits for an answer

	xksMallocsMax = 0.05 // as mallocsMax, of a third of the requests a second

	xksID     = "BENCHKEYPLANECREDENTIAL"
	xksSecret = "keyplane/bench/secret/not/a/secret/000000000"
	xksPath   = "/bench" + xks.BasePath
)

// xksProxyTable is our proxy of an external key store, on SoftHSM, with requests as AWS KMS sends them for data keys: Encrypt with a CDIV, which takes two rounds in
// the HSM, and Decrypt. Over plain HTTP, as behind what terminates TLS, over TLS 1.3, whose library allocates by itself, and over that at AWS's rate: then latency
// counts from when a request was due.
func (p *plan) xksProxyTable() error {
	const plain, encrypted, paced = "plain HTTP", "TLS 1.3", "TLS 1.3, 1800/s"
	var cells []cell
	for _, in := range []string{plain, encrypted} {
		server, proxy, err := p.startXKSProxy(in == encrypted)
		if err != nil {
			return err
		}
		defer server.stop()
		for _, op := range []string{"encrypt", "decrypt"} {
			cells = append(cells, cell{op, in, hsmName, func(d time.Duration) (measurement, error) { return proxy.measureXKS(op, p.conns, d, p.tmp) }})
		}
		if in == encrypted {
			cells = append(cells, cell{"encrypt", paced, hsmName, func(d time.Duration) (measurement, error) { return proxy.measureXKSPaced("encrypt", p.conns, d) }})
		}
	}
	if err := p.alternate(xksTable, cells); err != nil {
		return err
	}
	encrypt := func(in string, pick func(*measurement) float64) float64 {
		return p.median(xksTable, "encrypt", in, hsmName, pick)
	}
	p.promise("xks-proxy encrypt over TLS, requests/s", encrypt(encrypted, perSecond), atLeast, xksRate)
	p.promise("xks-proxy encrypt over TLS at 1800/s, of them answered in time", encrypt(paced, perSecond)/xksRate, atLeast, 0.99)
	p.promise("xks-proxy encrypt over TLS at 1800/s, p99 in ms", encrypt(paced, p99)/1000, atMost, xksP99Max)
	p.promise("xks-proxy encrypt, allocations/request", encrypt(plain, mallocs), atMost, xksMallocsMax)
	return nil
}

// startXKSProxy starts a server with a proxy, and then offers a key of it. proxy is the server at the proxy's address, with request bodies.
func (p *plan) startXKSProxy(overTLS bool) (server, proxy *target, err error) {
	name, files, scheme := xksTable, "", "http://"
	if overTLS {
		cert, key, err := writeCertificate(p.tmp)
		if err != nil {
			return nil, nil, err
		}
		name, files, scheme = xksTable+"-tls", fmt.Sprintf("tls_cert: %q, tls_key: %q, ", cert, key), "https://"
	}
	secret := filepath.Join(p.tmp, "xks-secret")
	if err := os.WriteFile(secret, []byte(xksSecret), 0o600); err != nil {
		return nil, nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0") // the address has to be known before the server has it
	if err != nil {
		return nil, nil, err
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	text := func(keys string) string {
		return fmt.Sprintf("xks_proxy: {listen: %q, %sprefixes: [{path: /bench, region: %s, credentials: [{access_key_id: %s, secret_file: %q}], keys: [%s]}]}\n",
			addr, files, benchRegion, xksID, secret, keys)
	}
	config, err := p.config(name, text(""))
	if err != nil {
		return nil, nil, err
	}
	if server, err = startKeyplane(hsmName, p.keyplane, filepath.Join(p.tmp, "hsm-"+name), p.uri, config...); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			server.stop()
		}
	}()
	if _, err = p.config(name, text(fmt.Sprintf("{id: bench, key: 'arn:aws:kms:%s:%s:key/%s'}", benchRegion, benchAccount, server.keyID))); err != nil {
		return nil, nil, err
	}
	if err = server.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		return nil, nil, err
	}
	made := *server
	proxy = &made
	proxy.url = scheme + addr
	proxy.client = &fasthttp.HostClient{Addr: addr, IsTLS: overTLS, TLSConfig: xksClientTLS}
	if proxy.key, err = sigv4.NewAccessKey(xksID, []byte(xksSecret), sigv4.Principal{}); err != nil {
		return nil, nil, err
	}
	return server, proxy, proxy.prepareXKS()
}

var xksClientTLS = &tls.Config{InsecureSkipVerify: true} // our own child, and a certificate of this run

// prepareXKS makes the bodies: a data key that AWS KMS has encrypted itself, and as additional authenticated data what stands for its encryption context.
func (t *target) prepareXKS() error {
	m := xks.Metadata{Principal: "arn:aws:iam::123456789012:role/bench", KeyARN: "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
		Operation: "GenerateDataKey", RequestID: "4112f4d6-db54-4af4-ae30-c55a22a8dfae"}
	plaintext, aad := bytes.Repeat([]byte{'p'}, 32+85), bytes.Repeat([]byte{'a'}, 128)
	t.bodies = map[string]string{"encrypt": string(xks.AppendEncrypt(nil, &m, plaintext, aad))}
	var answer []byte
	for tries := time.Now().Add(10 * time.Second); ; { // the server reads its configuration again meanwhile
		var err error
		if answer, err = t.sendXKS("encrypt"); err == nil {
			break
		} else if time.Now().After(tries) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	var parts struct{ Ciphertext, CiphertextMetadata, InitializationVector, AuthenticationTag string }
	if err := json.Unmarshal(answer, &parts); err != nil {
		return err
	}
	sealed := xks.Sealed{}
	for to, text := range map[*[]byte]string{&sealed.Ciphertext: parts.Ciphertext, &sealed.Metadata: parts.CiphertextMetadata, &sealed.IV: parts.InitializationVector, &sealed.Tag: parts.AuthenticationTag} {
		var err error
		if *to, err = base64.StdEncoding.DecodeString(text); err != nil {
			return err
		}
	}
	m.Operation = "Decrypt"
	t.bodies["decrypt"] = string(xks.AppendDecrypt(nil, &m, &sealed, aad))
	opened, err := t.sendXKS("decrypt")
	if err == nil && !strings.Contains(string(opened), base64.StdEncoding.EncodeToString(plaintext)) {
		err = errors.New("the proxy decrypts something else")
	}
	return err
}

// headersXKS signs a request to the proxy, host and date, as AWS KMS does.
func (t *target) headersXKS(path, body string) ([][2]string, error) {
	_, host, _ := strings.Cut(t.url, "://")
	h := [][2]string{{"host", host}, {"x-amz-date", string(sigv4.AppendDate(nil, time.Now()))}}
	r := sigv4.Request{Method: []byte("POST"), Path: []byte(path), Body: []byte(body)}
	for _, kv := range h {
		r.Headers = append(r.Headers, sigv4.Header{Name: []byte(kv[0]), Value: []byte(kv[1])})
	}
	var scratch sigv4.Scratch
	authorization, err := sigv4.AppendAuthorization(nil, t.key, benchRegion, xks.SigningName, &r, &scratch)
	if err != nil {
		return nil, err
	}
	return append(h, [2]string{"content-type", "application/json"}, [2]string{"authorization", string(authorization)}), nil
}

func (t *target) sendXKS(op string) ([]byte, error) {
	path := xksPath + "/keys/bench/" + op
	headers, err := t.headersXKS(path, t.bodies[op])
	if err != nil {
		return nil, err
	}
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	req.SetRequestURI(t.url + path)
	req.Header.SetMethod("POST")
	for _, kv := range headers {
		req.Header.Set(kv[0], kv[1])
	}
	req.SetBodyString(t.bodies[op])
	if err := t.client.Do(req, resp); err != nil {
		return nil, err
	}
	if resp.StatusCode() != fasthttp.StatusOK {
		return nil, &refusal{op, resp.StatusCode(), string(resp.Body())}
	}
	return bytes.Clone(resp.Body()), nil
}

// measureXKS is measure for the proxy.
func (t *target) measureXKS(op string, conns int, d time.Duration, tmp string) (measurement, error) {
	path := xksPath + "/keys/bench/" + op
	headers, err := t.headersXKS(path, t.bodies[op])
	if err != nil {
		return measurement{}, err
	}
	return t.wrk(wrkScript(t.bodies[op], headers)+fmt.Sprintf("wrk.path = %q\n", path), conns, d, tmp)
}

// measureXKSPaced sends requests when they are due, whether or not others are answered, over connections of its own. Latency counts from then.
func (t *target) measureXKSPaced(op string, conns int, d time.Duration) (measurement, error) {
	path := xksPath + "/keys/bench/" + op
	headers, err := t.headersXKS(path, t.bodies[op])
	if err != nil {
		return measurement{}, err
	}
	raw := []byte("POST " + path + " HTTP/1.1\r\n")
	for _, kv := range headers {
		raw = append(append(append(append(raw, kv[0]...), ": "...), kv[1]...), "\r\n"...)
	}
	raw = fmt.Appendf(raw, "content-length: %d\r\n\r\n%s", len(t.bodies[op]), t.bodies[op])
	_, addr, _ := strings.Cut(t.url, "://")
	open := make([]net.Conn, conns)
	for i := range open {
		if open[i], err = tls.Dial("tcp", addr, xksClientTLS); err != nil {
			return measurement{}, err
		}
		defer open[i].Close()
	}
	before, err := t.counters()
	if err != nil {
		return measurement{}, err
	}
	n := int(xksRate * d.Seconds())
	micros := make([]float64, n)
	errs := make([]error, conns)
	var next atomic.Int64
	var running sync.WaitGroup
	began := time.Now()
	for i, c := range open {
		running.Go(func() {
			var answer fasthttp.Response
			in := bufio.NewReader(c)
			for errs[i] == nil {
				at := int(next.Add(1)) - 1
				if at >= n {
					return
				}
				due := began.Add(time.Duration(at) * time.Second / xksRate)
				time.Sleep(time.Until(due))
				if _, errs[i] = c.Write(raw); errs[i] != nil {
					return
				}
				if errs[i] = answer.Read(in); errs[i] == nil && answer.StatusCode() != fasthttp.StatusOK {
					errs[i] = &refusal{op, answer.StatusCode(), string(answer.Body())}
				}
				micros[at] = float64(time.Since(due).Microseconds())
			}
		})
	}
	running.Wait()
	took := time.Since(began)
	after, err := t.counters()
	if err = errors.Join(append(errs, err)...); err != nil {
		return measurement{}, err
	}
	slices.Sort(micros)
	m := measurement{Conns: conns, PerSecond: float64(n) / took.Seconds(), CPUMicros: float64((after.cpu - before.cpu).Microseconds()) / float64(n), Server: after.since(before, float64(n))}
	for _, percent := range percentiles {
		m.Latencies = append(m.Latencies, micros[min(n-1, int(float64(n)*percent/100))])
	}
	m.P50, m.P99, m.P999 = m.Latencies[0], m.Latencies[4], m.Latencies[6]
	return m, nil
}
