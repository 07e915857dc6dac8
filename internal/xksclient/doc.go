// Package xksclient calls the proxy of one external key store: the client of the XKS proxy API as AWS KMS is one.
//
//	Encrypt, Decrypt, KeyMetadata, Health
//	  call              the bulkhead, the breaker, half a second, one retry                 client.go, breaker.go
//	    attempt         signs, a connection, one request, one answer, within 250 ms          attempt.go
//	      pool          idle connections; TCP, TLS                                           pool.go
//	  xks.Read…         the answer, strictly
//	  an *xks.Error     the failure, and what the caller of KMS is told at this stage
//
// Every call is over within half a second, whatever the proxy, the network and the caller's context do. A proxy that is slow or gone costs others nothing: at most
// ConcurrencyMax calls are under way, and after some that came to nothing the breaker refuses all but one a second until an answer comes.
//
// The package starts no goroutines that last: work is done by those of the callers, and Watch by its owner's; while a connection of TCP is made there is one for each
// address that is tried. It does not follow redirects and knows no proxies of HTTP. What it sends and gets is wiped when a call ends, apart from what crypto/tls and
// bufio keep of it.
package xksclient
