package dataplane

import (
	"context"
	"regexp"
)

var contextDeadline = context.DeadlineExceeded

// A request ID is a version 4 UUID in form (RFC 9562 §5.4).
var requestIDForm = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
