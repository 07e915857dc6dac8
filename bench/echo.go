package main

import (
	"flag"
	"fmt"
	"net"
	"os"

	"github.com/valyala/fasthttp"
)

// echo is the floor: fasthttp reads a request as keyplane's data plane does and answers with a fixed body of the given size.
func echo(args []string) {
	fs := flag.NewFlagSet("echo", flag.ExitOnError)
	size := fs.Int("size", 300, "bytes of the response body")
	_ = fs.Parse(args)
	body := make([]byte, *size)
	for i := range body {
		body[i] = 'a'
	}
	id := []byte("00000000-0000-4000-8000-000000000000")
	key := []byte("x-amzn-RequestId")
	contentType := []byte("application/x-amz-json-1.1")
	s := &fasthttp.Server{
		Handler: func(ctx *fasthttp.RequestCtx) {
			ctx.Response.Header.SetContentTypeBytes(contentType)
			ctx.Response.Header.SetCanonical(key, id)
			ctx.Response.SetBodyRaw(body)
		},
		NoDefaultServerHeader: true, NoDefaultContentType: true, DisableHeaderNamesNormalizing: true, DisablePreParseMultipartForm: true,
		ReadBufferSize: 8 << 10, WriteBufferSize: 16 << 10,
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("at http://%s\n", ln.Addr())
	if err := s.Serve(ln); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
