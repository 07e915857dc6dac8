package store

import (
	"context"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// readFirst is for how long a read waits for the member of etcd that it went to, before it goes to another; each time twice as long.
const readFirst = time.Second

// readAgain is a gRPC interceptor that asks another member when one does not answer a read. A member whose process hangs keeps its connections: whoever waits for it without
// a deadline waits until gRPC finds out, for 12 seconds. What may write is sent once.
func readAgain(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if !onlyReads(req) {
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	for limit := readFirst; ; limit *= 2 {
		trying, cancel := context.WithTimeout(ctx, limit)
		err := invoke(trying, method, req, reply, cc, opts...)
		cancel()
		if ctx.Err() != nil || status.Code(err) != codes.DeadlineExceeded {
			return err
		}
	}
}

func onlyReads(req any) bool {
	switch r := req.(type) {
	case *etcdserverpb.RangeRequest:
		return true
	case *etcdserverpb.TxnRequest:
		for _, ops := range [][]*etcdserverpb.RequestOp{r.Success, r.Failure} {
			for _, op := range ops {
				if op.GetRequestRange() == nil {
					return false
				}
			}
		}
		return true
	}
	return false
}
