//go:build !unix

package audit

import "os"

const oNoFollow = 0

func lockFile(*os.File) error { return nil }
