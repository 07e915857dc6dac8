package main

import (
	"bytes"
	"crypto/tls"
	"flag"
	"fmt"
	"net"

	"github.com/valyala/fasthttp"
)

// What every reply of a server of ours carries, as keyplane's do.
var (
	requestID       = []byte("00000000-0000-4000-8000-000000000000")
	requestIDHeader = []byte("x-amzn-RequestId")
	replyType       = []byte("application/x-amz-json-1.1")
)

// runEcho is the floor: fasthttp reads a request as keyplane's data plane does and answers with a fixed body of the given size.
func runEcho(args []string) error {
	fs := flag.NewFlagSet("echo", flag.ExitOnError)
	size := fs.Int("size", 300, "bytes of the response body")
	cert := fs.String("tls-cert", "", "PEM `FILE`: serve TLS 1.3")
	key := fs.String("tls-key", "", "PEM `FILE`")
	_ = fs.Parse(args)
	body := bytes.Repeat([]byte("a"), *size)
	s := &fasthttp.Server{
		Handler: func(ctx *fasthttp.RequestCtx) {
			ctx.Response.Header.SetContentTypeBytes(replyType)
			ctx.Response.Header.SetCanonical(requestIDHeader, requestID)
			ctx.Response.SetBodyRaw(body)
		},
		NoDefaultServerHeader: true, NoDefaultContentType: true, DisableHeaderNamesNormalizing: true, DisablePreParseMultipartForm: true,
		ReadBufferSize: 8 << 10, WriteBufferSize: 16 << 10,
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	scheme := "http"
	if *cert != "" {
		pair, err := tls.LoadX509KeyPair(*cert, *key)
		if err != nil {
			return err
		}
		ln, scheme = tls.NewListener(ln, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}), "https"
	}
	fmt.Printf("at %s://%s\n", scheme, ln.Addr())
	return s.Serve(ln)
}
