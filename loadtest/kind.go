package loadtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// kind is the outcome of one request: below clientKinds a kmsapi.Code as the server's __type named it, above it what the client saw itself.
// Its range is fixed, so counters are an array.
type kind uint16

const clientKinds kind = 256 // one above the largest kmsapi.Code

const kindOK = kind(kmsapi.OK)

const (
	kindConnectionRefused kind = clientKinds + iota
	kindConnectionReset        // closed or reset by the peer before the whole answer
	kindTimeout
	kindTLS
	kindConnection     // any other failure of the connection: no route, no such host, no free port
	kindProtocol       // not HTTP/1.1, or more of it than an answer of KMS can be
	kindUnknownError   // refused with a __type that KMS does not have, or none
	kindBadReply       // status 200, but not the operation's output
	kindVerifyMismatch // status 200 and well-formed, but wrong

	kindCount
)

var clientKindNames = [kindCount - clientKinds]string{
	"ConnectionRefused", "ConnectionReset", "Timeout", "TLSError", "ConnectionError", "ProtocolError", "UnknownError", "BadReply", "VerifyMismatch",
}

// String is the __type or the client's name for the kind.
func (k kind) String() string {
	if k >= clientKinds {
		return clientKindNames[k-clientKinds]
	}
	return kmsapi.Code(k).String()
}

// fromServer reports whether a server's error reply named the kind.
func (k kind) fromServer() bool { return k < clientKinds || k == kindUnknownError }

// kindOfError classifies a failure to connect, write or read.
func kindOfError(err error) kind {
	var netErr net.Error
	var verify *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var unknownCA x509.UnknownAuthorityError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return kindConnectionRefused
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return kindTimeout
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return kindConnectionReset
	case errors.As(err, &verify), errors.As(err, &record), errors.As(err, &alert), errors.As(err, &unknownCA):
		return kindTLS
	case errors.As(err, &netErr):
		return kindConnection
	default:
		return kindProtocol
	}
}
