package blob

// Zero reports whether nothing is left in c, in use or not.
func (c *Context) Zero() bool {
	for i := range c.pairs {
		if c.pairs[i].key != nil || c.pairs[i].value != nil {
			return false
		}
	}
	return c.n == 0 && c.bytes == 0
}
