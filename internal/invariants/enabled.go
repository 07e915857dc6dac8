//go:build invariants || race

package invariants

// Enabled says whether this build checks.
const Enabled = true
