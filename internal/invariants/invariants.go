package invariants

// Check panics with msg where an enabled build finds cond false. The arguments are evaluated in every build: put what is dear behind
// Enabled.
func Check(cond bool, msg string) {
	if Enabled && !cond {
		panic("invariant broken: " + msg)
	}
}

// Zeroed panics, in enabled builds, unless the struct that v points to is as good as new: every field is zero, except that the fields named in reusable
// may keep memory. A name is a path of fields, "out" or "decrypt.plaintext". What may be kept, and what must be zero in it:
//
//	slice           its memory, length 0 and zero up to its whole capacity
//	pointer         its pointee, zero or in turn reusable
//	struct, array   every field or element, by these rules
//	chan            itself, empty
//	map             itself, empty
//	func, interface itself: nothing in it can be checked
//
// It panics also where v is no pointer to a struct or a name leads nowhere, so that a renamed field does not go unchecked.
func Zeroed(v any, reusable ...string) {
	if !Enabled {
		return
	}
	if problem := walk(v, reusable); problem != "" {
		panic("invariant broken: " + problem)
	}
}
