// Package invariants holds checks of our own code that are too dear or too harsh for production: builds with the tag invariants, and race
// builds, run them and panic; all others compile them to nothing.
//
//	if invariants.Enabled {                       // costs nothing where it is false
//		invariants.Zeroed(r, "body", "out")       // at acquire: nothing of the last request is in the pooled struct
//	}
//
// It is for programming errors only. Input of a client is never checked here, and no program may behave differently because of the tag
// as long as no invariant is broken. Messages name fields, never contents, which may be secret. It knows no other package and starts no
// goroutine.
package invariants
