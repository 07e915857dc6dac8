// Package plot draws measurements as SVG: lines, bands, dots and grouped bars, each drawing complete in itself, without a style sheet, script or
// font from elsewhere. It knows nothing of what is measured, and starts no goroutine.
package plot
