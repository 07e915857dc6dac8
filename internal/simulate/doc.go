// Package simulate asks authz what it would decide, and says in words which statement decided. It has no evaluation of its own: it fills an
// authz.Context from values that a person wrote, and puts names to what authz.Decide answers.
package simulate
